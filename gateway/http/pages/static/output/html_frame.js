// HTML of a run in a frame of its own: no scripts, no forms, no links, nothing from elsewhere, no access to the page.
//
// Four things see to it, each alone enough against scripts: the frame's sandbox, its own policy, the page's policy,
// which it inherits, and that what could act is taken out of the HTML before. Tables and their styles are what is left.

const ROW_PX = 27;
const MIN_PX = 44;
const MAX_PX = 420;
const MAX_CHARACTERS = 500_000;
// Browsers hold even a document that is only parsed to the page's policy, and report what offends it. So this much is
// taken out of the text before; what it misses is refused by the policy, and removed from the document.
// Wherever the first letters match, the whole does: what is not closed goes to the end, and none of it is read twice.
const TAG = /<[a-z](?:=\s*(?:"[^"]*(?:"|$)|'[^']*(?:'|$))?|[^>=]+)*(?:>|$)/gi;
const STYLE_ATTRIBUTE = /([\s"'/])style(\s*=)/gi;
const HANDLER_ATTRIBUTE = /([\s"'/])on\w+(\s*=)/gi;
const STYLE_ELEMENT = /<style(?=[\s/>])[^>]*(?:>([^]*?)(?:<\/style(?=[\s/>])[^>]*>?|$)|$)/gi;

const GONE = [
  ...["script", "style", "iframe", "frame", "frameset", "object", "embed", "applet", "portal", "template"],
  ...["base", "meta", "link", "form", "input", "button", "select", "textarea"],
  ...["video", "audio", "source", "track", "animate", "set", "use", "foreignObject"],
].join(", ");
const LINKS = new Set([
  ...["src", "srcset", "href", "xlink:href", "action", "formaction", "data", "poster", "background", "ping"],
]);

const STYLE = `
:root { color-scheme: light dark; --text: #1c2128; --faint: #57606a; --line: #d0d7de; --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9da7b3; --line: #30363d; --panel: #161b22; } }
html { background: transparent; }
body { margin: 0; padding: 2px; color: var(--text); }
body, table { font: 13px/18px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
table { border: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { height: ${ROW_PX}px; padding: 0 12px; border: 0; text-align: right; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
thead th, thead td { border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--panel); }
caption { padding: 4px 0; color: var(--faint); text-align: left; }
p { margin: 8px 0; color: var(--faint); }
img, svg { max-width: 100%; }
pre, code { font: 12px/18px ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
`;

/** The only place where a string becomes HTML. */
const POLICY = globalThis.trustedTypes?.createPolicy("frame", { createHTML: (html) => html }) ?? {
  createHTML: (html) => html,
};

/**
 * A frame with this HTML; null where nothing of it can be shown without scripts.
 * @param {string} html @param {string} nonce That of the page's policy, for styles.
 * @returns {HTMLIFrameElement | null}
 */
export function htmlFrame(html, nonce) {
  /** @type {string[]} */
  const sheets = [];
  const given = html
    .slice(0, MAX_CHARACTERS)
    .replace(STYLE_ELEMENT, (_, sheet = "") => (sheets.push(sheet), ""))
    .replace(TAG, withoutInline);
  const parsed = new DOMParser().parseFromString(POLICY.createHTML(given), "text/html");
  const css = disarm(parsed, sheets);
  if (!parsed.body.textContent.trim() && !parsed.querySelector("img, svg, table, hr")) return null;
  const frame = document.createElement("iframe");
  frame.className = "html";
  frame.title = "Output of the run, as HTML";
  frame.setAttribute("sandbox", "");
  frame.referrerPolicy = "no-referrer";
  frame.style.height = `${height(parsed)}px`;
  const policy = `default-src 'none'; img-src data:; style-src 'nonce-${nonce}'`;
  frame.srcdoc = POLICY.createHTML(
    `<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${policy}">` +
      `<style nonce="${nonce}">${STYLE}</style><style nonce="${nonce}">${css}</style>${parsed.body.innerHTML}`,
  );
  return frame;
}

/** @param {string} tag */
function withoutInline(tag) {
  if (/^<base\b/i.test(tag)) return "";
  return tag.replace(STYLE_ATTRIBUTE, "$1data-style$2").replace(HANDLER_ATTRIBUTE, "$1data-handler$2");
}

/**
 * Take out what could act or load. Returns all styles.
 * @param {Document} parsed @param {string[]} css Those of elements.
 */
function disarm(parsed, css) {
  for (const element of parsed.querySelectorAll(GONE)) element.remove();
  let count = 0;
  for (const element of parsed.querySelectorAll("*")) {
    for (const { name, value } of [...element.attributes]) {
      if (name === "data-style") {
        // An attribute cannot have a nonce: each becomes a rule.
        element.setAttribute("data-style", String(count));
        css.push(`[data-style="${count}"] { ${value.replace(/[{}]/g, "")} }`);
        count += 1;
      }
      const isLink = LINKS.has(name) && !(name === "src" && /^data:image\//i.test(value));
      if (name === "style" || name === "nonce" || name.startsWith("on") || isLink) element.removeAttribute(name);
    }
  }
  // It ends no element; what else would be fetched, the frame's policy refuses.
  const text = css.join("\n").replaceAll("<", "\\3c ");
  return text.replace(/@import[^;]*;?/gi, "").replace(/url\(\s*(?!["']?data:)/gi, "none(");
}

/** What it needs, as far as can be told from outside: rows have one height. @param {Document} parsed */
function height(parsed) {
  const rows = parsed.querySelectorAll("tr").length;
  const others = parsed.querySelectorAll("p, li, h1, h2, h3, h4, pre, br, caption").length;
  const pictures = parsed.querySelectorAll("img, svg").length;
  const wide = [...parsed.querySelectorAll("tr")].some((row) => row.children.length > 8) ? 16 : 0;
  const text = rows ? 0 : Math.ceil(parsed.body.textContent.length / 80) * 20;
  const px = rows * (ROW_PX + 1) + others * 26 + pictures * 200 + wide + Math.min(text, MAX_PX) + 8;
  return Math.max(MIN_PX, Math.min(MAX_PX, px));
}
