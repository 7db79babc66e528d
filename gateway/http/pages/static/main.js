// The playground: puts the editor, the run, the sessions and the files together. It uses the public API alone.

import { Editor } from "./editor.js";
import { setUpCallDialog } from "./panels/call_dialog.js";
import { Files, save } from "./panels/files.js";
import { runInAddress, showRecent } from "./panels/recent.js";
import { RunPanel, announce } from "./panels/run_panel.js";
import { Sessions } from "./panels/sessions.js";
import { askForToken, setUpTokenForm } from "./panels/token_form.js";
import { askJson, gatewayUrl, token } from "./wire/api.js";
import { KernelCompletion } from "./wire/completion.js";
import { RunSocket } from "./wire/run_socket.js";

const DRAFT_KEY = "cellblock-draft";
const EXAMPLE = `import matplotlib.pyplot as plt
import numpy as np

x = np.linspace(0, 4 * np.pi, 400)
for damping in (0.05, 0.15, 0.3):
    plt.plot(x, np.exp(-damping * x) * np.sin(x), label=f"damping {damping}")
plt.title("A damped oscillation")
plt.legend()
plt.show()
`;

/** @param {string} id */
const byId = (id) => /** @type {any} */ (document.getElementById(id));
const nonce = /** @type {HTMLLinkElement} */ (document.querySelector("link[rel=stylesheet]")).nonce;

const socket = new RunSocket();
const completion = new KernelCompletion();
const panel = new RunPanel(socket, { nonce, failed, ended, started });
const files = new Files(byId("files-list"), byId("files-summary"), failed);
const sessions = new Sessions(byId("session"), chosen);
const editor = new Editor(byId("editor"), {
  nonce,
  text: sessionStorage.getItem(DRAFT_KEY) ?? EXAMPLE,
  onRun: run,
  onChange: () => sessionStorage.setItem(DRAFT_KEY, editor.text),
  complete: completion.complete,
});
/** Runs per session, as far as this page knows: one that has had some should have its variables. */
const ranIn = new Map();
/** What ran last, so that a failing line is marked in that code alone. */
let ranCode = "";

// --- what went wrong -------------------------------------------------------------------------------------------------

/** @param {any} error */
function failed(error) {
  const text = error?.status === 401 ? askForToken() : error?.message || String(error);
  byId("problem").textContent = text;
  byId("problem").hidden = false;
}

function allIsWell() {
  byId("problem").hidden = true;
}

/** Do it, and show what went wrong. @param {() => Promise<any>} action */
async function guard(action) {
  try {
    allIsWell();
    return await action();
  } catch (error) {
    failed(error);
    return null;
  }
}

// --- runs ------------------------------------------------------------------------------------------------------------

async function run() {
  if (panel.isBusy) return;
  allIsWell();
  ranCode = editor.text;
  editor.mark(null);
  await panel.run({ code: ranCode, ...choice() });
}

/** Language and session as fields of a run. */
function choice() {
  return { language: byId("language").value, ...(sessions.id ? { session_id: sessions.id } : {}) };
}

/** @param {any} event */
function started(event) {
  if (!panel.output.isLive || !event.session_created || !ranIn.get(event.session_id)) return;
  panel.output.notice("This session's kernel is a fresh one: earlier variables are not there.", "warning");
}

/** @param {any} answer */
function ended(answer) {
  if (answer.exception?.line && editor.text === ranCode) editor.mark(answer.exception.line);
  if (answer.session_id) ranIn.set(answer.session_id, !answer.session_lost);
  guard(refresh);
}

async function openFromAddress() {
  const runId = runInAddress();
  if (!runId || runId === panel.runId) return;
  const record = await panel.open(runId);
  if (record === null) return;
  if (typeof record.code === "string") {
    editor.text = record.code;
    ranCode = record.code;
  }
  setLanguage(record.language);
  if ((record.session_id ?? "") !== sessions.id) sessions.choose(record.session_id ?? "");
}

