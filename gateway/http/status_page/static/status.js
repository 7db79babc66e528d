// The page: asks again and again, shows what comes, and says so when nothing does.

import { ask, isSendable, Token } from "./asking.js";
import { showNow, showStages } from "./figures.js";
import { clock, duration, moment } from "./format.js";
import { Pictures } from "./pictures.js";

const PAUSE_MS = 10_000;
const FIRST_RETRY_MS = 2_000;
const LONGEST_RETRY_MS = 60_000;

const at = (id) => document.getElementById(id);
const token = new Token();
const pictures = new Pictures(at("pictures"));
const chosen = () => document.querySelector("input[name=window]:checked").value;

let timer = 0;
let asked = 0; // the newest question: answers to older ones are not shown
let retryMs = FIRST_RETRY_MS;
let silentSince = 0;
let answeredAt = 0;
let isPaused = false;

async function refresh() {
  clearTimeout(timer);
  asked += 1;
  const question = asked;
  const answer = await ask(chosen(), token.value);
  if (question !== asked) return;
  if (answer.figures) {
    showFigures(answer.figures);
    plan(PAUSE_MS);
  } else if (answer.status === 401) {
    askForToken(answer.sentence);
  } else {
    silentSince ||= Date.now();
    showSilence(answer);
    plan(retryMs);
    retryMs = Math.min(2 * retryMs, LONGEST_RETRY_MS);
  }
}

function plan(pauseMs) {
  clearTimeout(timer);
  if (!isPaused && !document.hidden) timer = setTimeout(refresh, pauseMs);
}

function showFigures(status) {
  const { gateway, now } = status;
  retryMs = FIRST_RETRY_MS;
  silentSince = 0;
  answeredAt = Date.now();
  at("next").textContent = "";
  at("credentials").hidden = true;
  at("figures").hidden = false;
  at("figures").classList.remove("stale");
  at("forget").hidden = !token.value;
  const runtime = gateway.runtime ? `, runtime ${gateway.runtime}` : "";
  const isolation = gateway.isolation === "none" ? "no isolation" : `a container for each kernel${runtime}`;
  at("about").textContent = `${gateway.version} on ${gateway.engine} (${isolation}), up for ${duration(Math.floor(gateway.uptime))}`;
  at("since").textContent = moment(Date.parse(gateway.started_at));
  at("updated").textContent = `As of ${clock(answeredAt, true)}${isPaused ? "" : `, again every ${PAUSE_MS / 1000} s`}`;
  verdict(now.ready ? "good" : "bad", now.ready ? "✔ Ready: runs are taken" : "✘ Not ready: runs are refused", [
    ...now.reasons,
    ...now.warnings,
  ]);
  at("slots").textContent = slots(status.history);
  showNow(at("now"), status);
  pictures.show(status);
  showStages(at("stages"), status);
}

function slots({ begins_at: begins, step }) {
  const known = begins === null ? `The first values come within ${duration(step)}. ` : "";
  return `${known}A slot is ${duration(step)}, a bar six of them. Hatched: nothing is known, for the gateway did not run or stood still, or its clock jumped.`;
}

function showSilence({ status, sentence }) {
  const since = `since ${clock(silentSince, true)}`;
  const what = status
    ? `✘ The gateway has answered ${status} ${since}`
    : `✘ The gateway has not answered ${since}`;
  const last = answeredAt ? `What is below are the last figures, of ${clock(answeredAt, true)}.` : "";
  stale();
  verdict("bad", what, [sentence ?? "", last]);
  at("next").textContent = isPaused ? "" : `It is asked again after ${duration(retryMs / 1000)}.`;
}

function askForToken(sentence) {
  stale();
  at("next").textContent = "";
  at("credentials").hidden = false;
  at("forget").hidden = !token.value;
  const isWrong = Boolean(token.value);
  verdict("bad", isWrong ? "✘ 401: this token is not valid here" : "A token is needed (401)", isWrong ? [sentence] : []);
  at("token").focus();
}

function stale() {
  at("figures").classList.add("stale");
  at("updated").textContent = "";
}

/** Said aloud by screen readers when it changes, and only then. */
function verdict(look, state, sentences) {
  const parts = [state, ...sentences.filter(Boolean)];
  const box = at("verdict");
  box.className = look;
  if ([...box.children].map((child) => child.textContent).join("\n") === parts.join("\n")) return;
  box.replaceChildren(
    ...parts.map((part, index) => {
      const line = document.createElement("p");
      line.textContent = part;
      if (!index) line.className = "state";
      return line;
    }),
  );
}

at("credentials").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("token").value.trim();
  at("token").value = "";
  if (isSendable(given)) {
    token.set(given);
    refresh();
  } else {
    verdict("bad", "✘ This is no token: it has letters that a header cannot have", []);
  }
});
at("forget").addEventListener("click", () => {
  token.set("");
  at("figures").hidden = true;
  refresh();
});
at("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  at("pause").setAttribute("aria-pressed", String(isPaused));
  clearTimeout(timer);
  if (isPaused) at("updated").textContent = `As of ${clock(answeredAt, true)}`;
  else refresh();
});
for (const choice of document.querySelectorAll("input[name=window]")) choice.addEventListener("change", refresh);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if (!isPaused) refresh();
});
refresh();
