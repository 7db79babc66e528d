// What is drawn of the history of a gateway: which values, how they are joined, and the same in words and as a table.

import { draw, element, sample } from "./chart.js";
import { clock, duration, moment, number } from "./format.js";

const SLOTS_OF_A_BAR = 6;
const DAYS_FROM_MS = 12 * 3_600_000; // over longer times the day is told, too

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const sum = (values) => values.reduce((total, value) => total + value, 0);
const largest = (values) => Math.max(...values);

/** In the order of the page. `names` has the series: their names in the figures, and what the page calls them. */
const PICTURES = [
  {
    title: "Availability",
    about: "How much of the time a run would have been taken",
    kind: "bars", group: "gateway", names: { ready: "ready" }, unit: "% of the time", join: mean, top: 100,
    value: (share) => share * 100, format: (value) => `${Number(value.toPrecision(4))} %`,
  },
  {
    title: "Time of a run",
    about: "From its beginning until its end is stored: percentiles of six slots each",
    kind: "lines", group: "run_time", names: { p50: "p50", p95: "p95", p99: "p99" }, unit: "duration, logarithmic",
    join: largest, isLog: true, format: duration,
  },
  {
    title: "Of that, the gateway’s own share",
    about: "Without the kernel, and without waiting for it",
    kind: "lines", group: "own_time", names: { p50: "p50", p95: "p95", p99: "p99" }, unit: "duration, logarithmic",
    join: largest, isLog: true, format: duration,
  },
  {
    title: "Runs that ended",
    about: "By status",
    kind: "bars", group: "ended", unit: "runs", join: sum, format: number, isCount: true,
    names: {
      ok: "ok", error: "error", timeout: "timeout", cancelled: "cancelled",
      kernel_died: "kernel_died", oom: "oom", lost: "lost",
    },
  },
  {
    title: "Runs in progress",
    about: "Queued are those that wait in their session",
    kind: "bars", group: "runs", names: { running: "running", queued: "queued" }, unit: "runs", join: mean,
    format: number,
  },
  {
    title: "Kernels",
    about: "Ready ones are warm and unused",
    kind: "bars", group: "kernels", names: { in_use: "in use", warm: "ready", starting: "starting" }, unit: "kernels",
    join: mean, format: number, limit: (status) => ({ name: "at most", value: status.now.kernels.max }),
  },
  {
    title: "Waiting for a kernel",
    about: "Runs and sessions in the queue",
    kind: "bars", group: "queue", names: { waiting: "waiting" }, unit: "claims", join: mean, format: number,
  },
  {
    title: "Age of the queue’s head",
    about: "How long the first of them has waited; after half a minute it is refused",
    kind: "lines", group: "queue", names: { oldest_wait: "oldest wait" }, unit: "duration", join: largest,
    format: duration,
  },
  {
    title: "Sessions",
    about: "Of all tenants, by the state of their kernel",
    kind: "bars", group: "sessions", names: { idle: "idle", busy: "busy", starting: "starting", dead: "dead" },
    unit: "sessions", join: mean, format: number,
  },
  {
    title: "Errors of HTTP",
    about: "Answers with 429 and 5xx, but for 504 (a run past its time limit) and /readyz",
    kind: "bars", group: "http", names: { server_errors: "5xx", too_many_requests: "429" }, unit: "answers", join: sum,
    format: number, isCount: true,
  },
  {
    title: "Deaths of kernels",
    about: "By cause",
    kind: "bars", group: "deaths", unit: "kernels", join: sum, format: number, isCount: true,
    names: {
      exited: "exited", oom: "oom", signal: "signal", gone: "gone", interrupt_ignored: "interrupt_ignored",
      restart: "restart", start: "start",
    },
  },
  {
    title: "Database",
    about: "Round trip of a check; crossed out where it did not answer",
    kind: "lines", group: "database", names: { round_trip: "round trip" }, unit: "duration, logarithmic", join: largest,
    isLog: true, format: duration, down: (series) => series.database.reachable.map((share) => share !== null && share < 1),
  },
];

