"""How a result looks in a notebook: as HTML, and as the text that a terminal shows.

HTML and images come from code that nobody may have read, and a notebook's page can run code of its own. So HTML goes
into a frame that runs no scripts, and images are shown as images, which run none either.
"""

from __future__ import annotations

import base64
import inspect
from contextlib import suppress
from html import escape
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gateway.client.errors import ClientError

if TYPE_CHECKING:
    from gateway.client.results import Artifact, RunResult

_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}


def mime_bundle(result: RunResult[Any]) -> dict[str, Any]:
    """`text/plain` and `text/html` of a whole result."""
    return {"text/plain": _text(result), "text/html": _html(result)}


def _text(result: RunResult[Any]) -> str:
    parts = [result.output.rstrip("\n"), result.stderr.rstrip("\n")]
    parts += [str(bundle.get("text/plain", "")) for bundle in result.results]
    parts += [f"[{name}] {artifact.url}" for name, artifact in (*result.images.items(), *result.files.items())]
    parts.append(result.error or "")
    return "\n".join(part for part in parts if part) or f"<run {result.run_id}: {result.status}>"


def _html(result: RunResult[Any]) -> str:
    parts = [_pre(result.output), _pre(result.stderr, "background:#fdd;color:#000")]
    shown: set[str] = set()
    for bundle in result.results:
        name = str(bundle.get("image", ""))
        if name in result.images:
            shown.add(name)
            parts.append(_image(result.images[name]))
        elif "text/html" in bundle:
            parts.append(_frame(str(bundle["text/html"])))
        else:
            parts.append(_pre(str(bundle.get("text/plain", ""))))
    parts += [_image(artifact) for name, artifact in result.images.items() if name not in shown]
    parts += [_link(artifact) for artifact in result.files.values()]
    parts.append(_pre(result.error or "", "color:#b00"))
    return "".join(parts) or f"<i>{escape(result.status)}</i>"


def _pre(text: str, style: str = "") -> str:
    return f'<pre style="{style}">{escape(text)}</pre>' if text else ""


def _frame(html: str) -> str:
    return (
        f'<iframe sandbox srcdoc="{escape(html)}" '
        'style="width:100%;height:20em;border:0;background:#fff;resize:vertical"></iframe>'
    )


def _link(artifact: Artifact[Any]) -> str:
    return f'<div><a href="{escape(artifact.url)}">{escape(artifact.name)}</a></div>'


def _image(artifact: Artifact[Any]) -> str:
    """With its bytes where they can be had: the browser that shows the notebook may not reach the gateway."""
    source = artifact.url
    if not _is_async(artifact.read):
        content_type = _TYPES.get(PurePosixPath(artifact.name).suffix.lower(), "image/png")
        with suppress(ClientError):
            source = f"data:{content_type};base64,{base64.b64encode(artifact.read()).decode()}"
    return f'<div><img src="{escape(source)}" alt="{escape(artifact.name)}"></div>'


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(getattr(function, "func", function))
