"""What the engine needs from the outside world, as Protocols, and the records of its sandboxes.

Only `gateway.app` names the adapters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from sessions.measures.written import WrittenBytes
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactRef,
    Batch,
    Event,
    GatewayId,
    KernelId,
    Result,
    Run,
    RunId,
    RunQuery,
    RunRecord,
    RunSummary,
    Session,
    TenantId,
)
from sessions.settings import Limits


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """All that a provisioner needs to start one supervisor.

    `socket_dir` is a host directory that holds the listening socket named `kernel_image.protocol.SOCKET_NAME`; the
    sandbox may read it and must not be able to write to it. `credential` goes into the supervisor's environment only.
    `kernel_name` is a Jupyter kernelspec name. After `orphan_timeout_s` without a gateway the sandbox ends.
    """

    kernel_id: KernelId
    gateway_id: GatewayId
    credential: str = field(repr=False)
    socket_dir: Path
    limits: Limits
    kernel_name: str = "python3"
    preload: tuple[str, ...] = ()
    orphan_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class ForkedKernel:
    """A kernel process that was forked into a sandbox: its id there, and which preloads it lacks, by module."""

    pid: int
    failed_preloads: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fate:
    """How a sandbox ended, according to the engine. `exit_code` is None if the engine does not know."""

    exit_code: int | None
    oom: bool


@dataclass(frozen=True, slots=True)
class ZygoteFigures:
    """A process that forks kernels into sandboxes: whether it is up, and how many forks went well, and did not."""

    is_up: bool
    forks: int
    failed_forks: int


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """Connections to the database that serve one kind of call: how many there are, are in use, and may be."""

    name: str
    open: int
    in_use: int
    most: int


class Provisioner(Protocol):
    """One container engine: starts, lists and ends sandboxes, and does not know what runs in them.

    Every method raises `EngineUnavailable` when the engine itself does not answer.
    """

    name: str

    async def launch(self, spec: LaunchSpec) -> None:
        """Start the supervisor of `spec`. Returns once it has been started, not once it has connected.

        On failure nothing is left behind.
        """
        ...

    async def list(self) -> list[KernelId]:
        """The kernels of this gateway's sandboxes, including half-made and dead ones; never another gateway's."""
        ...

    async def kill(self, kernel_id: KernelId) -> None:
        """End the sandbox and remove all of it. No error if there is none."""
        ...

    async def fate(self, kernel_id: KernelId) -> Fate | None:
        """How the sandbox ended; None while it lives, or when the engine does not know."""
        ...

    async def fork(self, kernel_id: KernelId, number: int) -> ForkedKernel:
        """Fork a kernel into a sandbox from outside, as its supervisor's settings say it may ask for.

        Raises `EngineUnavailable`; then the supervisor forks one itself.
        """
        ...

    def stop_forking(self, why: str) -> None:
        """Fork no more from outside: a supervisor has found that what came was not like its sandbox."""
        ...

    def warnings(self) -> tuple[str, ...]:
        """What is not as it should be, although launches work, in sentences."""
        ...

    def zygote(self) -> ZygoteFigures | None:
        """The process that forks kernels from outside; None where there is to be none."""
        ...

    async def check(self) -> None:
        """Raise `EngineUnavailable`, saying what to do, unless a launch could work now."""
        ...

    def missing_limits(self, seen: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
        """Which of `limits` a sandbox lacks that says it has `seen`, as phrases. A sandbox may say anything."""
        ...

    async def close(self) -> None:
        """Release this adapter's own threads and connections. Sandboxes are not touched."""
        ...


