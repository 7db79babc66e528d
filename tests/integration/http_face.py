"""A real HTTP server on a port of its own, over a service that answers from memory: memory_service.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from memory_service import MemoryService

from gateway.auth import Authenticator, SiteRules, Token
from gateway.http.base.context import Context
from gateway.http.base.limits import BufferedBodies, HttpBounds, HttpLimits, InFlight, Streams
from gateway.http.server import make_server
from sessions.settings import Limits, SessionLimits


@dataclass
class Face:
    url: str
    port: int
    service: MemoryService
    in_flight: InFlight
    bodies: BufferedBodies
    streams: Streams

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/runcode/ws"


@asynccontextmanager
async def serving(
    *,
    tokens: tuple[Token, ...] = (),
    loopback: bool = True,
    public_url: str = "",
    allowed_origins: tuple[str, ...] = (),
    limits: Limits | None = None,
    languages: Mapping[str, str] = MappingProxyType({"python": "python3"}),
    service: Any = None,
    bounds: HttpBounds | None = None,
    **server_settings: Any,
) -> AsyncIterator[Face]:
    session_limits = SessionLimits(idle_timeout_s=600, max_lifetime_s=3600)
    service = service or MemoryService(session_limits=session_limits, kernel_names=dict(languages))
    limits = limits or Limits(request_bytes=10_000)
    context = Context(
        service=service,
        authenticator=Authenticator(tokens, required=bool(tokens)),
        site=SiteRules.of(loopback=loopback, public_url=public_url, allowed_origins=allowed_origins, allowed_hosts=()),
        limits=limits,
        http=HttpLimits(limits.request_bytes, bounds),
        session_limits=session_limits,
        languages=languages,
        public_url=public_url,
    )
    server = make_server(context, **server_settings)
    server.listen(0, "127.0.0.1")
    port = next(iter(server._sockets.values())).getsockname()[1]
    try:
        http = context.http
        yield Face(f"http://127.0.0.1:{port}", port, service, http.in_flight, http.bodies, http.streams)
    finally:
        server.stop()
        await context.http.streams.close_all()
        await server.close_all_connections()
