// The choice of a session, and what can be done with one: make, restart, end, take as a notebook.

import { ask, askJson } from "../wire/api.js";

const NONE = "";
const KEY = "cellblock-session";

/** @param {string} id */
function path(id) {
  return `sessions/${encodeURIComponent(id)}`;
}

export class Sessions {
  /** @type {any[]} */ #views = [];

  /**
   * @param {HTMLSelectElement} select
   * @param {(view: any | null) => void} onChoice The session as the gateway tells of it.
   */
  constructor(select, onChoice) {
    this.select = select;
    this.onChoice = onChoice;
    select.addEventListener("change", () => this.choose(select.value));
  }

  /** The chosen session as it was told last; null without one. */
  get view() {
    return this.#views.find((view) => view.session_id === this.select.value) ?? null;
  }

  get id() {
    return this.select.value;
  }

  /** Ask for those that there are. A chosen one that has ended is kept in the list: its next run makes it anew. */
  async refresh() {
    const chosen = this.#views.length > 0 || this.id ? this.id : (sessionStorage.getItem(KEY) ?? NONE);
    const { sessions } = await askJson("sessions");
    this.#views = sessions;
    this.#list(chosen);
    this.onChoice(this.view);
  }

  /** @param {string} id */
  choose(id) {
    sessionStorage.setItem(KEY, id);
    this.#list(id);
    this.onChoice(this.view);
  }

  /** @param {string} language */
  async make(language) {
    const letters = crypto.getRandomValues(new Uint8Array(4));
    const id = `play-${[...letters].map((byte) => (byte % 36).toString(36)).join("")}`;
    const view = await askJson("sessions", { method: "POST", json: { session_id: id, language } });
    this.#views.push(view);
    this.choose(view.session_id);
    return view;
  }

  async restart() {
    return askJson(`${path(this.id)}/restart`, { method: "POST" });
  }

  async end() {
    await ask(path(this.id), { method: "DELETE" });
    this.#views = this.#views.filter((view) => view.session_id !== this.id);
    this.choose(NONE);
  }

  /** The session as a notebook. @returns {Promise<Blob>} */
  async notebook() {
    return (await ask(`${path(this.id)}/notebook`)).blob();
  }

  /** @param {string} chosen */
  #list(chosen) {
    const options = [option(NONE, "None: fresh each run")];
    for (const { session_id: id, state } of this.#views) {
      options.push(option(id, state === "dead" ? `${id} (kernel gone)` : id));
    }
    if (chosen && !this.#views.some((view) => view.session_id === chosen)) {
      options.push(option(chosen, `${chosen} (ended)`));
    }
    this.select.replaceChildren(...options);
    this.select.value = chosen;
  }
}

/** @param {string} value @param {string} text */
function option(value, text) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = text;
  return element;
}
