// Text of a run as it comes: colours, progress bars that return to the beginning of their line, and a bound on how much
// is kept. The document is touched once a frame, however fast text comes.

import { AnsiReader, spanOf } from "./ansi.js";

const MAX_LINE_CHARACTERS = 8_192;
const CHUNK_COST = 16_384;
const PIECE_COST = 16;
const BLOCK_COST = 100;

/**
 * How much all blocks of one output may keep; the oldest goes first. Elements cost as well as characters, so that many
 * small pieces are bounded too.
 */
export class TextBudget {
  /** Characters that are not shown any more. */
  dropped = 0;
  #kept = 0;
  /** @type {Set<TextBlock>} */ #blocks = new Set();

  /** @param {number} limit Characters. @param {() => void} onDrop */
  constructor(limit, onDrop) {
    this.limit = limit;
    this.onDrop = onDrop;
  }

  /** @param {TextBlock} block @param {number} cost Negative where text was taken back. */
  count(block, cost) {
    this.#blocks.add(block);
    this.#kept += cost;
    const before = this.dropped;
    for (const oldest of this.#blocks) {
      while (this.#kept > this.limit && oldest.dropOldest());
      if (this.#kept <= this.limit) break;
      if (oldest !== block && !oldest.isDue) oldest.drop();
    }
    if (this.dropped > before) this.onDrop();
  }

  /** @param {{cost: number, characters: number}} gone */
  free({ cost, characters }) {
    this.#kept -= cost;
    this.dropped += characters;
  }

  /** Text that came and went without being shown. @param {number} characters */
  skip(characters) {
    this.dropped += characters;
    this.onDrop();
  }

  /** A block that is shown no more. @param {TextBlock} block @param {number} cost */
  leave(block, cost) {
    if (this.#blocks.delete(block)) this.#kept -= cost;
  }
}

/** Text of one stream that came in a row. */
export class TextBlock {
  #reader = new AnsiReader();
  #waiting = "";
  /** Whether text waits to be shown. */
  isDue = false;
  /** Whether it was removed, and takes no more text. */
  isGone = false;
  /** @type {{element: HTMLElement, cost: number, characters: number}[]} */ #chunks = [];
  #chunksCost = 0;
  /** All of it, as the budget knows. */
  #cost = 0;
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
  }

  /** @param {string} text */
  append(text) {
    this.#waiting += text;
    const over = this.#waiting.length - this.budget.limit;
    if (over > 0) {
      this.#waiting = this.#waiting.slice(over);
      this.budget.skip(over);
    }
    if (this.isDue) return;
    this.isDue = true;
    soon(() => this.flush());
  }

  /** Show what has come. */
  flush() {
    this.isDue = false;
    const text = this.#waiting;
    this.#waiting = "";
    if (!text || this.isGone) return;
    const done = [];
    for (const piece of this.#reader.read(text)) this.#take(piece, done);
    this.#live.replaceChildren(...this.#line.map(({ text: part, look }) => spanOf(part, look)));
    for (const { pieces, cost, characters } of chunks(done)) {
      const element = document.createElement("span");
      element.append(...pieces.map((piece) => spanOf(piece.text, piece.look)));
      this.#live.before(element);
      this.#chunks.push({ element, cost, characters });
      this.#chunksCost += cost;
    }
    const before = this.#cost;
    this.#cost = BLOCK_COST + this.#chunksCost + this.#lineCharacters + this.#line.length * PIECE_COST;
    this.budget.count(this, this.#cost - before);
  }

  /** Remove the oldest piece that is not the line at work. Returns whether there was one. */
  dropOldest() {
    const chunk = this.#chunks.shift();
    if (chunk === undefined) return false;
    chunk.element.remove();
    this.#chunksCost -= chunk.cost;
    this.#cost -= chunk.cost;
    this.budget.free(chunk);
    return true;
  }

  /** Remove the rest of it, for which there is no room. */
  drop() {
    this.budget.skip(this.#lineCharacters);
    this.leave();
    this.element.remove();
  }

  /** Be shown no more, as what was cleared or has been replaced. */
  leave() {
    this.isGone = true;
    this.budget.leave(this, this.#cost);
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
        for (let from = 0; from < part.length; from += MAX_LINE_CHARACTERS) {
          this.#extendLine({ text: part.slice(from, from + MAX_LINE_CHARACTERS), look }, done);
        }
      }
    }
  }

  /** @param {{text: string, look: object}} piece @param {{text: string, look: object}[]} done */
  #extendLine(piece, done) {
    this.#line.push(piece);
    this.#lineCharacters += piece.text.length;
    if (this.#lineCharacters <= MAX_LINE_CHARACTERS && this.#line.length <= MAX_LINE_CHARACTERS / 8) return;
    done.push(...this.#line);
    this.#clearLine();
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
  let chunk = { parts: [], cost: CHUNK_COST, characters: 0 };
  for (const { text, look } of pieces) {
    if (chunk.cost >= CHUNK_COST) {
      chunk = { parts: [], cost: 0, characters: 0 };
      found.push(chunk);
    }
    const last = chunk.parts.at(-1);
    if (last && (last.look === look || (isPlain(last.look) && isPlain(look)))) last.texts.push(text);
    else {
      chunk.parts.push({ look, texts: [text] });
      chunk.cost += PIECE_COST;
    }
    chunk.cost += text.length;
    chunk.characters += text.length;
  }
  return found.map(({ parts, cost, characters }) => {
    return { pieces: parts.map(({ look, texts }) => ({ text: texts.join(""), look })), cost, characters };
  });
}

/** In the next frame. A tab in the background draws none. @param {() => void} action */
export function soon(action) {
  if (document.hidden) setTimeout(action, 200);
  else requestAnimationFrame(action);
}

/** @param {object} look */
function isPlain(look) {
  return Object.keys(look).length === 0;
}
