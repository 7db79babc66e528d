// One run at a time: it is begun or reopened, followed, answered, interrupted, and its state is told.

import { Refusal } from "../wire/api.js";
import { begin, cancel, follow, record } from "../wire/runs.js";
import { Output } from "../output/output.js";
import { closeInputs, inputBox } from "../output/input_box.js";
import { sizeText } from "./files.js";
import { runAddress } from "./recent.js";

/** @param {string} id */
const byId = (id) => /** @type {any} */ (document.getElementById(id));
const ENDS = {
  ok: "Finished",
  error: "The code raised an exception",
  timeout: "Ran past its time limit",
  oom: "Out of memory",
  kernel_died: "The kernel died",
  cancelled: "Cancelled",
  lost: "Lost",
};

export class RunPanel {
  runId = "";
  isBusy = false;
  #wasInterrupted = false;
  /** Of the run that is shown: aborted when another one takes its place. */
  #following = new AbortController();
  #asked = "";
  #beganMs = 0;
  #ticking = 0;

  /**
   * @param {import("../wire/run_socket.js").RunSocket} socket
   * @param {{nonce: string, failed: (error: any) => void, ended: (answer: any) => void,
   *   started: (event: any) => void}} options
   */
  constructor(socket, { nonce, failed, ended, started }) {
    this.socket = socket;
    this.failed = failed;
    this.ended = ended;
    this.started = started;
    this.output = new Output(byId("output"), nonce, (event) => this.#input(event));
    byId("interrupt").addEventListener("click", () => this.interrupt());
  }

  /** Run code and follow it. @param {Record<string, any>} fields Those of `POST /runcode`. */
  async run(fields) {
    if (this.isBusy) return;
    this.#reset("Waiting for a sandbox");
    this.output.isLive = true;
    // Where the output is below the code, it would begin out of sight.
    if (byId("state").getBoundingClientRect().bottom > innerHeight) byId("state").scrollIntoView({ block: "center" });
    announce("Running");
    const { signal } = this.#turn();
    await this.#guard((follower) => begin(this.socket, fields, follower, signal), signal);
  }

  /**
   * Show an earlier run, or one that goes on. Returns its record; null where there is none, and all stays as it is.
   * @param {string} runId
   */
  async open(runId) {
    const shown = this.#following.signal;
    this.#asked = runId;
    let found = null;
    try {
      found = await record(runId);
    } catch (error) {
      this.failed(error);
      return null;
    }
    if (this.#asked !== runId || this.#following.signal !== shown) return null;
    const { signal } = this.#turn();
    this.#reset(found.finished_at ? "Loading" : "Running");
    this.output.isLive = false;
    this.#name(found.run_id);
    this.#guard((follower) => follow(found.run_id, follower, signal), signal);
    return found;
  }

  /** Leave the run that is shown, which goes on, for another one. */
  #turn() {
    this.#following.abort();
    this.#following = new AbortController();
    return this.#following;
  }

  /** Ctrl-C; what ignores it is cancelled by the next one. */
  async interrupt() {
    try {
      if (this.#wasInterrupted) await cancel(this.runId);
      else await this.socket.tell({ op: "interrupt", run_id: this.runId }, (refusal) => this.failed(refusal));
      this.#wasInterrupted = true;
      byId("interrupt").textContent = "Cancel run";
    } catch (error) {
      this.failed(error);
    }
  }

  /** @param {any} event */
  #input(event) {
    const box = inputBox(event, async (value) => {
      const message = { op: "input", run_id: event.run_id, value };
      await this.socket.tell(/** @type {any} */ (message), (refusal) => this.failed(refusal));
      state("running", "Running");
    });
    state("waiting", "Waiting for input");
    announce(`The code asks for input: ${event.prompt}`);
    requestAnimationFrame(() => box.querySelector("input")?.focus());
    return box;
  }

  /** @param {(follower: import("../wire/runs.js").Follower) => Promise<void>} action @param {AbortSignal} signal */
  async #guard(action, signal) {
    try {
      await action({
        event: (event) => this.#handle(event),
        waiting: (isAway) => byId("facts").classList.toggle("away", isAway),
      });
    } catch (error) {
      if (signal.aborted) return;
      this.#settle();
      this.runId = ""; // it may be opened again
      state("failed", error instanceof Refusal ? "Refused" : "Connection lost");
      this.failed(error);
    }
  }

  /** @param {any} event */
  #handle(event) {
    if (this.runId !== event.run_id) this.#name(event.run_id);
    if (event.type === "started") {
      state("running", "Running");
      this.started(event);
    } else if (event.type === "input_request") {
      closeInputs(byId("output")); // a kernel asks one question at a time: an earlier one was answered
    }
    this.output.handle(event);
    if (event.type !== "end") return;
    closeInputs(byId("output"));
    this.#settle();
    state(event.status, ENDS[event.status] ?? event.status);
    facts(event);
    announce(`${ENDS[event.status] ?? event.status}${event.exception ? `: ${event.exception.name}` : ""}`);
    this.ended(event);
  }

  /** @param {string} runId */
  #name(runId) {
    this.runId = runId;
    const link = byId("permalink");
    link.href = runAddress(runId);
    link.hidden = false;
    byId("interrupt").disabled = !this.isBusy;
    if (location.hash !== runAddress(runId)) history.replaceState(null, "", runAddress(runId));
  }

  /** @param {string} text */
  #reset(text) {
    this.output.clear();
    this.runId = "";
    this.isBusy = true;
    this.#wasInterrupted = false;
    this.#beganMs = performance.now();
    clearInterval(this.#ticking);
    this.#ticking = setInterval(() => this.#tick(), 100);
    byId("interrupt").textContent = "Interrupt";
    byId("interrupt").disabled = true;
    byId("run").disabled = true;
    byId("permalink").hidden = true;
    byId("facts").textContent = "";
    state("running", text);
  }

  #settle() {
    clearInterval(this.#ticking);
    this.isBusy = false;
    byId("facts").classList.remove("away");
    byId("interrupt").disabled = true;
    byId("interrupt").textContent = "Interrupt";
    byId("run").disabled = false;
  }

  #tick() {
    const away = byId("facts").classList.contains("away") ? ", connecting again" : "";
    byId("facts").textContent = `${((performance.now() - this.#beganMs) / 1000).toFixed(1)} s${away}`;
  }
}

/** @param {string} kind @param {string} text */
function state(kind, text) {
  const element = byId("state");
  element.className = `status ${kind}`;
  element.textContent = text;
}

/** @param {any} answer */
function facts({ usage, truncated }) {
  const { wall_ms: wallMs, cpu_ms: cpuMs, memory_peak_bytes: memory } = usage ?? {};
  const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
  const told = usage ? [seconds(wallMs), `${seconds(cpuMs)} CPU`, ...(memory ? [sizeText(memory)] : [])] : [];
  byId("facts").textContent = [...told, ...(truncated ? ["output was cut"] : [])].join(" · ");
}

/** Have a screen reader say it. @param {string} text */
export function announce(text) {
  byId("announcer").textContent = text;
}
