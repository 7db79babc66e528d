"""What every handler is given by the composition root, and the part of the service that the HTTP face calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from gateway.auth import Doorkeeper, SiteRules
from gateway.http.base.bodies import BufferedBodies
from gateway.http.base.notebook_turns import NotebookTurns
from gateway.http.base.streams import Streams
from sessions.jupyter.client import ClientConnection
from sessions.jupyter.notebook_sessions import NotebookSessions
from sessions.model import (
    Artifact,
    ArtifactId,
    Event,
    JupyterSession,
    Result,
    RunId,
    RunQuery,
    RunRecord,
    RunRequest,
    RunSummary,
    SessionId,
    SessionRequest,
    SessionView,
    TenantId,
)
from sessions.ports import KernelFiles
from sessions.settings import Limits, SessionLimits


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
    """`sessions.service.Service`, as far as HTTP needs it. Everything that takes a tenant raises NotFound to others."""

    # --- runs

    async def run(self, request: RunRequest) -> Result:
        """Run and wait until the end is committed. Raises sessions.errors.*."""
        ...

    async def begin(self, request: RunRequest) -> RunId:
        """Take a run on; it is recorded then. Under an `idempotency_key` that is known: the run that has it.

        Raises sessions.errors.*; nothing was run then.
        """
        ...

    async def result(self, run_id: RunId) -> Result:
        """Wait for the end of a run. Raises NotFound, Gone, and EndNotStored."""
        ...

    def follow(self, run_id: RunId, after: int) -> AsyncIterator[Sequence[Event]]:
        """The committed events with a `seq` above `after`, as they come, up to and with `end`. Leaving stops no run."""
        ...

    async def get_run(self, tenant: TenantId, run_id: RunId) -> RunRecord:
        """A run. While it lives, `result` is what has come of it so far. Raises NotFound, Gone."""
        ...

    async def get_events(self, tenant: TenantId, run_id: RunId) -> tuple[RunRecord, Sequence[Event]]:
        """A run with all that is committed of its events. Raises as `get_run` does."""
        ...

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Runs, newest first."""
        ...

    async def cancel(self, tenant: TenantId, run_id: RunId) -> None:
        """Have a run end as `cancelled`; one that has ended stays as it is. Raises NotFound, Conflict."""
        ...

    async def interrupt(self, tenant: TenantId, run_id: RunId) -> None:
        """Interrupt a run, as Ctrl-C would. Raises NotFound, Conflict when it is not running here."""
        ...

    async def answer_input(self, tenant: TenantId, run_id: RunId, value: str) -> None:
        """Answer the `input()` that a run waits in. Raises NotFound, Conflict when it does not wait in one."""
        ...

    def waits_for_input(self, run_id: RunId) -> bool:
        """Whether it waits in `input()` now."""
        ...

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        """An artifact with its bytes. Raises NotFound."""
        ...

    # --- sessions

    async def create_session(self, asked: SessionRequest) -> SessionView:
        """Make a session. Raises Conflict when there is one with its id, TooManyRequests, Unavailable."""
        ...

    def list_sessions(self, tenant: TenantId) -> list[SessionView]:
        """A tenant's sessions, oldest first."""
        ...

    def get_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        """One of them. Raises NotFound, as all that follow do."""
        ...

    def session_of_kernel(self, tenant: TenantId, kernel_id: str) -> SessionView:
        """The one of this public kernel id, or of this `session_id`."""
        ...

    async def name_for_jupyter(
        self, tenant: TenantId, session_id: SessionId, jupyter: JupyterSession, above: int
    ) -> SessionView:
        """Record what Jupyter's REST API calls it. Raises Conflict when it has another name there."""
        ...

    @property
    def jupyter(self) -> NotebookSessions:
        """What Jupyter's REST API makes of them."""
        ...

    async def renew_session(
        self, tenant: TenantId, session_id: SessionId, *, idle_timeout_s: float | None, max_lifetime_s: float | None
    ) -> SessionView:
        """Start its idle time anew, and change the time-outs that are given. Raises InvalidRequest."""
        ...

    async def delete_session(self, tenant: TenantId, session_id: SessionId) -> None:
        """End it; what runs in it is cancelled."""
        ...

    async def interrupt_session(self, tenant: TenantId, session_id: SessionId) -> None:
        """Interrupt what runs in it, as Ctrl-C would."""
        ...

    async def restart_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        """Give it a fresh kernel; files stay. What runs is cancelled, what waits goes on afterwards."""
        ...

    async def session_runs(self, tenant: TenantId, session_id: SessionId, newest: int) -> list[RunSummary]:
        """Its ended runs, oldest first, but no more than so many of the newest."""
        ...

    async def attach(self, tenant: TenantId, session_id: SessionId, client: str | None) -> ClientConnection:
        """Let a Jupyter client at its kernel, which comes back as the same `client`. Raises TooManyRequests."""
        ...

    async def session_files(self, tenant: TenantId, session_id: SessionId) -> KernelFiles:
        """The files below its working directory. Raises Unavailable when its sandbox is out of reach."""
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


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by all handlers of one server. `public_url` is empty where URLs follow the request's own host.

    `started_at` is what Jupyter clients are told.
    """

    service: RunService
    doorkeeper: Doorkeeper
    site: SiteRules
    limits: Limits
    session_limits: SessionLimits
    languages: Mapping[str, str]
    public_url: str
    bodies: BufferedBodies
    in_flight: InFlight = field(default_factory=InFlight)
    streams: Streams = field(default_factory=Streams)
    notebooks: NotebookTurns = field(default_factory=NotebookTurns)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
