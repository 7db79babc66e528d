// The box in which `input()` and `getpass()` are answered.

/**
 * @param {{prompt: string, password: boolean}} request
 * @param {(value: string) => Promise<void>} answer
 * @returns {HTMLElement}
 */
export function inputBox({ prompt, password }, answer) {
  const form = document.createElement("form");
  form.className = "input";
  const label = document.createElement("label");
  const text = document.createElement("span");
  text.textContent = prompt || "The code asks for a line:";
  const field = document.createElement("input");
  field.type = password ? "password" : "text";
  field.autocomplete = "off";
  field.spellcheck = false;
  label.append(text, field);
  const button = document.createElement("button");
  button.textContent = "Send";
  form.append(label, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { value } = field;
    field.disabled = true;
    button.disabled = true;
    try {
      await answer(value);
      close(form, `${text.textContent}${password ? "••••••" : value}`);
    } catch {
      field.disabled = false;
      button.disabled = false;
    }
  });
  return form;
}

/** They will not be answered here any more. @param {HTMLElement} container */
export function closeInputs(container) {
  for (const form of container.querySelectorAll("form.input")) {
    close(form, `${form.querySelector("span")?.textContent ?? ""}…`);
  }
}

/** Leave what was asked and answered as text. @param {Element} form @param {string} text */
function close(form, text) {
  const line = document.createElement("pre");
  line.className = "text answered";
  line.textContent = text;
  form.replaceWith(line);
}
