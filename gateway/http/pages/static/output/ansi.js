// Text with ANSI escape sequences as pieces that have one look each. Pure: nothing of the document.

const SEQUENCE = /\x1b\[([0-9;:?<=>]*)[ -/]*([@-~])|\x1b[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-Z\\^-~]/g;
const UNFINISHED = /\x1b(?:\[[0-9;:?<=>]*[ -/]*|[\]P^_X][^\x07\x1b]{0,4096}\x1b?|[ -/]*)?$/;
const CONTROLS = /[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]/g;

/**
 * @typedef {{bold?: boolean, faint?: boolean, italic?: boolean, underline?: boolean, strike?: boolean,
 *   inverse?: boolean, color?: string, background?: string}} Look
 * Colours are names of classes (`ansi-0` to `ansi-15`) or CSS colours.
 */

/** Reads text in pieces; the look, and a sequence that is not finished yet, go on in the next one. */
export class AnsiReader {
  /** @type {Look} */ #look = {};
  #rest = "";

  /**
   * @param {string} text
   * @returns {{text: string, look: Look}[]} A piece whose text is "\x1b[K" has the current line erased.
   */
  read(text) {
    let input = this.#rest + text;
    const unfinished = UNFINISHED.exec(input);
    this.#rest = unfinished ? unfinished[0] : "";
    if (unfinished) input = input.slice(0, unfinished.index);
    const pieces = [];
    let from = 0;
    for (const match of input.matchAll(SEQUENCE)) {
      this.#add(pieces, input.slice(from, match.index));
      from = match.index + match[0].length;
      if (match[2] === "m") this.#look = changed(this.#look, match[1]);
      else if (match[2] === "K" && match[1] === "2") pieces.push({ text: "\x1b[K", look: this.#look });
    }
    this.#add(pieces, input.slice(from));
    return pieces;
  }

  /** @param {{text: string, look: Look}[]} pieces @param {string} text */
  #add(pieces, text) {
    const visible = text.replace(CONTROLS, "").replaceAll("\x1b", "");
    if (visible) pieces.push({ text: visible, look: this.#look });
  }
}

const SWITCHES = { 1: "bold", 2: "faint", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const OFF = { 22: ["bold", "faint"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"] };

/** The look after a sequence of "select graphic rendition". @param {Look} look @param {string} parameters */
function changed(look, parameters) {
  let next = { ...look };
  const codes = parameters.split(/[;:]/).map((text) => Number(text) || 0);
  for (let place = 0; place < codes.length; place += 1) {
    const code = codes[place];
    if (code === 0) next = {};
    else if (SWITCHES[code]) next[SWITCHES[code]] = true;
    else if (OFF[code]) for (const name of OFF[code]) delete next[name];
    else if (code >= 30 && code <= 37) next.color = `ansi-${code - 30}`;
    else if (code >= 90 && code <= 97) next.color = `ansi-${code - 82}`;
    else if (code >= 40 && code <= 47) next.background = `ansi-${code - 40}`;
    else if (code >= 100 && code <= 107) next.background = `ansi-${code - 92}`;
    else if (code === 39) delete next.color;
    else if (code === 49) delete next.background;
    else if (code === 38 || code === 48) {
      const [color, used] = extended(codes.slice(place + 1));
      if (color) next[code === 38 ? "color" : "background"] = color;
      place += used;
    }
  }
  return next;
}

/** A colour of 256, or of red, green and blue; and how many codes it takes. @param {number[]} codes */
function extended(codes) {
  const byte = (value) => Math.max(0, Math.min(255, value || 0));
  if (codes[0] === 2) return [`rgb(${byte(codes[1])} ${byte(codes[2])} ${byte(codes[3])})`, 4];
  if (codes[0] !== 5) return ["", 1];
  const number = byte(codes[1]);
  if (number < 16) return [`ansi-${number}`, 2];
  if (number >= 232)
    return [
      `rgb(${Array(3)
        .fill(8 + 10 * (number - 232))
        .join(" ")})`,
      2,
    ];
  const levels = [0, 95, 135, 175, 215, 255];
  const place = number - 16;
  return [
    `rgb(${[Math.floor(place / 36), Math.floor(place / 6) % 6, place % 6].map((at) => levels[at]).join(" ")})`,
    2,
  ];
}

/** An element with the text, and nothing else of what came from a run. @param {string} text @param {Look} look */
export function spanOf(text, look) {
  if (Object.keys(look).length === 0) return document.createTextNode(text);
  const span = document.createElement("span");
  span.textContent = text;
  const [color, background] = look.inverse
    ? [look.background ?? "ansi-page", look.color ?? "ansi-text"]
    : [look.color, look.background];
  paint(span, "color", "fg", color);
  paint(span, "backgroundColor", "bg", background);
  for (const name of ["bold", "faint", "italic", "underline", "strike"])
    if (look[name]) span.classList.add(`ansi-${name}`);
  return span;
}

/** @param {HTMLElement} span @param {string} property @param {string} prefix @param {string} [color] */
function paint(span, property, prefix, color) {
  if (!color) return;
  if (color.startsWith("ansi-")) span.classList.add(`${prefix}-${color}`);
  else span.style[property] = color;
}
