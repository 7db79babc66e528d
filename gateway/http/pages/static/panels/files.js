// The files of the chosen session: listed, dropped in, downloaded, removed.

import { shownName } from "../output/file_name.js";
import { ask, askJson, filePath } from "../wire/api.js";

const MAX_SHOWN = 500;

export class Files {
  #sessionId = "";
  #asking = new AbortController();

  /**
   * @param {HTMLElement} list
   * @param {HTMLElement} summary Where it is told how many there are.
   * @param {(error: any) => void} failed
   */
  constructor(list, summary, failed) {
    this.list = list;
    this.summary = summary;
    this.failed = failed;
  }

  /** @param {string} sessionId "" for none. */
  async show(sessionId) {
    this.hide();
    const { signal } = this.#asking;
    this.#sessionId = sessionId;
    if (!sessionId) {
      this.#tell("Files");
      this.list.replaceChildren(remark("Files belong to a session: drop one here, and a session is made for it."));
      return;
    }
    let files;
    try {
      ({ files } = await askJson(filePath(sessionId), { signal }));
    } catch (error) {
      if (signal.aborted) return;
      throw error;
    }
    this.#tell(`Files (${files.length})`);
    const items = files.slice(0, MAX_SHOWN).map((file) => this.#item(file));
    if (files.length === 0) items.push(remark("None yet. Drop files anywhere on this page to send them."));
    if (files.length > MAX_SHOWN) items.push(remark(`and ${files.length - MAX_SHOWN} more`));
    this.list.replaceChildren(...items);
  }

  /** Ask no more for those of a session that is left or ends. */
  hide() {
    this.#asking.abort();
    this.#asking = new AbortController();
    this.#sessionId = "";
  }

  /** Send them to the session, one after the other. @param {string} sessionId @param {File[]} files */
  async send(sessionId, files) {
    const headers = { "Content-Type": "application/octet-stream" };
    try {
      for (const file of files) {
        await checkReadable(file);
        await ask(filePath(sessionId, file.name), { method: "PUT", body: file, headers });
      }
    } finally {
      await this.show(sessionId);
    }
  }

  /** @param {string} text */
  #tell(text) {
    this.summary.textContent = text;
  }

  /** @param {{path: string, bytes: number}} file */
  #item({ path, bytes }) {
    const sessionId = this.#sessionId;
    const name = document.createElement("button");
    name.type = "button";
    name.className = "link";
    name.textContent = shownName(path);
    name.title = `Download ${path}`;
    name.addEventListener("click", () => this.#guard(async () => save(await fetchFile(sessionId, path), path)));
    const size = document.createElement("span");
    size.className = "size";
    size.textContent = sizeText(bytes);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "quiet";
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${path}`);
    remove.addEventListener("click", () =>
      this.#guard(async () => {
        await ask(filePath(sessionId, path), { method: "DELETE" });
        await this.show(sessionId);
      }),
    );
    const item = document.createElement("li");
    item.append(name, size, remove);
    return item;
  }

  /** @param {() => Promise<void>} action */
  async #guard(action) {
    try {
      await action();
    } catch (error) {
      this.failed(error);
    }
  }
}

/** Throws for a folder, which a browser hands over like a file. @param {File} file */
async function checkReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Error(`"${file.name}" cannot be read. Folders are not taken: send the files in them.`);
  }
}

/** @param {string} sessionId @param {string} path */
async function fetchFile(sessionId, path) {
  return (await ask(filePath(sessionId, path))).blob();
}

/** Have the browser save it. @param {Blob} blob @param {string} path */
export function save(blob, path) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = path.split("/").at(-1) ?? path;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {string} text */
function remark(text) {
  const item = document.createElement("li");
  item.className = "remark";
  item.textContent = text;
  return item;
}

/** @param {number} bytes */
export function sizeText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
