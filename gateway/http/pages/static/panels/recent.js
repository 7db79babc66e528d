// The list of recent runs, each a link to its own address.

import { askJson } from "../wire/api.js";

const COUNT = 12;

/** @param {HTMLElement} list */
export async function showRecent(list) {
  const { runs } = await askJson(`runs?limit=${COUNT}`);
  list.replaceChildren(...(runs.length > 0 ? runs.map(item) : [remark("None yet.")]));
}

/** @param {string} runId */
export function runAddress(runId) {
  return `#run=${runId}`;
}

/** The run that the page's address names, or "". */
export function runInAddress() {
  const given =
    new URLSearchParams(location.hash.slice(1)).get("run") ?? new URLSearchParams(location.search).get("run");
  return given ?? "";
}

/** @param {any} run */
function item(run) {
  const link = document.createElement("a");
  link.href = runAddress(run.run_id);
  const time = new Date(run.created_at);
  link.textContent = time.toLocaleString([], { dateStyle: "short", timeStyle: "medium" });
  const about = document.createElement("span");
  about.className = "size";
  about.textContent = [run.language, run.session_id].filter(Boolean).join(", ");
  const status = document.createElement("span");
  status.className = `status ${run.status}`;
  status.textContent = run.status;
  const element = document.createElement("li");
  element.append(link, about, status);
  return element;
}

/** @param {string} text */
function remark(text) {
  const element = document.createElement("li");
  element.className = "remark";
  element.textContent = text;
  return element;
}
