"""What every handler is given by the composition root, and the part of the service that the HTTP face calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway.auth import Doorkeeper, SiteRules
from sessions.model import Artifact, ArtifactId, Limits, Result, RunRequest


class Readiness(Protocol):
    """Whether code can be run now, and if not, why."""

    @property
    def ready(self) -> bool:
        """True when a run would be taken."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """Plain sentences; empty when ready."""
        ...

    @property
    def warm(self) -> int:
        """How many kernels wait."""
        ...

    @property
    def engine(self) -> str:
        """The provisioner's name."""
        ...


class RunService(Protocol):
    """`sessions.service.Service`, as far as HTTP needs it."""

    async def run(self, request: RunRequest) -> Result:
        """Run and wait until the end is committed. Raises sessions.errors.*."""
        ...

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        """An artifact with its bytes. Raises NotFound."""
        ...

    def readiness(self) -> Readiness:
        """What /readyz says."""
        ...


class InFlight:
    """Counts the requests that have no answer yet, so that a server can end when there are none."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __repr__(self) -> str:
        return f"<InFlight {self._count}>"

    def enter(self) -> None:
        """One more."""
        self._count += 1
        self._none.clear()

    def leave(self) -> None:
        """One less."""
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def wait_for_none(self) -> None:
        """Return once every answer has been written."""
        await self._none.wait()


class BufferedBodies:
    """Counts the bytes of request bodies that are in memory, over all connections."""

    def __init__(self) -> None:
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<BufferedBodies {self._bytes}>"

    def take(self, size_bytes: int, limit_bytes: int) -> bool:
        """Count these too, unless that would be more than the limit."""
        if self._bytes + size_bytes > limit_bytes:
            return False
        self._bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """These are gone."""
        self._bytes -= size_bytes


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by all handlers of one server. `public_url` is empty where URLs follow the request's own host."""

    service: RunService
    doorkeeper: Doorkeeper
    site: SiteRules
    limits: Limits
    languages: Mapping[str, str]
    public_url: str = ""
    in_flight: InFlight = field(default_factory=InFlight)
    bodies: BufferedBodies = field(default_factory=BufferedBodies)
