// Text of a run as it comes: colours, progress bars that return to the beginning of their line, and a bound on how much
// is kept. The document is touched once a frame, however fast text comes.

import { AnsiReader, spanOf } from "./ansi.js";

const MAX_LINE_CHARACTERS = 8_192;
const CHUNK_CHARACTERS = 16_384;

/** How much text all blocks of one output may keep; the oldest goes first. */
export class TextBudget {
  dropped = 0;
  #kept = 0;
  /** @type {TextBlock[]} */ #blocks = [];

  /** @param {number} limit Characters. @param {() => void} onDrop */
  constructor(limit, onDrop) {
    this.limit = limit;
    this.onDrop = onDrop;
  }

  /** @param {TextBlock} block */
  enter(block) {
    this.#blocks.push(block);
  }

  /** @param {number} characters Negative where text was taken back. */
  count(characters) {
    this.#kept += characters;
    const before = this.dropped;
    while (this.#kept > this.limit && this.#blocks.length > 0) {
      const freed = this.#blocks[0].dropOldest();
      if (freed === 0) {
        if (this.#blocks.length === 1) break;
        this.#blocks.shift();
      }
      this.#kept -= freed;
      this.dropped += freed;
    }
    if (this.dropped > before) this.onDrop();
  }

  /** Text that came and went without being shown. @param {number} characters */
  skip(characters) {
    this.dropped += characters;
    this.onDrop();
  }
}

/** Text of one stream that came in a row. */
export class TextBlock {
  #reader = new AnsiReader();
  #waiting = "";
  #isDue = false;
  /** @type {{text: string, look: import("./ansi.js").Look}[]} */ #line = [];
  #lineCharacters = 0;
  #returned = false;
  #live = document.createElement("span");

  /** @param {string} kind `stdout`, `stderr` or `plain`. @param {TextBudget} budget */
  constructor(kind, budget) {
    this.element = document.createElement("pre");
    this.element.className = `text ${kind}`;
    this.element.append(this.#live);
    this.kind = kind;
    this.budget = budget;
    budget.enter(this);
  }

  /** @param {string} text */
  append(text) {
    this.#waiting += text;
    const over = this.#waiting.length - this.budget.limit;
    if (over > 0) {
      this.#waiting = this.#waiting.slice(over);
      this.budget.skip(over);
    }
    if (this.#isDue) return;
    this.#isDue = true;
    // A tab in the background draws no frames.
    if (document.hidden) setTimeout(() => this.flush(), 200);
    else requestAnimationFrame(() => this.flush());
  }

  /** Show what has come. */
  flush() {
    this.#isDue = false;
    const text = this.#waiting;
    this.#waiting = "";
    if (!text) return;
    const before = this.#lineCharacters;
    const done = [];
    for (const piece of this.#reader.read(text)) this.#take(piece, done);
    this.#live.replaceChildren(...this.#line.map(({ text: part, look }) => spanOf(part, look)));
    let characters = this.#lineCharacters - before;
    for (const pieces of chunks(done)) {
      const chunk = document.createElement("span");
      chunk.append(...pieces.map((piece) => spanOf(piece.text, piece.look)));
      this.#live.before(chunk);
      characters += chunk.textContent.length;
    }
    this.budget.count(characters);
  }

  /** Remove the oldest piece that is not the line at work. Returns how many characters it had. */
  dropOldest() {
    const first = this.element.firstChild;
    if (first === null || first === this.#live) return 0;
    first.remove();
    return first.textContent.length;
  }

  /** @param {{text: string, look: object}} piece @param {{text: string, look: object}[]} done */
  #take({ text, look }, done) {
    if (text === "\x1b[K") {
      this.#clearLine();
      return;
    }
    for (const part of text.split(/(\r\n|\n|\r)/)) {
      if (part === "\n" || part === "\r\n") {
        done.push(...this.#line, { text: "\n", look: {} });
        this.#clearLine();
      } else if (part === "\r") {
        this.#returned = true;
      } else if (part) {
        if (this.#returned) this.#clearLine();
        this.#line.push({ text: part, look });
        this.#lineCharacters += part.length;
        if (this.#lineCharacters > MAX_LINE_CHARACTERS || this.#line.length > MAX_LINE_CHARACTERS / 8) {
          done.push(...this.#line);
          this.#clearLine();
        }
      }
    }
  }

  #clearLine() {
    this.#line = [];
    this.#lineCharacters = 0;
    this.#returned = false;
  }
}

/** Pieces in groups that are not large, so that the oldest can go; neighbours of one look become one piece. */
function chunks(pieces) {
  const found = [];
  let characters = CHUNK_CHARACTERS;
  for (const { text, look } of pieces) {
    if (characters >= CHUNK_CHARACTERS) {
      found.push([]);
      characters = 0;
    }
    const chunk = found.at(-1);
    const last = chunk.at(-1);
    if (last && (last.look === look || (isPlain(last.look) && isPlain(look)))) last.parts.push(text);
    else chunk.push({ look, parts: [text] });
    characters += text.length;
  }
  return found.map((chunk) => chunk.map(({ look, parts }) => ({ text: parts.join(""), look })));
}

/** @param {object} look */
function isPlain(look) {
  return Object.keys(look).length === 0;
}
