"""The colours of our pages, light and dark, and the style sheet of the one at `/docs`: one column on small screens."""

from __future__ import annotations

COLOURS = """\
:root {
  color-scheme: light dark;
  --text: #1c2128; --faint: #57606a; --page: #fff; --panel: #f6f8fa; --line: #d0d7de; --link: #0550ae;
  --get: #0550ae; --post: #116329; --put: #7d4e00; --patch: #7d4e00; --delete: #a40e26;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6edf3; --faint: #9da7b3; --page: #0d1117; --panel: #161b22; --line: #30363d; --link: #79c0ff;
    --get: #79c0ff; --post: #7ee787; --put: #f0b72f; --patch: #f0b72f; --delete: #ff9492;
  }
}
"""
STYLE = (
    COLOURS
    + """\
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0; color: var(--text); background: var(--page);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: break-word;
}
a { color: var(--link); }
a:focus-visible, pre:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
code { overflow-wrap: anywhere; }
code, pre { font: .875em/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "Liberation Mono", monospace; }
td code, p code, li code { background: var(--panel); border-radius: .25rem; padding: .1em .3em; }
pre {
  padding: .75rem 1rem; overflow-x: auto;
  background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
}
pre code { font-size: 1em; white-space: pre-wrap; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: 1rem; background: var(--page); padding: .5rem; z-index: 1; }
header, nav, main { padding: 0 1.25rem; }
header { padding-top: 1.5rem; }
h1 { margin: 0; font-size: 1.9rem; }
h1 small { color: var(--faint); font-size: 1rem; font-weight: normal; }
h2 { margin: 3rem 0 .5rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.45rem; }
h3 { margin: 2.5rem 0 .25rem; font-size: 1.1rem; }
h3 a { color: inherit; text-decoration: none; }
h3 a:hover { text-decoration: underline; }
h4 { margin: 1.25rem 0 .4rem; color: var(--faint); font-size: .95rem; }
h3 code { font-size: 1em; }
nav ul { margin: .25rem 0 1rem; padding: 0; list-style: none; }
nav li a { display: block; padding: .15rem 0; text-decoration: none; }
nav li a:hover { text-decoration: underline; }
nav h2 { margin: 1rem 0 0; border: 0; font-size: .95rem; }
.method { display: inline-block; min-width: 4.1em; font: 600 .8em ui-monospace, Menlo, Consolas, monospace; }
.get { color: var(--get); } .post { color: var(--post); } .put { color: var(--put); }
.patch { color: var(--patch); } .delete { color: var(--delete); }
.required { color: var(--delete); font-size: .8rem; font-weight: normal; }
.summary { margin: 0; font-size: 1.05rem; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .45rem .75rem .45rem 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-top: 0; color: var(--faint); font-size: .85rem; font-weight: 600; }
tbody th { font-weight: normal; }
tbody th code { overflow-wrap: normal; }
td:empty { padding: 0; }
td p { margin: 0 0 .3rem; }
@media (min-width: 62rem) {
  .columns { display: grid; grid-template-columns: 21rem minmax(0, 60rem); }
  nav {
    position: sticky; top: 0; max-height: 100vh; overflow-y: auto;
    border-right: 1px solid var(--line); font-size: .9rem;
  }
  main { padding: 0 2.5rem 4rem; }
  tbody th { width: 24%; }
}
@media (max-width: 40rem) {
  thead { position: absolute; left: -100vw; }
  tr { display: block; padding: .5rem 0; border-top: 1px solid var(--line); }
  th, td { display: block; padding: .1rem 0; border: 0; }
  td:empty { display: none; }
  td[data-title] { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); }
  td[data-title]::before { content: attr(data-title); color: var(--faint); font-size: .85rem; }
}
@media print { nav { display: none; } }
"""
)
