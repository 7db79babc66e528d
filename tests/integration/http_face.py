"""A real HTTP server on a port of its own, over a service that answers from memory: memory_service.py."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from memory_service import MemoryService

from gateway.auth import Token
from gateway.config.sections import AuthSection, Config, ServerSection
from gateway.host.clock import SystemClock
from gateway.http.base.bodies import BufferedBodies
from gateway.http.base.context import Context
from gateway.http.base.limits import HttpBounds, InFlight, Streams
from gateway.http.base.outgoing import AnswerRoom
from gateway.http.server import make_server
from gateway.http.status_page.history import History
from sessions.model import ArtifactRef
from sessions.ports import Clock
from sessions.settings import Limits, SessionLimits


@dataclass
class Face:
    url: str
    port: int
    service: MemoryService
    in_flight: InFlight
    bodies: BufferedBodies
    streams: Streams
    answers: AnswerRoom
    context: Context
    history: History

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/runcode/ws"


def url_name(ref: ArtifactRef) -> str:
    """The last segment of an artifact's URL, not yet percent-encoded."""
    return f"{ref.id}_{PurePosixPath(ref.name).name}"


def stingy_connection(port: int) -> socket.socket:
    """A connection whose buffers are small, so that not reading is soon noticed."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


@asynccontextmanager
async def serving(
    *,
    tokens: tuple[Token, ...] = (),
    public_url: str = "",
    allowed_origins: tuple[str, ...] = (),
    limits: Limits | None = None,
    languages: Mapping[str, str] = MappingProxyType({"python": "python3"}),
    env_allowed: tuple[str, ...] = (),
    service: Any = None,
    bounds: HttpBounds | None = None,
    clock: Clock | None = None,
    port: int = 0,
) -> AsyncIterator[Face]:
    config = Config(
        server=ServerSection(public_url=public_url, allowed_origins=allowed_origins),
        auth=AuthSection(tokens=tokens),
        limits=limits or Limits(request_bytes=10_000),
        sessions=SessionLimits(idle_timeout_s=600, max_lifetime_s=3600),
        languages=dict(languages),
        env_allowed=env_allowed,
    )
    service = service or MemoryService(session_limits=config.sessions, kernel_names=config.languages)
    context = Context(service, config, bounds)
    history = History(context, clock or SystemClock())
    server = make_server(context, history)
    server.listen(port, "127.0.0.1")
    port = next(iter(server._sockets.values())).getsockname()[1]
    try:
        http = context.http
        yield Face(
            f"http://127.0.0.1:{port}",
            port,
            service,
            http.in_flight,
            http.bodies,
            http.streams,
            context.answers,
            context,
            history,
        )
    finally:
        server.stop()
        await context.http.streams.close_all()
        await server.close_all_connections()
