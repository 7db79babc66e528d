// Draws one picture of values over time as SVG: lines, or stacked bars. What is in it is pictures.js's business.

const SPACE = "http://www.w3.org/2000/svg";
const MARGIN = { top: 24, right: 10, bottom: 32, left: 52 };
const MINUTE_MS = 60_000;
const STEPS_MS = [10, 15, 30, 60, 120, 180, 240, 360].map((minutes) => minutes * MINUTE_MS);
const SMALLEST_LOG_SPAN = 10;

/**
 * @typedef {object} Series
 * @property {string} name
 * @property {(number|null)[]} values one for each slot
 *
 * @typedef {object} Chart
 * @property {"lines"|"bars"} kind
 * @property {Series[]} series bars are stacked, the first at the bottom
 * @property {string} unit the title of the vertical axis
 * @property {(value: number) => string} format
 * @property {boolean} [isLog]
 * @property {number} [top] the least upper end of the vertical axis
 * @property {{name: string, value: number}} [limit] a horizontal line
 * @property {(number|null)[]} [down] slots above 0 are crossed out
 * @property {boolean[]} known whether anything is known of each slot
 *
 * @typedef {object} Times in milliseconds
 * @property {number} begins the left end of the axis
 * @property {number} ends its right end
 * @property {number} first the beginning of the first slot
 * @property {number} step
 */

/** @param {string} name @param {Record<string, string|number>} attributes */
export function element(name, attributes = {}, text = "") {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text) made.textContent = text;
  return made;
}

/** The look of a series in the legend. */
export function sample(kind, index) {
  const svg = element("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" });
  svg.append(
    kind === "lines"
      ? element("path", { class: `line line-${index}`, d: "M0 6H26" })
      : element("rect", { x: 1, y: 1, width: 24, height: 10, ...bar(index) }),
  );
  return svg;
}

/** @param {SVGSVGElement} svg @param {Chart} chart @param {Times} times */
export function draw(svg, chart, times) {
  const width = Math.max(svg.clientWidth, 200);
  const height = Math.max(svg.clientHeight, 120);
  const box = {
    left: MARGIN.left,
    right: width - MARGIN.right,
    top: MARGIN.top,
    bottom: height - MARGIN.bottom,
  };
  const x = (ms) => box.left + ((box.right - box.left) * (ms - times.begins)) / (times.ends - times.begins);
  const scale = chart.isLog ? logScale(chart, box) : linearScale(chart, box);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(
    ...unknown(chart, times, x, box),
    ...down(chart, times, x, box),
    ...horizontal(chart, scale, box),
    ...vertical(times, x, box),
    ...(chart.kind === "lines" ? lines(chart, times, x, scale.y) : bars(chart, times, x, scale.y)),
    ...limit(chart, scale.y, box),
  );
}

// --- scales ----------------------------------------------------------------------------------------------------------

function linearScale(chart, box) {
  const sums = chart.known.map((_, slot) =>
    chart.kind === "bars"
      ? chart.series.reduce((sum, series) => sum + (series.values[slot] ?? 0), 0)
      : Math.max(...chart.series.map((series) => series.values[slot] ?? 0)),
  );
  const top = Math.max(chart.top ?? 0, chart.limit?.value ?? 0, ...sums) || 1;
  const step = niceStep(top / 4, chart.kind === "bars");
  const end = Math.ceil(top / step - 1e-9) * step;
  const ticks = [];
  for (let count = 0; count * step <= end * (1 + 1e-9); count += 1) ticks.push(count * step);
  return { ticks, y: (value) => box.bottom - ((box.bottom - box.top) * value) / end };
}

function niceStep(least, isWhole) {
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= least * (1 - 1e-9)) * power;
  return isWhole ? Math.max(1, Math.ceil(step)) : step;
}

function logScale(chart, box) {
  const values = chart.series.flatMap((series) => series.values.filter((value) => value > 0));
  let low = 10 ** Math.floor(Math.log10(values.length ? Math.min(...values) : 0.001));
  let high = 10 ** Math.ceil(Math.log10(values.length ? Math.max(...values) : 1));
  if (high / low < SMALLEST_LOG_SPAN) high = low * SMALLEST_LOG_SPAN;
  const ticks = [];
  for (let tick = low; tick <= high * 1.001; tick *= 10) ticks.push(Number(tick.toPrecision(3)));
  const part = (value) => Math.log10(Math.max(value, low) / low) / Math.log10(high / low);
  return { ticks, y: (value) => box.bottom - (box.bottom - box.top) * part(value) };
}

// --- the frame -------------------------------------------------------------------------------------------------------

