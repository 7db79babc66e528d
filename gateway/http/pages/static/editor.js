// The editor: CodeMirror with the page's colours, the languages it can highlight, and completion from elsewhere.

import {
  Compartment,
  Decoration,
  EditorState,
  EditorView,
  HighlightStyle,
  Prec,
  StateEffect,
  StateField,
  StreamLanguage,
  autocompletion,
  basics,
  indentUnit,
  indentWithTab,
  javascript,
  keymap,
  placeholder,
  python,
  r,
  shell,
  syntaxHighlighting,
  tags,
} from "./third_party/codemirror.js";

const SHELL = () => StreamLanguage.define(shell);
const TYPESCRIPT = () => javascript({ typescript: true });
/** By their names in the gateway's configuration. */
const LANGUAGES = new Map([
  ["python", () => python()],
  ["bash", SHELL],
  ["sh", SHELL],
  ["shell", SHELL],
  ["javascript", () => javascript()],
  ["typescript", TYPESCRIPT],
  ["deno", TYPESCRIPT],
  ["r", () => StreamLanguage.define(r)],
]);
const NO_HIGHLIGHTING = [];

const COLOURS = syntaxHighlighting(
  HighlightStyle.define([
    { tag: [tags.keyword, tags.operatorKeyword, tags.modifier], color: "var(--tok-keyword)" },
    { tag: [tags.string, tags.special(tags.string), tags.regexp], color: "var(--tok-string)" },
    { tag: [tags.number, tags.bool, tags.null, tags.atom], color: "var(--tok-number)" },
    { tag: [tags.comment, tags.lineComment, tags.blockComment], color: "var(--tok-comment)", fontStyle: "italic" },
    { tag: [tags.function(tags.variableName), tags.function(tags.propertyName)], color: "var(--tok-function)" },
    { tag: [tags.definition(tags.variableName), tags.className, tags.typeName], color: "var(--tok-definition)" },
    { tag: [tags.meta, tags.standard(tags.variableName)], color: "var(--tok-builtin)" },
  ]),
);

