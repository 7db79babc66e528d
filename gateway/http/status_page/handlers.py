"""`GET /status`, its script and style sheet, and the figures that they ask for."""

from __future__ import annotations

import mimetypes
from functools import cache
from pathlib import Path
from typing import ClassVar

from msgspec import to_builtins

from gateway.http.base.handler import BaseHandler
from gateway.http.reference.handlers import VersionedHandler
from gateway.http.reference.style import COLOURS
from gateway.http.status_page.answer import status, window_asked
from gateway.http.status_page.history import History
from sessions.errors import NotFound

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_STATIC = Path(__file__).parent / "static"
_PAGE = "status.html"


@cache
def _files() -> dict[str, bytes]:
    """All parts of the page, by name. The style sheet begins with the colours of all our pages."""
    files = {path.name: path.read_bytes() for path in _STATIC.iterdir() if path.is_file()}
    return files | {"status.css": COLOURS.encode() + files["status.css"]}


class StatusPageHandler(VersionedHandler):
    """The page, without any figure: it needs no token."""

    async def handle_request(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        await self.send_version(_files()[_PAGE])


class StatusFileHandler(VersionedHandler):
    """A script or a style sheet of the page."""

    async def handle_request(self) -> None:
        name = self.request.path.rpartition("/")[2]
        data = _files().get(name)
        if data is None or name == _PAGE:
            raise NotFound("The page at /status has no part of this name.")
        media_type, _ = mimetypes.guess_type(name)
        self.set_header("Content-Type", f"{media_type}; charset=utf-8")
        await self.send_version(data)


class StatusJsonHandler(BaseHandler):
    """The figures. They start anew with the process."""

    is_probe: ClassVar[bool] = True

    async def handle_request(self) -> None:
        history: History = self.settings["history"]
        answer = status(self.context, history, window_asked(self.request.query))
        await self.send_json(to_builtins(answer))
