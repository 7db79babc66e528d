// The page's WebSocket for runs, opened when it is needed: code and answers to input() go out, events come in.

import { ConnectionLost, Refusal, ask, openSocket } from "./api.js";

const NAME = "v1.runcode.cellblock";
const TOLD_MS = 60_000;

/** One connection at a time, whose messages are told apart by the ids of what was asked. */
export class RunSocket {
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {Promise<WebSocket> | null} */ #opening = null;
  /** @type {Map<string, {message: (value: any) => void, lost: () => void}>} */ #listeners = new Map();
  #count = 0;

  /**
   * The events of a new run, up to its end. Throws Refusal; ConnectionLost, after which the run goes on.
   * @param {Record<string, any>} fields Those of `POST /runcode`, and `idempotency_key`.
   */
  async *run(fields) {
    const socket = await this.#open();
    const id = `run-${(this.#count += 1)}`;
    const queue = [];
    let wake = () => {};
    const push = (item) => {
      queue.push(item);
      wake();
    };
    this.#listeners.set(id, {
      message: push,
      lost: () => push(new ConnectionLost("The connection to the gateway broke.")),
    });
    try {
      socket.send(JSON.stringify({ op: "run", id, ...fields }));
      for (;;) {
        while (queue.length === 0) await new Promise((resolve) => (wake = resolve));
        const item = queue.shift();
        if (item instanceof Error) throw item;
        if (item.seq === undefined) throw new Refusal(item.error, { code: item.code });
        yield item;
        if (item.type === "end") return;
      }
    } finally {
      this.#listeners.delete(id);
    }
  }

  /**
   * What is said to a run and not answered, unless it is refused: then `refused` is called.
   * @param {{op: "input" | "interrupt", run_id: string, value?: string}} message
   * @param {(refusal: Refusal) => void} refused
   */
  async tell(message, refused) {
    const socket = await this.#open();
    const id = `tell-${(this.#count += 1)}`;
    setTimeout(() => this.#listeners.delete(id), TOLD_MS);
    this.#listeners.set(id, {
      message: (answer) => refused(new Refusal(answer.error, { code: answer.code })),
      lost: () => {},
    });
    socket.send(JSON.stringify({ ...message, id }));
  }

  /** Leave the connection, as after a change of the token. */
  close() {
    this.#socket?.close();
  }

  #open() {
    this.#opening ??= this.#connect();
    return this.#opening;
  }

  /** @returns {Promise<WebSocket>} */
  #connect() {
    return new Promise((resolve, reject) => {
      const socket = openSocket("runcode/ws", NAME);
      socket.addEventListener("open", () => {
        this.#socket = socket;
        resolve(socket);
      });
      socket.addEventListener("message", ({ data }) => {
        const value = JSON.parse(data);
        this.#listeners.get(value.id)?.message(value);
      });
      socket.addEventListener("close", () => {
        const wasOpen = this.#socket === socket;
        this.#socket = null;
        this.#opening = null;
        if (!wasOpen) whyRefused().then(reject, reject);
        const listeners = [...this.#listeners.values()];
        this.#listeners.clear();
        for (const listener of listeners) listener.lost();
      });
    });
  }
}

/** A browser does not say why a WebSocket was refused: an ordinary request tells. */
async function whyRefused() {
  await ask("runs?limit=1");
  return new ConnectionLost("The gateway refused the connection.");
}
