// Completion by the kernel of a session, over Jupyter's WebSocket: one connection, while there are questions.
//
// https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html

import { openSocket } from "./api.js";
import { randomName } from "./runs.js";

const NAME = "v1.kernel.websocket.jupyter.org";
const PATIENCE_MS = 10_000;
// A client of the kernel is sent what its runs print, too: the connection is left when nothing is asked.
const IDLE_MS = 20_000;
const MAX_NAMES = 200;

/** Asks the kernel of one session at a time. */
export class KernelCompletion {
  #kernelId = "";
  #idle = 0;
  /** @type {Promise<WebSocket> | null} */ #opening = null;
  /** @type {Map<string, (content: any) => void>} */ #waiting = new Map();

  /** @param {string} kernelId The kernel to ask, or "" for none. */
  use(kernelId) {
    if (kernelId === this.#kernelId) return;
    this.#kernelId = kernelId;
    this.#leave();
  }

  #leave() {
    this.#opening?.then(
      (socket) => socket.close(),
      () => {},
    );
    this.#opening = null;
  }

  /**
   * What the kernel offers at a place of the code, counted as JavaScript counts; null where it does not say.
   * @type {import("../editor.js").Completer}
   */
  complete = async (code, place, signal) => {
    if (!this.#kernelId) return null;
    try {
      const content = { code, cursor_pos: [...code.slice(0, place)].length };
      const reply = await this.#ask("complete_request", content, signal);
      if (reply?.status !== "ok" || reply.matches.length === 0) return null;
      const at = (count) => [...code].slice(0, count).join("").length;
      const from = at(reply.cursor_start);
      const before = code.slice(from, place);
      // A whole path (`os.pa`) is offered for its last part: what is before it stays as it is.
      const dot = before.lastIndexOf(".") + 1;
      const head = before.slice(0, dot);
      const isPath = dot > 0 && reply.matches.every((name) => name.startsWith(head));
      const names = reply.matches.slice(0, MAX_NAMES).map((name) => (isPath ? name.slice(dot) : name));
      return { from: isPath ? from + dot : from, to: at(reply.cursor_end), names };
    } catch {
      return null; // without it one types on
    }
  };

  /** @param {string} type @param {any} content @param {AbortSignal} signal @returns {Promise<any>} */
  async #ask(type, content, signal) {
    this.#opening ??= this.#connect();
    const socket = await this.#opening;
    const id = randomName();
    return new Promise((resolve) => {
      const done = (reply) => {
        clearTimeout(timer);
        this.#waiting.delete(id);
        clearTimeout(this.#idle);
        this.#idle = setTimeout(() => this.#leave(), IDLE_MS);
        resolve(reply);
      };
      const timer = setTimeout(() => done(null), PATIENCE_MS);
      signal.addEventListener("abort", () => done(null));
      this.#waiting.set(id, done);
      const header = { msg_id: id, msg_type: type, session: "playground", username: "", version: "5.3" };
      socket.send(encode("shell", [header, {}, {}, content]));
    });
  }

  /** @returns {Promise<WebSocket>} */
  #connect() {
    const socket = openSocket(`api/kernels/${encodeURIComponent(this.#kernelId)}/channels`, NAME);
    socket.binaryType = "arraybuffer";
    socket.addEventListener("message", ({ data }) => {
      const [header, parent, , content] = decode(data);
      if (header.msg_type.endsWith("_reply")) this.#waiting.get(parent.msg_id)?.(content);
    });
    const opening = new Promise((resolve, reject) => {
      socket.addEventListener("open", () => resolve(socket));
      socket.addEventListener("close", () => {
        reject(new Error("closed"));
        if (this.#opening === opening) this.#opening = null;
        for (const done of this.#waiting.values()) done(null);
      });
    });
    return opening;
  }
}

/**
 * The number of offsets, the offsets, the channel, and the parts of the message.
 * @param {string} channel @param {any[]} parts
 */
function encode(channel, parts) {
  const encoder = new TextEncoder();
  const pieces = [encoder.encode(channel), ...parts.map((part) => encoder.encode(JSON.stringify(part)))];
  const head = 8 * (pieces.length + 2);
  const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, head));
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(pieces.length + 1), true);
  let offset = head;
  pieces.forEach((piece, place) => {
    view.setBigUint64(8 * (place + 1), BigInt(offset), true);
    bytes.set(piece, offset);
    offset += piece.length;
  });
  view.setBigUint64(8 * (pieces.length + 1), BigInt(offset), true);
  return bytes;
}

/** Header, parent header, metadata and content. @param {ArrayBuffer} data @returns {any[]} */
function decode(data) {
  const view = new DataView(data);
  const offset = (place) => Number(view.getBigUint64(8 * (place + 1), true));
  const decoder = new TextDecoder();
  return [1, 2, 3, 4].map((place) => JSON.parse(decoder.decode(data.slice(offset(place), offset(place + 1)))));
}
