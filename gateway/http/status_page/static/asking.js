// Asks the gateway for its figures. The token is kept in this tab, and goes into a header, never into an address.

/** That of the playground: whoever comes from there has given the token already. */
const KEY = `cellblock-token ${new URL(".", document.baseURI).pathname}`;
const PATIENCE_MS = 10_000;

/** The token of this tab. Where the browser keeps nothing, it lasts as long as the page. */
export class Token {
  constructor() {
    this.value = "";
    try {
      this.value = sessionStorage.getItem(KEY) ?? "";
    } catch {
      // storage is switched off
    }
  }

  set(value) {
    this.value = value;
    try {
      if (value) sessionStorage.setItem(KEY, value);
      else sessionStorage.removeItem(KEY);
    } catch {
      // as above
    }
  }
}

/**
 * @param {string} window_ "hour" or "day"
 * @param {string} token
 * @returns {Promise<{figures?: object, status?: number, sentence?: string}>} figures, or the status and the sentence of
 *   a refusal; neither when nobody answers
 */
export async function ask(window_, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    const address = `status.json?window=${window_}`;
    answer = await fetch(address, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    return {};
  }
  try {
    const body = await answer.json();
    return answer.ok ? { figures: body } : { status: answer.status, sentence: body.error ?? "" };
  } catch {
    return answer.ok ? {} : { status: answer.status, sentence: "" };
  }
}

/** Whether a header can have it. */
export function isSendable(token) {
  return /^[\x21-\x7e]+$/.test(token);
}
