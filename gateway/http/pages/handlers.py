"""`GET /`: the playground for browsers, the list of routes for programs. `GET /static/…`: what the playground needs."""

from __future__ import annotations

import secrets

from gateway.http.api.artifacts import has_version
from gateway.http.api.ops import RootHandler
from gateway.http.base.handler import BaseHandler
from gateway.http.pages.accept import prefers_page
from gateway.http.pages.page import content_security_policy, page
from gateway.http.pages.static_files import static_files
from sessions.errors import NotFound


class PlaygroundHandler(RootHandler):
    """The page, for whom wants one."""

    async def handle_request(self) -> None:
        self.set_header("Vary", "Accept, Origin")
        if not prefers_page(self.request.headers.get("Accept", "")):
            await super().handle_request()
            return
        nonce = secrets.token_urlsafe(16)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", content_security_policy(nonce))
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        await self.send(page(version=static_files().version, nonce=nonce).encode())


class StaticHandler(BaseHandler):
    """One file of the current version."""

    async def handle_request(self) -> None:
        _, _, version, path = self.request.path.split("/", 3)
        static = static_files()
        file = static.files.get(path) if version == static.version else None
        if file is None:
            raise NotFound("There is no such file in this version: load the page again.")
        self.set_header("ETag", file.etag)
        self.set_header("Cache-Control", "public, max-age=31536000, immutable")
        if has_version(self.request.headers.get("If-None-Match", ""), file.etag):
            self.set_status(304)
            return
        self.set_header("Content-Type", file.content_type)
        await self.send(file.content)
