// The dialog that shows the page's run as a call of curl or of the Python client.

import { curlCall, pythonCall } from "./calls.js";

/** @param {string} id */
const byId = (id) => /** @type {any} */ (document.getElementById(id));

/** @param {() => import("./calls.js").Call} current What would be run now. */
export function setUpCallDialog(current) {
  const dialog = byId("call");
  const copied = byId("call-copied");
  const show = () => {
    const call = current();
    const kind = dialog.querySelector("input[name=call-kind]:checked").value;
    byId("call-text").textContent = kind === "python" ? pythonCall(call) : curlCall(call);
    byId("call-token").hidden = !call.needsToken;
    copied.textContent = "";
  };
  byId("copy-call").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
  for (const choice of dialog.querySelectorAll("input[name=call-kind]")) choice.addEventListener("change", show);
  byId("call-close").addEventListener("click", () => dialog.close());
  byId("call-copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("call-text").textContent);
      copied.textContent = "Copied.";
    } catch {
      getSelection()?.selectAllChildren(byId("call-text"));
      copied.textContent = "This browser does not let the page copy: the text is selected, press Ctrl+C.";
    }
  });
}