class Store(Protocol):
    """Where runs, events and artifacts are kept. Returning means committed.

    Every awaited method raises `StoreUnavailable` when the database is out of reach, in bounded time. `written` is
    how much content this store has committed.
    """

    written: WrittenBytes

    async def add_run(self, run: Run) -> RunRecord | None:
        """Record a run as `queued` (or `running` when it has a `kernel_id`). Repeating it is harmless.

        Returns None, or the run that has this tenant's `idempotency_key` already; then nothing is added.
        """
        ...

    async def start_run(self, run_id: RunId, kernel_id: KernelId, started_at: datetime) -> None:
        """Record that an unfinished run is `running` on this kernel. Raises NotFound when there is no such run."""
        ...

    async def withdraw_run(self, run_id: RunId) -> None:
        """Remove an unfinished run that was sent to no kernel, without a trace. No error if unknown."""
        ...

    async def append(self, run_id: RunId, batch: Batch) -> None:
        """Add events, artifacts and progress to an unfinished run. Repeating a batch is harmless."""
        ...

    async def finish_run(
        self, result: Result, batch: Batch, finished_at: datetime, session: Session | None = None
    ) -> None:
        """Add the last events and artifacts and the final answer, in one transaction, and forget the run's `inputs`.

        Repeating it changes nothing.

        The same transaction updates the run's session: the totals of its runs; when it was last used, which never goes
        back; and its kernel, generation and news, these only if its version is above the stored one.
        """
        ...

    async def get_run(self, run_id: RunId) -> RunRecord | None:
        """A run without its `inputs`, or None; an id that is no UUID is unknown."""
        ...

    async def find_run(self, tenant: TenantId, idempotency_key: str) -> RunRecord | None:
        """The run under this key, or None."""
        ...

    async def run_bytes(self, run_id: RunId) -> int:
        """How many bytes of text and JSON a run has; 0 for one that is not there."""
        ...

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Runs, newest first, without those that retention has removed."""
        ...

    async def get_events(self, run_id: RunId, after: int, limit: int) -> list[Event]:
        """At most `limit` events with a `seq` above `after`, in order."""
        ...

    async def unfinished_runs(self, gateway_id: GatewayId) -> list[RunRecord]:
        """This gateway's runs that have not ended, in the order in which they were added, with their `inputs`.

        Takes them over: from then on other stores cannot write to them, as if they had ended. Read their events after
        this call: a write that was under way has been committed by then, or never will be.
        """
        ...

    async def get_artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        """An artifact with its bytes, or None."""
        ...

    async def find_artifact(self, artifact_id: ArtifactId) -> ArtifactRef | None:
        """An artifact without its bytes, or None."""
        ...

    async def read_artifact(self, artifact_id: ArtifactId, offset: int, size_bytes: int) -> bytes:
        """At most so many of its bytes; none where there are no more, or retention has removed it."""
        ...

    async def add_session(self, session: Session) -> Session | None:
        """Record a session. Returns None, or the one that has its id already; then nothing is added."""
        ...

    async def update_session(self, session: Session) -> None:
        """Record a session's kernel, generation and news, if its version is above the stored one. No error if unknown.

        Otherwise the stored one is newer, or this one, and nothing changes.
        """
        ...

    async def renew_session(self, session: Session) -> None:
        """Record the two time-outs of a session, when it was last used, and its CPU time and memory, if they are more.

        Also its Jupyter session, if `jupyter_version` is above the stored one. Ignores `version`. No error if unknown.
        """
        ...

    async def remove_session(self, session: Session) -> None:
        """Forget a session; its runs stay. No error if unknown."""
        ...

    async def sessions_of(self, gateway_id: GatewayId) -> list[Session]:
        """This gateway's sessions."""
        ...

    async def remove_expired(self, before: datetime) -> int:
        """Remove the contents of runs created before `before` (retention); returns the number of these runs."""
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` unless the database answers."""
        ...

    async def size_bytes(self) -> int:
        """The size of all there is in the database."""
        ...

    def lanes(self) -> tuple[LaneFigures, ...]:
        """Its connections now."""
        ...

    async def close(self) -> None:
        """Close all connections and end the threads."""
        ...


class Link(Protocol):
    """The gateway's end of one supervisor's WebSocket. Sending on a closed link does nothing."""

    def send_binary(self, data: bytes) -> None:
        """Send one binary frame."""
        ...

    def send_text(self, text: str) -> None:
        """Send one text frame."""
        ...

    def close(self, reason: str) -> None:
        """Close the WebSocket; `reason` is at most 123 bytes."""
        ...


class LinkListener(Protocol):
    """Receives a link's frames. The next frame waits for the returned awaitable (backpressure)."""

    def on_binary(self, data: bytes) -> Awaitable[None] | None:
        """Handle one binary frame."""
        ...

    def on_text(self, text: str) -> Awaitable[None] | None:
        """Handle one text frame."""
        ...

    def on_closed(self) -> None:
        """The link is gone; called exactly once."""
        ...


class Switchboard(Protocol):
    """The Unix sockets that supervisors dial, one per kernel."""

    def open(self, kernel_id: KernelId, accept: Callable[[Link], LinkListener]) -> Path:
        """Listen for this kernel's supervisor; returns the directory to mount. `accept` is called per connection.

        A directory that an earlier gateway made for this kernel is used again: it is mounted in the sandbox.
        """
        ...

    def close(self, kernel_id: KernelId) -> None:
        """Stop listening, drop this kernel's links and remove its directory. Unknown ids are no error."""
        ...

    def release(self, kernel_id: KernelId) -> None:
        """Stop listening and drop this kernel's links, but leave its directory to the next gateway."""
        ...

    def remove_leftovers(self, wanted: Collection[KernelId]) -> None:
        """Remove the directories that an earlier gateway made, except those of the `wanted` kernels."""
        ...


class Clock(Protocol):
    """Time, as a parameter so that tests can control it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...
