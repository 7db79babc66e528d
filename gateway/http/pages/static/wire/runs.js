// A run from its code to its end, whatever becomes of the connection: no event is missed, none comes twice.

import { ConnectionLost, ask, askJson, lines } from "./api.js";

const PAUSES_MS = [250, 500, 1000, 2000, 4000];
const PATIENCE_MS = 120_000;

/**
 * Begin a run and follow it to its end. Throws Refusal; ConnectionLost when the gateway stays away; AbortError.
 * @param {import("./run_socket.js").RunSocket} socket
 * @param {Record<string, any>} fields Those of `POST /runcode`.
 * @param {Follower} follower
 * @param {AbortSignal} signal Ends the following, and not the run.
 */
export async function begin(socket, fields, follower, signal) {
  const asked = { ...fields, idempotency_key: crypto.randomUUID?.() ?? randomName() };
  const progress = new Progress(follower, signal);
  await progress.insist(async () => {
    // Sent again under its key, the same run is followed: it is not run twice.
    if (progress.runId) await replay(progress);
    else for await (const event of socket.run(asked)) progress.handle(event);
  });
}

/**
 * Follow a run that is there, from its first event to its end. Throws Refusal; ConnectionLost; AbortError.
 * @param {string} runId
 * @param {Follower} follower
 * @param {AbortSignal} signal
 */
export async function follow(runId, follower, signal) {
  const progress = new Progress(follower, signal);
  progress.runId = runId;
  await progress.insist(() => replay(progress));
}

/** What there is of a run: its code, language, session and status. @param {string} runId */
export function record(runId) {
  return askJson(`runs/${encodeURIComponent(runId)}`);
}

/** @param {string} runId */
export function cancel(runId) {
  return askJson(`runs/${encodeURIComponent(runId)}/cancel`, { method: "POST" });
}

/** @typedef {{event: (event: any) => void, waiting: (isAway: boolean) => void}} Follower */

/** How far the events of one run have come. */
class Progress {
  runId = "";
  seq = 0;
  hasEnded = false;
  /** When the connection was lost; null while there is one. @type {number | null} */ #lostMs = null;

  /** @param {Follower} follower @param {AbortSignal} signal */
  constructor(follower, signal) {
    this.follower = follower;
    this.signal = signal;
  }

  /** @param {any} event */
  handle(event) {
    this.signal.throwIfAborted();
    this.connected();
    if (event.seq <= this.seq) return;
    this.seq = event.seq;
    this.runId = event.run_id;
    this.hasEnded = event.type === "end";
    this.follower.event(event);
  }

  /** The gateway has answered: a run may be silent for long. */
  connected() {
    this.#lostMs = null;
    this.follower.waiting(false);
  }

  /** Try until the run has ended; give up after two minutes without a connection. @param {() => Promise<void>} attempt */
  async insist(attempt) {
    for (let number = 0; !this.hasEnded; number += 1) {
      const before = this.seq;
      try {
        await attempt();
        if (this.hasEnded) return;
      } catch (error) {
        const isAway = error instanceof ConnectionLost || error.status === 503;
        this.#lostMs ??= performance.now();
        if (!isAway || performance.now() - this.#lostMs > PATIENCE_MS) throw error;
      }
      if (this.seq > before) number = 0;
      this.follower.waiting(true);
      const pauseMs = PAUSES_MS[Math.min(number, PAUSES_MS.length - 1)];
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      this.signal.throwIfAborted();
    }
  }
}

/** @param {Progress} progress */
async function replay(progress) {
  const path = `runs/${encodeURIComponent(progress.runId)}/events?after=${progress.seq}`;
  const headers = { Accept: "application/x-ndjson" };
  const answer = await ask(path, { headers, signal: progress.signal });
  progress.connected();
  for await (const event of lines(answer)) progress.handle(event);
}

/** Pages that came over plain HTTP from another machine have no `randomUUID`. */
export function randomName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