// --- languages, sessions and files -----------------------------------------------------------------------------------

async function loadLanguages() {
  const { default: first, kernelspecs } = await askJson("api/kernelspecs");
  const names = Object.values(kernelspecs).map(({ spec }) => spec.language);
  const chosenName = byId("language").value || kernelspecs[first].spec.language;
  byId("language").replaceChildren(...names.map((name) => new Option(name, name)));
  setLanguage(names.includes(chosenName) ? chosenName : names[0]);
  if (!names.includes("python") && editor.text === EXAMPLE) editor.text = "";
}

/** @param {string} name */
function setLanguage(name) {
  if (!name) return;
  const select = byId("language");
  if (![...select.options].some((option) => option.value === name)) select.append(new Option(name, name));
  select.value = name;
  editor.setLanguage(name);
}

/** @param {any | null} view The session that is chosen now. */
function chosen(view) {
  completion.use(view?.kernel_id ?? "");
  byId("session-tools").hidden = view === null;
  byId("language").disabled = view !== null;
  if (view) setLanguage(view.language);
  if (view?.runs > 0 && !ranIn.has(view.session_id)) ranIn.set(view.session_id, view.state !== "dead");
  files.show(view?.session_id ?? "").catch(failed);
}

async function refresh() {
  await sessions.refresh();
  if (byId("recent").open) await showRecent(byId("recent-list"));
}

/** @param {File[]} dropped */
function send(dropped) {
  if (dropped.length === 0) return;
  guard(async () => {
    const view = sessions.view ?? (await sessions.make(byId("language").value));
    await files.send(view.session_id, dropped);
    byId("files").open = true;
    announce(
      `${dropped.length === 1 ? dropped[0].name : `${dropped.length} files`} sent to session ${view.session_id}`,
    );
  });
}

function setUpFiles() {
  const field = byId("upload-field");
  byId("upload").addEventListener("click", () => field.click());
  field.addEventListener("change", () => {
    send([...field.files]);
    field.value = "";
  });
  const hint = byId("drop-hint");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    hint.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) hint.hidden = true;
  });
  addEventListener(
    "drop",
    (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      hint.hidden = true;
      send([...event.dataTransfer.files]);
    },
    { capture: true },
  );
}

function setUpSessions() {
  byId("new-session").addEventListener("click", () => guard(() => sessions.make(byId("language").value)));
  byId("restart").addEventListener("click", () =>
    guard(async () => {
      await sessions.restart();
      ranIn.delete(sessions.id);
      panel.output.notice("The session was restarted: its variables are gone, its files were kept.");
      announce("The session was restarted");
      await refresh();
    }),
  );
  byId("notebook").addEventListener("click", () =>
    guard(async () => save(await sessions.notebook(), `${sessions.id}.ipynb`)),
  );
  byId("end-session").addEventListener("click", () => {
    if (confirm(`End session ${sessions.id}? Its variables and files are removed.`)) {
      files.hide();
      guard(() => sessions.end());
    }
  });
}

// --- the page --------------------------------------------------------------------------------------------------------

async function load() {
  await guard(async () => {
    await loadLanguages();
    await refresh();
    await openFromAddress();
  });
}

byId("run").addEventListener("click", run);
byId("language").addEventListener("change", () => editor.setLanguage(byId("language").value));
byId("recent").addEventListener("toggle", () => byId("recent").open && guard(() => showRecent(byId("recent-list"))));
addEventListener("hashchange", openFromAddress);
addEventListener("keydown", (event) => {
  const isElsewhere = !event.defaultPrevented && !document.querySelector("dialog[open]");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && isElsewhere) run();
});
setUpFiles();
setUpSessions();
setUpTokenForm(() => {
  socket.close();
  completion.use("");
  load();
});
setUpCallDialog(() => ({
  url: gatewayUrl(),
  code: editor.text,
  language: byId("language").value || "python",
  sessionId: sessions.id,
  needsToken: token() !== "",
}));
load();
