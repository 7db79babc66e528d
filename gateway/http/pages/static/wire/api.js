// The gateway's HTTP API as the page uses it: addresses, the token, refusals, lines of JSON. Nothing of the page.

/** The page's own directory: the gateway may be below a path of a proxy. */
const BASE = new URL(".", document.baseURI);
/** The page at /status has it too. */
const TOKEN_KEY = `cellblock-token ${BASE.pathname}`;
const SENDABLE = /^[\x21-\x7e]*$/;

/** A refusal by the gateway, in its own words. */
export class Refusal extends Error {
  /** @param {string} message @param {{status?: number, code?: string}} [more] */
  constructor(message, { status = 0, code = "" } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The gateway was not reached, or the connection broke. What was asked for may have happened. */
export class ConnectionLost extends Error {}

/** @param {string} path @returns {URL} */
export function address(path) {
  return new URL(path, BASE);
}

/** Where the gateway is, as programs are told: without a slash at the end. */
export function gatewayUrl() {
  return BASE.href.replace(/\/$/, "");
}

/** An artifact's address on the page's own origin: `public_url` may be another one. @param {string} url */
export function artifactAddress(url) {
  const parts = url.split("/");
  return address(parts.slice(-2).join("/")).href;
}

/** @param {string} sessionId @param {string} [path] @returns {string} */
export function filePath(sessionId, path = "") {
  const name = path.split("/").map(encodeURIComponent).join("/");
  return `sessions/${encodeURIComponent(sessionId)}/files${name ? `/${name}` : ""}`;
}

// --- the token -------------------------------------------------------------------------------------------------------

/** The token of this tab, or "". */
export function token() {
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
}

/** @param {string} value */
export function setToken(value) {
  if (value) sessionStorage.setItem(TOKEN_KEY, value);
  else sessionStorage.removeItem(TOKEN_KEY);
}

/** Sub-protocols of a WebSocket, which has no other headers: what is spoken, and the token. @param {string} name */
export function subprotocols(name) {
  if (!token()) return [name];
  const bytes = String.fromCharCode(...new TextEncoder().encode(token()));
  const text = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return [name, `base64url.bearer.authorization.cellblock.${text}`];
}

/** @param {string} path @param {string} name The sub-protocol. */
export function openSocket(path, name) {
  const url = address(path);
  url.protocol = url.protocol.replace("http", "ws");
  return new WebSocket(url, subprotocols(name));
}

// --- requests --------------------------------------------------------------------------------------------------------

/**
 * The gateway's answer. Throws Refusal and ConnectionLost.
 * @param {string} path
 * @param {{method?: string, json?: any, body?: BodyInit, headers?: Record<string, string>,
 *   signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function ask(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (!SENDABLE.test(token())) throw new Refusal("A header cannot have this token.", { status: 401 });
  if (token()) sent.Authorization = `Bearer ${token()}`;
  if (json !== undefined) sent["Content-Type"] = "application/json";
  const init = { method, headers: sent, body: json === undefined ? body : JSON.stringify(json), signal };
  let answer;
  try {
    answer = await fetch(address(path), { ...init, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ConnectionLost("The gateway does not answer.");
  }
  if (!answer.ok) throw await refusalOf(answer);
  return answer;
}

/** @param {string} path @param {Parameters<typeof ask>[1]} [options] @returns {Promise<any>} */
export async function askJson(path, options) {
  const answer = await ask(path, options);
  return answer.status === 204 ? null : answer.json();
}

/** @param {Response} answer */
async function refusalOf(answer) {
  let body = {};
  try {
    body = await answer.json();
  } catch {
    // A proxy's page, perhaps.
  }
  const sentence = body.error ?? body.message ?? `The gateway answered with status ${answer.status}.`;
  return new Refusal(sentence, { status: answer.status, code: body.code ?? body.reason ?? "" });
}

/**
 * The lines of an NDJSON answer. Throws ConnectionLost when it breaks off.
 * @param {Response} answer
 * @returns {AsyncGenerator<any>}
 */
export async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop() ?? "";
      for (const part of parts) if (part) yield JSON.parse(part);
    }
  } catch (error) {
    if (error instanceof SyntaxError || error?.name === "AbortError") throw error;
    throw new ConnectionLost("The connection to the gateway broke.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
