"""Whether a request wants a page: browsers name HTML first, programs do not. Pure.

https://www.rfc-editor.org/rfc/rfc9110#name-accept
"""

from __future__ import annotations

_HTML = "text/html"
_JSON = "application/json"


def prefers_page(accept: str) -> bool:
    """Whether HTML is named, and wanted no less than JSON. `*/*` is no wish."""
    wishes = _qualities(accept)
    html, json = wishes.get(_HTML, 0.0), wishes.get(_JSON, 0.0)
    if html == json:
        return html > 0 and list(wishes).index(_HTML) < list(wishes).index(_JSON)
    return html > json


def _qualities(accept: str) -> dict[str, float]:
    """Media types by name, in their order, with their quality; what is malformed has none."""
    found: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = [word.strip() for word in part.split(";")]
        qualities = [value for key, _, value in (text.partition("=") for text in parameters) if key.strip() == "q"]
        found.setdefault(name, _quality(qualities[0]) if qualities else 1.0)
    return found


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
