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


class _Version:
    """The description where a token is needed, or is not."""

    def __init__(self, routes: tuple[Route, ...], context: Context, *, needs_token: bool) -> None:
        self.document: dict[str, Any] = document(
            routes, version=version("cellblock"), server_url=context.public_url, needs_token=needs_token
        )

    @cached_property
    def json(self) -> bytes:
        return strict_json(self.document)

    @cached_property
    def page(self) -> bytes:
        return page(self.document).encode()


class Reference:
    """The description of these routes, as bytes. The mutable state is what was made of it so far."""

    def __init__(self, routes: tuple[Route, ...], context: Context) -> None:
        self._routes = routes
        self._context = context
        self._versions: dict[bool, _Version] = {}

    def now(self) -> _Version:
        """As it is now: the first token that is made has all requests need one."""
        needs_token = self._context.authenticator.is_required
        if needs_token not in self._versions:
            self._versions[needs_token] = _Version(self._routes, self._context, needs_token=needs_token)
        return self._versions[needs_token]


class VersionedHandler(BaseHandler):
    """Answers with bytes that a client may keep, if it asks whether they are still the same."""

    async def send_version(self, data: bytes) -> None:
        """Send it, unless the client has it."""
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        self.set_header("ETag", etag)
        self.set_header("Cache-Control", "no-cache")  # keep it, and ask whether it is still the one
        if has_version(self.request.headers.get("If-None-Match", ""), etag):
            self.set_status(304)
            return
        await self.send(data)


class _ReferenceHandler(VersionedHandler):
    """Its bytes change with the version, the configuration, and whether a token is needed."""

    @property
    def reference(self) -> Reference:
        reference: Reference = self.settings["reference"]
        return reference


class OpenApiHandler(_ReferenceHandler):
    """The description for programs."""

    async def handle_request(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        await self.send_version(self.reference.now().json)


class DocsHandler(_ReferenceHandler):
    """The description for people."""

    async def handle_request(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        await self.send_version(self.reference.now().page)