function horizontal(chart, scale, box) {
  return [
    ...scale.ticks.flatMap((tick) => [
      element("path", { class: "grid", d: `M${box.left} ${scale.y(tick)}H${box.right}` }),
      element("text", { x: box.left - 6, y: scale.y(tick) + 4, "text-anchor": "end" }, chart.format(tick)),
    ]),
    element("text", { x: 2, y: 10 }, chart.unit),
  ];
}

function vertical(times, x, box) {
  const most = Math.max(2, Math.floor((box.right - box.left) / 60));
  const step = STEPS_MS.find((ms) => (times.ends - times.begins) / ms <= most) ?? STEPS_MS.at(-1);
  const offset = new Date(times.ends).getTimezoneOffset() * MINUTE_MS;
  const first = Math.ceil((times.begins - offset) / step) * step + offset;
  const marks = [element("path", { class: "axis", d: `M${box.left} ${box.bottom}H${box.right}` })];
  for (let ms = first; ms <= times.ends; ms += step) {
    const time = new Date(ms).toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
    marks.push(
      element("path", { class: "axis", d: `M${x(ms)} ${box.bottom}v4` }),
      element("text", { x: x(ms), y: box.bottom + 15, "text-anchor": "middle" }, time),
    );
  }
  marks.push(element("text", { x: box.right, y: box.bottom + 29, "text-anchor": "end" }, "time of day"));
  return marks;
}

function unknown(chart, times, x, box) {
  const known = chart.known.map((isKnown, slot) => [times.first + slot * times.step, isKnown]);
  const holes = runsOf(known.filter(([, isKnown]) => !isKnown).map(([ms]) => ms), times.step);
  const last = times.first + chart.known.length * times.step;
  if (times.first > times.begins) holes.push([times.begins, times.first]);
  if (times.ends - last > 2 * times.step) holes.push([last, times.ends]);
  return holes.map(([from, to]) => band("unknown", x(Math.max(from, times.begins)), x(Math.min(to, times.ends)), box));
}

function down(chart, times, x, box) {
  const slots = (chart.down ?? []).flatMap((value, slot) => (value > 0 ? [times.first + slot * times.step] : []));
  return runsOf(slots, times.step).map(([from, to]) => band("down", x(Math.max(from, times.begins)), x(to), box));
}

function band(name, left, right, box) {
  const size = { x: left, y: box.top, width: Math.max(1, right - left), height: box.bottom - box.top };
  return element("rect", { class: name, fill: `url(#fill-${name})`, ...size });
}

/** Joins slots that follow each other: their common beginnings and ends. */
function runsOf(starts, step) {
  const joined = [];
  for (const start of starts) {
    if (joined.length && joined.at(-1)[1] === start) joined.at(-1)[1] = start + step;
    else joined.push([start, start + step]);
  }
  return joined;
}

function limit(chart, y, box) {
  if (!chart.limit) return [];
  const height = y(chart.limit.value);
  return [
    element("path", { class: "limit", d: `M${box.left} ${height}H${box.right}` }),
    element("text", { x: box.right, y: height - 4, "text-anchor": "end" }, `${chart.limit.name} ${chart.limit.value}`),
  ];
}

// --- the values ------------------------------------------------------------------------------------------------------

function lines(chart, times, x, y) {
  return chart.series.flatMap((series, index) => {
    const at = (slot) => `${x(times.first + (slot + 0.5) * times.step).toFixed(1)} ${y(series.values[slot]).toFixed(1)}`;
    const is = (slot) => series.values[slot] !== null && series.values[slot] !== undefined;
    let path = "";
    const alone = [];
    for (let slot = 0; slot < series.values.length; slot += 1) {
      if (!is(slot)) continue;
      if (is(slot - 1)) path += `L${at(slot)}`;
      else if (is(slot + 1)) path += `M${at(slot)}`;
      else alone.push(slot);
    }
    const dots = alone.map((slot) => {
      const [cx, cy] = at(slot).split(" ");
      return element("circle", { class: `dot-${index}`, cx, cy, r: 2 });
    });
    return path ? [element("path", { class: `line line-${index}`, d: path }), ...dots] : dots;
  });
}

function bars(chart, times, x, y) {
  const made = [];
  for (let slot = 0; slot < chart.known.length; slot += 1) {
    const left = Math.max(x(times.first + slot * times.step), x(times.begins));
    const right = x(Math.min(times.first + (slot + 1) * times.step, times.ends));
    const width = Math.max(1, right - left - 1.5);
    let sum = 0;
    chart.series.forEach((series, index) => {
      const value = series.values[slot] ?? 0;
      if (value > 0) {
        const size = { x: left + 0.5, y: y(sum + value), width, height: Math.max(0.5, y(sum) - y(sum + value)) };
        made.push(element("rect", { ...size, ...bar(index) }));
      }
      sum += value;
    });
  }
  return made;
}

function bar(index) {
  return index ? { class: `bar bar-${index}`, fill: `url(#fill-${index})` } : { class: "bar bar-0" };
}
