// The figures of now and those since the start: tiles and a table.

import { duration, number, percent } from "./format.js";
import { availability, text } from "./pictures.js";

const STAGES = {
  handler: "the request is read and checked",
  admission: "a kernel is asked for",
  claim: "there is a kernel",
  record: "the run is on record",
  queue: "it is its turn in its session",
  frame_out: "its code is sent",
  kernel_busy: "the kernel’s first message is here",
  idle: "its code has ended",
  frame_in: "its files are here",
  fold: "part of the ones before: messages become events",
  commit: "its end is stored",
  answer: "the answer is written",
};
const OF_WINDOW = { hour: "in the last hour", day: "in the last day" };

/** @param {HTMLElement} list */
export function showNow(list, status) {
  const { now, history, since_start: since } = status;
  const when = OF_WINDOW[history.window];
  const ready = availability(status);
  const { kernels, queue, database, sessions } = now;
  const time = (value) => (value === null ? "–" : duration(value));
  list.replaceChildren(
    tile("Availability", ready === null ? "–" : percent(ready), `${when}, as far as known`, ready !== null && ready < 1),
    tile("Time of a run, p50", time(history.run_time.p50), `p95 ${time(history.run_time.p95)}, p99 ${time(history.run_time.p99)} ${when}`),
    tile("The gateway’s share, p50", time(history.own_time.p50), `p95 ${time(history.own_time.p95)}, p99 ${time(history.own_time.p99)} ${when}`),
    tile("Runs", `${number(now.runs.running)} running`, `${number(now.runs.queued)} queued; ${number(history.run_time.count)} ended ${when}`),
    tile("Kernels", `${number(kernels.warm)} ready`, `${kernels.starting} starting, ${kernels.in_use} in use, at most ${kernels.max}`),
    tile("Waiting for a kernel", number(queue.waiting), queue.waiting ? `the first for ${duration(queue.oldest_wait)}` : "nobody waits"),
    tile("Sessions", number(total(sessions)), named(sessions) || "none"),
    tile("Database", database.reachable ? "answers" : "does not answer", lanes(database), !database.reachable),
    tile("HTTP errors since the start", number(since.requests.server_errors), `and ${number(since.requests.too_many_requests)} × 429, of ${number(since.requests.answered)} answers`, since.requests.server_errors > 0),
    tile("Kernels that died since the start", number(total(since.deaths)), named(since.deaths) || "none"),
  );
}

function tile(name, value, more, isBad = false) {
  const made = document.createElement("div");
  const shown = text("dd", value);
  shown.className = isBad ? "value bad" : "value";
  const beside = text("dd", more);
  beside.className = "more";
  made.append(text("dt", name), shown, beside);
  return made;
}

function lanes(database) {
  const took = database.round_trip === null ? "" : `in ${duration(database.round_trip)}; `;
  return took + database.lanes.map((lane) => `${lane.lane} ${lane.in_use}/${lane.max}`).join(", ") + " connections at work";
}

function total(numbers) {
  return Object.values(numbers).reduce((sum, value) => sum + value, 0);
}

function named(numbers) {
  return Object.entries(numbers).filter(([, value]) => value).map(([name, value]) => `${number(value)} ${name}`).join(", ");
}

/** @param {HTMLTableElement} table */
export function showStages(table, status) {
  const stages = status.since_start.stages;
  const head = document.createElement("tr");
  head.append(...["Stage", "p50", "p95", "runs", "until"].map((name) => text("th", name, { scope: "col" })));
  head.lastElementChild.className = "text";
  const rows = stages.map((stage) => {
    const row = document.createElement("tr");
    const cells = [duration(stage.p50), duration(stage.p95), number(stage.count), STAGES[stage.stage] ?? ""];
    row.append(text("th", stage.stage, { scope: "row" }), ...cells.map((cell) => text("td", cell)));
    row.lastElementChild.className = "text";
    return row;
  });
  if (!rows.length) rows.push(document.createElement("tr"));
  if (!stages.length) rows[0].append(text("td", "No run has ended yet.", { colspan: "5" }));
  const [above, below] = [document.createElement("thead"), document.createElement("tbody")];
  above.append(head);
  below.append(...rows);
  table.replaceChildren(above, below);
}
