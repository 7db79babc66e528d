// What a run has said and shown, in order. Text of a run is only ever text; its HTML goes into a frame (html_frame.js).

import { artifactAddress } from "../wire/api.js";
import { shownName } from "./file_name.js";
import { htmlFrame } from "./html_frame.js";
import { TextBlock, TextBudget, soon } from "./text_block.js";

const KEPT_CHARACTERS = 400_000;
const MAX_RESULTS = 200;
const MAX_RESULT_CHARACTERS = 100_000;
const MAX_PICTURES = 50;

/**
 * @typedef {{element: HTMLElement, displayId: string | null, block: TextBlock | null}} Shown
 * One result; `block` is its text, where it has some.
 */

export class Output {
  #budget = new TextBudget(KEPT_CHARACTERS, () => {});
  /** @type {TextBlock | null} */ #block = null;
  /** @type {Shown[]} */ #shown = [];
  /** @type {Map<string, string>} */ #images = new Map();
  /** @type {Map<string, string>} */ #files = new Map();
  /** @type {Set<string>} */ #displayed = new Set();
  /** @type {HTMLElement | null} */ #note = null;
  /** Whether events come as they happen: what comes while a question is open was printed before it. */
  isLive = true;
  /** What displays are to show from the next frame on, by their ids. @type {Map<string, any>} */ #updates = new Map();
  #clearsNext = false;
  #isScrolling = false;
  #left = 0;

  /**
   * @param {HTMLElement} container
   * @param {string} nonce
   * @param {(event: any) => HTMLElement} inputBox Makes the box for an `input_request`.
   */
  constructor(container, nonce, inputBox) {
    this.container = container;
    this.nonce = nonce;
    this.inputBox = inputBox;
    this.clear();
  }

  /** Nothing is shown, and a run may begin. */
  clear() {
    this.container.replaceChildren();
    this.#budget = new TextBudget(KEPT_CHARACTERS, () => this.#sayDropped());
    this.#block = null;
    this.#shown = [];
    this.#images = new Map();
    this.#files = new Map();
    this.#displayed = new Set();
    this.#note = null;
    this.#updates = new Map();
    this.#clearsNext = false;
    this.#left = 0;
  }

  /** @param {any} event One of a run's events. */
  handle(event) {
    switch (event.type) {
      case "stdout":
      case "stderr":
        this.#text(event.type, event.text);
        break;
      case "result":
        this.#applyClear();
        this.#result(event.data, event.display_id);
        break;
      case "update":
        if (this.#updates.size === 0) soon(() => this.#applyUpdates());
        this.#updates.set(event.display_id, event.data);
        break;
      case "clear":
        this.#clearsNext = true;
        if (!event.wait) this.#applyClear();
        break;
      case "image":
        this.#images.set(event.name, artifactAddress(event.url));
        break;
      case "file":
        this.#files.set(event.name, artifactAddress(event.url));
        break;
      case "error":
        this.#traceback(event);
        break;
      case "input_request":
        this.#add(this.inputBox(event));
        break;
      case "truncated":
        this.notice(`Some of the run's ${event.what} was cut: a limit of the gateway.`);
        break;
      case "end":
        this.#end(event);
        break;
      default:
        break;
    }
  }

  /** A remark of the page. @param {string} text @param {string} [kind] */
  notice(text, kind = "") {
    const element = document.createElement("p");
    element.className = `notice ${kind}`;
    element.textContent = text;
    this.#add(element);
    return element;
  }

  /** @param {HTMLElement} element */
  #add(element) {
    this.#block = null;
    this.#stayAtEnd();
    const question = this.isLive ? this.container.querySelector("form.input") : null;
    if (question) question.before(element);
    else this.container.append(element);
  }

  /** Whoever reads the end sees the end when there is more; whoever has scrolled back is left alone. */
  #stayAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.container;
    if (this.#isScrolling || scrollHeight - scrollTop - clientHeight > 40) return;
    this.#isScrolling = true;
    requestAnimationFrame(() => {
      // Text is shown in this frame too, and after this was asked for.
      requestAnimationFrame(() => {
        this.#isScrolling = false;
        this.container.scrollTop = this.container.scrollHeight;
      });
    });
  }

  /** @param {string} kind @param {string} text */
  #text(kind, text) {
    this.#applyClear();
    if (this.#block?.kind !== kind || this.#block.isGone) {
      const block = new TextBlock(kind, this.#budget);
      this.#add(block.element);
      this.#block = block;
    }
    this.#stayAtEnd();
    this.#block.append(text);
  }

  #sayDropped() {
    if (this.#note === null) {
      this.#note = document.createElement("p");
      this.#note.className = "notice dropped";
      this.container.prepend(this.#note);
    }
    const count = this.#budget.dropped.toLocaleString("en");
    this.#note.textContent =
      `The page keeps the end of long output: ${count} characters before it are not shown. ` +
      "The run's record has all of it.";
  }

  // --- results -------------------------------------------------------------------------------------------------------

