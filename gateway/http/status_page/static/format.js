// Numbers, durations and times as a person reads them.

/** @param {number} value */
export function number(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

/** Seconds as "0.25 ms", "12 ms", "3.4 s", "2 min 5 s", "3 h 10 min", "2 d 4 h". @param {number} seconds */
export function duration(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds < 1) return `${number(Number((seconds * 1000).toPrecision(3)))} ms`;
  if (seconds < 60) return `${number(Number(seconds.toPrecision(3)))} s`;
  const whole = Math.floor(seconds);
  if (whole < 3600) return joined(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86400) return joined(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return joined(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
}

function joined(large, largeUnit, small, smallUnit) {
  return small ? `${large} ${largeUnit} ${small} ${smallUnit}` : `${large} ${largeUnit}`;
}

/** @param {number} share between 0 and 1 */
export function percent(share) {
  const shown = share > 0.999 && share < 1 ? Math.floor(share * 10000) / 100 : Number((share * 100).toPrecision(4));
  return `${shown} %`;
}

/** The time of day of this browser, from milliseconds since 1970. */
export function clock(ms, withSeconds = false) {
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  return new Date(ms).toLocaleTimeString("en", withSeconds ? { ...options, second: "2-digit" } : options);
}

/** Day and time of day. */
export function moment(ms) {
  const day = new Date(ms).toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
  return `${day}, ${clock(ms, true)}`;
}
