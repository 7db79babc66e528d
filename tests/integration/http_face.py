"""A real HTTP server on a port of its own, over a service that answers from memory.

The service double runs nothing: it records what it was asked, and answers what the test has laid out.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.auth import Doorkeeper, SiteRules, Token
from gateway.handlers.context import BufferedBodies, Context, InFlight
from gateway.handlers.server import make_server
from sessions.errors import NotFound
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    Limits,
    Result,
    RunId,
    RunRequest,
    RunStatus,
)


@dataclass
class MemoryReadiness:
    ready: bool = True
    reasons: tuple[str, ...] = ()
    warm: int = 2
    engine: str = "memory"


@dataclass
class MemoryService:
    """`requests` is what was asked; `next_result` or `next_error` is what the next run gives."""

    requests: list[RunRequest] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    next_result: dict[str, Any] = field(default_factory=dict)
    next_error: Exception | None = None
    state: MemoryReadiness = field(default_factory=MemoryReadiness)
    hold: asyncio.Event | None = None
    finished: int = 0
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    has_finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, request: RunRequest) -> Result:
        self.requests.append(request)
        self.was_asked.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.next_error is not None:
            raise self.next_error
        self.finished += 1
        self.has_finished.set()
        fields = {"run_id": RunId(str(uuid.uuid4())), "status": RunStatus.OK, "output": "", **self.next_result}
        return Result(**fields)

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        if artifact_id not in self.artifacts:
            raise NotFound
        return self.artifacts[artifact_id]

    def readiness(self) -> MemoryReadiness:
        return self.state

    def add(self, name: str, data: bytes, kind: ArtifactKind, content_type: str = "text/plain") -> ArtifactRef:
        ref = ArtifactRef(ArtifactId(str(uuid.uuid4())), kind, name, content_type, len(data))
        self.artifacts[ref.id] = Artifact(ref, data)
        return ref


@dataclass
class Face:
    url: str
    port: int
    service: MemoryService
    in_flight: InFlight
    bodies: BufferedBodies


@asynccontextmanager
async def serving(
    *,
    tokens: tuple[Token, ...] = (),
    loopback: bool = True,
    public_url: str = "",
    allowed_origins: tuple[str, ...] = (),
    limits: Limits | None = None,
    **server_settings: Any,
) -> AsyncIterator[Face]:
    service = MemoryService()
    context = Context(
        service=service,
        doorkeeper=Doorkeeper(tokens, required=bool(tokens)),
        site=SiteRules.of(loopback=loopback, public_url=public_url, allowed_origins=allowed_origins, allowed_hosts=()),
        limits=limits or Limits(request_bytes=10_000),
        languages={"python": "python3"},
        public_url=public_url,
    )
    server = make_server(context, **server_settings)
    server.listen(0, "127.0.0.1")
    port = next(iter(server._sockets.values())).getsockname()[1]
    try:
        yield Face(f"http://127.0.0.1:{port}", port, service, context.in_flight, context.bodies)
    finally:
        server.stop()
        await server.close_all_connections()
