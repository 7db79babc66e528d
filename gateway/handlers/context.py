"""What every handler is given by the composition root, and the part of the service that the HTTP face calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by all handlers of one server. `public_url` is empty where URLs follow the request's own host."""

    service: RunService
    doorkeeper: Doorkeeper
    site: SiteRules
    limits: Limits
    languages: Mapping[str, str]
    public_url: str = ""
