// The field for the token, which is asked for when the gateway wants one.

import { setToken, token } from "../wire/api.js";

/** @param {string} id */
const byId = (id) => /** @type {any} */ (document.getElementById(id));

/** @param {() => void} onChange Called with another token in place, or with none. */
export function setUpTokenForm(onChange) {
  const form = byId("token-form");
  const field = byId("token");
  byId("token-button").addEventListener("click", () => open(form.hidden));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(field.value.trim());
    field.value = "";
    open(false);
    onChange();
  });
  byId("token-forget").addEventListener("click", () => {
    setToken("");
    field.value = "";
    onChange();
  });
}

/** Show the field, as the gateway has refused a request. Returns what to say. */
export function askForToken() {
  open(true);
  return token()
    ? "The gateway does not know this token: it is mistyped, or was revoked."
    : "This gateway needs a token: type yours above.";
}

/** @param {boolean} isOpen */
function open(isOpen) {
  byId("token-form").hidden = !isOpen;
  byId("token-button").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) byId("token").focus();
}
