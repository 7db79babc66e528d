"""`GET /openapi.json` and `GET /docs`. Both are made when they are first asked for, and kept."""

from __future__ import annotations

import hashlib
from functools import cached_property
from importlib.metadata import version
from typing import Any

from gateway.http.api.artifacts import has_version
from gateway.http.base.context import Context
from gateway.http.base.handler import BaseHandler
from gateway.http.base.route import Route
from gateway.http.description.document import document
from gateway.http.reference.page import CONTENT_SECURITY_POLICY, page
from gateway.http.render.answer import strict_json


class Reference:
    """The description of these routes, as bytes."""

    def __init__(self, routes: tuple[Route, ...], context: Context) -> None:
        self._routes = routes
        self._context = context

    @cached_property
    def document(self) -> dict[str, Any]:
        return document(
            self._routes,
            version=version("cellblock"),
            server_url=self._context.public_url,
            needs_token=self._context.config.auth.is_required,
        )

    @cached_property
    def json(self) -> bytes:
        return strict_json(self.document)

    @cached_property
    def page(self) -> bytes:
        return page(self.document).encode()


class _ReferenceHandler(BaseHandler):
    """Answers with bytes that change with the version and the configuration alone."""

    async def send_version(self, data: bytes) -> None:
        """Send it, unless the client has it."""
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        self.set_header("ETag", etag)
        self.set_header("Cache-Control", "no-cache")  # keep it, and ask whether it is still the one
        if has_version(self.request.headers.get("If-None-Match", ""), etag):
            self.set_status(304)
            return
        await self.send(data)

    @property
    def reference(self) -> Reference:
        reference: Reference = self.settings["reference"]
        return reference


class OpenApiHandler(_ReferenceHandler):
    """The description for programs."""

    async def handle_request(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        await self.send_version(self.reference.json)


class DocsHandler(_ReferenceHandler):
    """The description for people."""

    async def handle_request(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        await self.send_version(self.reference.page)