/** One figure of the page. Its elements are made once, so that a refresh takes neither the focus nor an open table. */
class Picture {
  constructor(about, index) {
    this.about = about;
    const id = `picture-${index}`;
    this.figure = document.createElement("figure");
    this.svg = element("svg", { role: "img" });
    this.legend = document.createElement("ul");
    this.details = document.createElement("details");
    this.scroll = document.createElement("div");
    const caption = document.createElement("figcaption");
    caption.append(text("h3", about.title, { id }), text("p", about.about));
    this.scroll.className = "scroll";
    this.scroll.tabIndex = 0;
    this.scroll.setAttribute("role", "region");
    this.scroll.setAttribute("aria-label", `${about.title}, as a table`);
    this.details.append(text("summary", "As a table"), this.scroll);
    this.details.addEventListener("toggle", () => this.fillTable());
    this.figure.setAttribute("aria-labelledby", id);
    this.figure.append(caption, this.svg, this.legend, this.details);
  }

  show(status) {
    const { about } = this;
    const { history } = status;
    const series = history.series[about.group] ?? {};
    const seen = history.series.gateway?.ready ?? [];
    const factor = about.kind === "bars" ? SLOTS_OF_A_BAR : 1;
    const step = history.step * 1000;
    const ends = Date.parse(status.now.at);
    const first = history.begins_at === null ? ends : Date.parse(history.begins_at);
    const lead = Math.round((first % (step * factor)) / step); // bars begin where the clock has a whole number of them
    const join = (values, how) => joined([...Array(lead).fill(null), ...values], factor, how);
    const values = about.value ?? ((value) => value);
    this.times = { begins: ends - history.span * 1000, ends, first: first - lead * step, step: step * factor };
    this.chart = {
      ...about,
      series: Object.entries(about.names).map(([key, name]) => ({
        name,
        values: join(series[key] ?? [], about.join).map((value) => (value === null ? null : values(value))),
        newest: (series[key] ?? []).findLast((value) => value !== null) ?? null,
      })),
      known: join(seen, largest).map((value) => value !== null),
      limit: about.limit?.(status),
      down: about.down && seen.length ? about.down(history.series).map(Number) : undefined,
    };
    this.redraw();
    this.describe();
    this.fillTable();
  }

  redraw() {
    if (this.chart) draw(this.svg, this.chart, this.times);
  }

  describe() {
    const { chart, about } = this;
    const value = about.value ?? ((one) => one);
    const said = chart.series.map((one) => {
      const told = about.isCount ? total(one) : one.newest === null ? null : value(one.newest);
      return `${one.name} ${told === null ? "–" : about.format(told)}`;
    });
    this.legend.replaceChildren(
      ...said.map((one, index) => {
        const item = document.createElement("li");
        item.append(sample(chart.kind, index), one);
        return item;
      }),
    );
    const kind = about.isCount ? "in all" : "newest";
    this.svg.setAttribute("aria-label", `${about.title}, ${kind}: ${said.join(", ")}. A table follows.`);
  }

  fillTable() {
    if (!this.details.open || !this.chart) return;
    const { chart, about, times } = this;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    head.append(...["Until", ...chart.series.map((series) => series.name)].map((name) => text("th", name, { scope: "col" })));
    const body = table.createTBody();
    const shown = times.ends - times.begins > DAYS_FROM_MS ? moment : (ms) => clock(ms, true);
    for (let slot = chart.known.length - 1; slot >= 0; slot -= 1) {
      const row = body.insertRow();
      const until = Math.min(times.first + (slot + 1) * times.step, times.ends);
      row.append(text("th", shown(until), { scope: "row" }));
      for (const series of chart.series) {
        const value = series.values[slot];
        row.append(text("td", value !== null ? about.format(value) : chart.known[slot] ? "–" : "not known"));
      }
    }
    this.scroll.replaceChildren(table);
  }
}

/** Several slots in one, and null where none of them is known. */
function joined(values, factor, how) {
  const result = [];
  for (let slot = 0; slot < values.length; slot += factor) {
    const known = values.slice(slot, slot + factor).filter((value) => value !== null);
    result.push(known.length ? how(known) : null);
  }
  return result;
}

function total(series) {
  return sum(series.values.filter((value) => value !== null));
}

export function text(name, content, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = content;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** All pictures, in `parent`. */
export class Pictures {
  constructor(parent) {
    this.all = PICTURES.map((about, index) => new Picture(about, index));
    parent.replaceChildren(...this.all.map((picture) => picture.figure));
    new ResizeObserver(() => this.all.forEach((picture) => picture.redraw())).observe(parent);
  }

  show(status) {
    for (const picture of this.all) picture.show(status);
  }
}

/** How much of the known time a run would have been taken; null where nothing is known. */
export function availability(status) {
  const known = (status.history.series.gateway?.ready ?? []).filter((value) => value !== null);
  return known.length ? mean(known) : null;
}