  #applyClear() {
    if (!this.#clearsNext) return;
    this.#clearsNext = false;
    this.#updates.clear();
    for (const { element, block } of this.#shown) {
      block?.leave();
      element.remove();
    }
    this.#shown = [];
    this.#block = null;
  }

  #applyUpdates() {
    for (const shown of this.#shown) {
      if (this.#updates.has(shown.displayId)) this.#fill(shown, this.#updates.get(shown.displayId));
    }
    this.#updates.clear();
  }

  /** @param {Shown} shown @param {Record<string, any>} data */
  #fill(shown, data) {
    shown.block?.leave();
    shown.block = null;
    shown.element.replaceChildren(...this.#bundle(data, shown));
  }

  /** @param {Record<string, any>} data @param {string | null} displayId */
  #result(data, displayId) {
    if (this.#shown.length >= MAX_RESULTS) {
      this.#left += 1;
      return;
    }
    const element = document.createElement("div");
    element.className = "result";
    const shown = { element, displayId, block: null };
    this.#fill(shown, data);
    this.#shown.push(shown);
    this.#add(element);
  }

  /** The best of what a bundle has. @param {Record<string, any>} data @param {Shown} shown @returns {Node[]} */
  #bundle(data, shown) {
    if (typeof data.image === "string") return [this.#figure(data.image)];
    const plain = typeof data["text/plain"] === "string" ? data["text/plain"] : null;
    if (typeof data["text/html"] === "string") {
      const frame = htmlFrame(data["text/html"], this.nonce);
      if (frame) return [frame];
      const remark = document.createElement("p");
      remark.className = "notice";
      remark.textContent = "This output needs scripts, which are not run here. A notebook at this session shows it.";
      return plain === null ? [remark] : [this.#plain(plain, shown), remark];
    }
    if (plain !== null) return [this.#plain(plain, shown)];
    const [name, value] = Object.entries(data)[0] ?? ["", ""];
    return [this.#plain(typeof value === "string" ? value : `${name}: ${JSON.stringify(value, null, 2)}`, shown)];
  }

  /** @param {string} text @param {Shown} shown */
  #plain(text, shown) {
    const block = new TextBlock("plain", this.#budget);
    shown.block = block;
    const over = text.length - MAX_RESULT_CHARACTERS;
    block.append(over > 0 ? `${text.slice(0, MAX_RESULT_CHARACTERS)}\n… ${over} more characters are not shown` : text);
    block.flush();
    return block.element;
  }

  /** @param {string} name */
  #figure(name) {
    this.#displayed.add(name);
    return picture(name, this.#images.get(name) ?? "", false);
  }

  // --- the end -------------------------------------------------------------------------------------------------------

  /** @param {any} event */
  #traceback(event) {
    const element = document.createElement("div");
    element.className = "traceback";
    const title = document.createElement("p");
    title.className = "exception";
    title.textContent = event.value ? `${event.name}: ${event.value}` : event.name;
    const text = document.createElement("pre");
    text.tabIndex = 0;
    text.setAttribute("aria-label", "Traceback");
    for (const line of event.traceback.join("\n").slice(0, MAX_RESULT_CHARACTERS).split("\n")) {
      const part = document.createElement("span");
      part.textContent = `${line}\n`;
      if (/^-+> ?\d+/.test(line)) part.className = "failing";
      text.append(part);
    }
    element.append(title, text);
    this.#add(element);
  }

  /** @param {any} answer The whole answer. */
  #end(answer) {
    this.#block?.flush();
    this.#applyUpdates();
    if (this.#left > 0) this.notice(`${this.#left} more results are not shown here. The run's record has all of them.`);
    const others = [...this.#images].filter(([name]) => !this.#displayed.has(name));
    for (const [name, url] of others.slice(0, MAX_PICTURES)) this.#add(picture(name, url, true));
    if (this.#files.size > 0 || this.#images.size > 0) this.#add(downloads(new Map([...this.#images, ...this.#files])));
    if (answer.session_lost) {
      this.notice("The session's variables are gone: its kernel ended. The next run has a fresh one.", "warning");
    }
    if (answer.error && !answer.exception) this.notice(answer.error, "failed");
  }
}

/** @param {string} name @param {string} url @param {boolean} hasCaption */
function picture(name, url, hasCaption) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  image.alt = `Picture ${name}`;
  image.src = url;
  figure.append(image);
  if (hasCaption) {
    const caption = document.createElement("figcaption");
    caption.textContent = name;
    figure.append(caption);
  }
  return figure;
}

/** @param {Map<string, string>} files Address by name. */
function downloads(files) {
  const element = document.createElement("section");
  element.className = "downloads";
  element.setAttribute("aria-label", "Files of this run");
  const list = document.createElement("ul");
  for (const [name, url] of files) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name.split("/").at(-1);
    link.textContent = shownName(name);
    const item = document.createElement("li");
    item.append(link);
    list.append(item);
  }
  element.append(list);
  return element;
}