const THEME = EditorView.theme({
  "&": { height: "100%", color: "var(--text)", backgroundColor: "transparent", fontSize: "var(--code-size)" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.55" },
  ".cm-content": { caretColor: "var(--text)", padding: "0.6rem 0" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "var(--page)", color: "var(--faint)", border: "none" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "var(--active-line)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "var(--selection)",
  },
  "&.cm-focused .cm-matchingBracket": { backgroundColor: "var(--selection)", outline: "1px solid var(--line)" },
  ".cm-failingLine": { backgroundColor: "var(--failing-line)" },
  ".cm-placeholder": { color: "var(--faint)" },
  ".cm-tooltip": { backgroundColor: "var(--panel)", border: "1px solid var(--line)", color: "var(--text)" },
  ".cm-tooltip-autocomplete > ul > li": { padding: "0.15rem 0.6rem" },
  ".cm-tooltip-autocomplete > ul > li[aria-selected]": { backgroundColor: "var(--accent)", color: "var(--on-accent)" },
  ".cm-panels": { backgroundColor: "var(--panel)", color: "var(--text)", borderColor: "var(--line)" },
  ".cm-textfield": { backgroundColor: "var(--page)", color: "var(--text)", border: "1px solid var(--line)" },
  ".cm-button": { backgroundImage: "none", backgroundColor: "var(--panel)", color: "var(--text)" },
  ".cm-searchMatch": { backgroundColor: "var(--failing-line)" },
});

/** @type {import("./third_party/codemirror.js").StateEffectType<number | null>} */
const markLine = StateEffect.define();
const markedLine = StateField.define({
  create: () => Decoration.none,
  update(marks, transaction) {
    // A mark is for the code as it ran.
    let next = transaction.docChanged ? Decoration.none : marks;
    for (const effect of transaction.effects) {
      if (!effect.is(markLine)) continue;
      const exists = effect.value !== null && effect.value >= 1 && effect.value <= transaction.state.doc.lines;
      const at = exists ? transaction.state.doc.line(effect.value).from : 0;
      next = exists ? Decoration.set([Decoration.line({ class: "cm-failingLine" }).range(at)]) : Decoration.none;
    }
    return next;
  },
  provide: (field) => EditorView.decorations.from(field),
});

export class Editor {
  #language = new Compartment();
  #view;

  /**
   * @param {HTMLElement} parent
   * @param {{nonce: string, text: string, onRun: () => void, onChange: () => void, complete: Completer}} options
   */
  constructor(parent, { nonce, text, onRun, onChange, complete }) {
    const run = () => {
      onRun();
      return true;
    };
    this.#view = new EditorView({
      parent,
      state: EditorState.create({
        doc: text,
        extensions: [
          EditorView.cspNonce.of(nonce),
          Prec.highest(
            keymap.of([
              { key: "Mod-Enter", run },
              { key: "Ctrl-Enter", run },
              { key: "Shift-Enter", run },
            ]),
          ),
          basics,
          keymap.of([indentWithTab]),
          indentUnit.of("    "),
          autocompletion({ override: [(context) => source(context, complete)], activateOnTyping: true, icons: false }),
          EditorView.domEventHandlers({ beforeinput: replaceSelected }),
          placeholder("Code to run"),
          EditorView.contentAttributes.of({
            tabindex: "0",
            "aria-label": "Code. Tab indents; to leave with the keyboard, press Escape and then Tab.",
          }),
          EditorView.updateListener.of((update) => update.docChanged && onChange()),
          markedLine,
          COLOURS,
          THEME,
          this.#language.of(NO_HIGHLIGHTING),
        ],
      }),
    });
  }

  get text() {
    return this.#view.state.doc.toString();
  }

  set text(value) {
    this.#view.dispatch({ changes: { from: 0, to: this.#view.state.doc.length, insert: value } });
  }

  /** @param {string} name One of the gateway's languages. */
  setLanguage(name) {
    const make = LANGUAGES.get(name.toLowerCase()) ?? (() => NO_HIGHLIGHTING);
    this.#view.dispatch({ effects: this.#language.reconfigure(make()) });
  }

  /** Mark the line that failed, or none. @param {number | null} line From 1. */
  mark(line) {
    this.#view.dispatch({ effects: markLine.of(line) });
  }

  focus() {
    this.#view.focus();
  }
}

/**
 * Type over a selection. Chromium would wrap what is typed into a style attribute, which the page's policy refuses.
 * @param {InputEvent} event @param {EditorView} view
 */
function replaceSelected(event, view) {
  const { from, to, empty } = view.state.selection.main;
  const isTyped = event.inputType === "insertText" && event.data && event.cancelable && !view.composing;
  if (!isTyped || empty) return false;
  event.preventDefault();
  const options = { userEvent: "input.type", scrollIntoView: true };
  const insert = () => view.state.update(view.state.replaceSelection(event.data), options);
  const handlers = view.state.facet(EditorView.inputHandler);
  if (!handlers.some((handler) => handler(view, from, to, event.data, insert))) view.dispatch(insert());
  return true;
}

/**
 * @typedef {{from: number, to: number, names: string[]}} Offer
 * @typedef {(code: string, place: number, signal: AbortSignal) => Promise<Offer | null>} Completer
 */

/**
 * Completions after a dot or two letters, or when they are asked for.
 * @param {import("./third_party/codemirror.js").CompletionContext} context @param {Completer} complete
 */
async function source(context, complete) {
  const word = context.matchBefore(/[\w.]*$/);
  if (!context.explicit && !/(\.|\w\w)$/.test(word?.text ?? "")) return null;
  const aborting = new AbortController();
  context.addEventListener("abort", () => aborting.abort());
  const found = await complete(context.state.doc.toString(), context.pos, aborting.signal);
  if (found === null || context.aborted) return null;
  return { from: found.from, to: found.to, options: found.names.map((label) => ({ label })), validFor: /^\w*$/ };
}
