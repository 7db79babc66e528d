"""What the engine needs from the outside world, as Protocols. Only `gateway.app` names the adapters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import Protocol

from sessions.model import (
    Artifact,
    ArtifactId,
    Batch,
    Event,
    Fate,
    FileEntry,
    GatewayId,
    KernelId,
    LaunchSpec,
    Result,
    Run,
    RunId,
    RunQuery,
    RunRecord,
    RunSummary,
    Sandbox,
    Session,
    TenantId,
)


class Provisioner(Protocol):
    """One engine: it starts, lists and ends sandboxes, and knows nothing of what runs inside.

    Every method raises `EngineUnavailable` when the engine itself does not answer.
    """

    name: str

    async def launch(self, spec: LaunchSpec) -> Sandbox:
        """Start the supervisor of `spec`. Returns once it has been started, not once it has connected.

        On failure nothing is left behind.
        """
        ...

    async def list(self) -> list[Sandbox]:
        """This gateway's sandboxes, those half made or already dead included; never another gateway's."""
        ...

    async def kill(self, kernel_id: KernelId) -> None:
        """End the sandbox and remove all that is left of it. Unknown and already gone ids are no error."""
        ...

    async def fate(self, kernel_id: KernelId) -> Fate | None:
        """How the sandbox ended, or None while it lives or where nothing is known of it."""
        ...

    async def check(self) -> None:
        """Raise `EngineUnavailable`, saying what to do, unless a launch could work now."""
        ...

    async def close(self) -> None:
        """Release this adapter's own threads and connections. Sandboxes are not touched."""
        ...


class Store(Protocol):
    """Where runs, events and artifacts are kept. Returning means committed.

    Every method raises `StoreUnavailable` when the database is out of reach, in bounded time.
    """

    async def add_run(self, run: Run) -> RunRecord | None:
        """Record a run as `queued` (or `running` when it has a `kernel_id`). Repeating it is harmless.

        Returns None, or the run that has this tenant's `idempotency_key` already; then nothing is added.
        """
        ...

    async def start_run(self, run_id: RunId, kernel_id: KernelId, started_at: datetime) -> None:
        """A run that lives is `running`, on this kernel now. Raises NotFound for all others."""
        ...

    async def withdraw_run(self, run_id: RunId) -> None:
        """Remove a living run that was never sent to a kernel, as if it had not been asked for. No error if unknown."""
        ...

    async def append(self, run_id: RunId, batch: Batch) -> None:
        """Add events and artifacts to a run that goes on, and its progress. Repeating a batch is harmless."""
        ...

    async def finish_run(
        self, result: Result, batch: Batch, finished_at: datetime, session: Session | None = None
    ) -> None:
        """Add the last events and artifacts and the final answer, in one transaction. Repeating it changes nothing.

        With it goes what the run has changed of its session: what its runs add up to; when it was last used, which
        never goes back; and its kernel, generation and news, these only if its version is above the stored one.
        """
        ...

    async def get_run(self, run_id: RunId) -> RunRecord | None:
        """A run, or None. Anything that is no UUID is simply unknown."""
        ...

    async def find_run(self, tenant: TenantId, idempotency_key: str) -> RunRecord | None:
        """The run under this key, or None."""
        ...

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Runs, newest first. Those that retention has removed are not among them."""
        ...

    async def get_events(self, run_id: RunId, after: int, limit: int) -> list[Event]:
        """At most `limit` events with a `seq` above `after`, in order."""
        ...

    async def unfinished_runs(self, gateway_id: GatewayId) -> list[RunRecord]:
        """This gateway's runs that have not ended, in the order in which they were added.

        Takes them over: nothing that another store writes to them counts any more, as if they had ended. So whoever
        wants their events reads them afterwards: what was still on its way has been committed by then, or never is.
        """
        ...

    async def get_artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        """An artifact with its bytes, or None."""
        ...

    async def add_session(self, session: Session) -> Session | None:
        """Record a session. Returns None, or the one that has its id already; then nothing is added."""
        ...

    async def update_session(self, session: Session) -> None:
        """Record a session's kernel, generation and news, if its version is above the stored one. No error if unknown.

        Not above: then something newer is there, or this itself, and nothing is changed.
        """
        ...

    async def renew_session(self, session: Session) -> None:
        """Record the two time-outs of a session, and when it was last used, which never goes back.

        Also its Jupyter session, if `jupyter_version` is above the stored one. Whatever its `version` is. No error if
        unknown.
        """
        ...

    async def remove_session(self, session: Session) -> None:
        """Forget a session; its runs stay. No error if unknown."""
        ...

    async def sessions_of(self, gateway_id: GatewayId) -> list[Session]:
        """This gateway's sessions."""
        ...

    async def remove_expired(self, before: datetime) -> int:
        """Remove what runs created before `before` have left (retention); returns how many runs that concerned."""
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` unless the database answers."""
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
    """What receives a link's frames. The next frame waits for the returned awaitable (backpressure)."""

    def on_binary(self, data: bytes) -> Awaitable[None] | None:
        """Take one binary frame."""
        ...

    def on_text(self, text: str) -> Awaitable[None] | None:
        """Take one text frame."""
        ...

    def on_closed(self) -> None:
        """The link is gone; called exactly once."""
        ...


class Switchboard(Protocol):
    """Where supervisors dial in: one listening unix socket per kernel."""

    def open(self, kernel_id: KernelId, accept: Callable[[Link], LinkListener]) -> Path:
        """Listen for this kernel's supervisor; returns the directory to mount. `accept` is called per connection.

        A directory that an earlier gateway made for this kernel is used again: it is mounted in the sandbox.
        """
        ...

    def close(self, kernel_id: KernelId) -> None:
        """Stop listening, drop this kernel's links and remove its directory. Unknown ids are no error."""
        ...

    def release(self, kernel_id: KernelId) -> None:
        """Stop listening and drop this kernel's links, but leave its directory to a later gateway."""
        ...

    def remove_leftovers(self, wanted: Collection[KernelId]) -> None:
        """Remove the directories of an earlier gateway on the same data directory, but for those of these kernels."""
        ...


class Clock(Protocol):
    """Time, passed in so that tests can own it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...


class FileReader(Protocol):
    """A file that is open for reading in a sandbox. Raises Unavailable when the sandbox does not answer, or is gone."""

    @property
    def entry(self) -> FileEntry:
        """What it was when it was opened: so many bytes are there to read."""
        ...

    async def read(self) -> bytes:
        """The next piece, at most 256 KiB; empty at the end. Raises Conflict when it has become shorter."""
        ...

    def close(self) -> None:
        """Let it go. Always call this."""
        ...


class FileWriter(Protocol):
    """A file that is being written beside the one it will replace. Raises Unavailable as FileReader does."""

    async def write(self, data: bytes) -> None:
        """Add a piece, at most 256 KiB. Raises TooLarge when the file, or the disk, has no room for it."""
        ...

    async def commit(self) -> tuple[FileEntry, bool]:
        """Put the file in its place in one step; returns it, and whether there was none of that name."""
        ...

    def close(self) -> None:
        """Forget what has not been committed. Always call this."""
        ...


class KernelFiles(Protocol):
    """The files below a kernel's working directory, as its supervisor sees them.

    A path is relative, without `..`. Raises NotFound, InvalidRequest for what is no regular file, or lies behind a
    link; Unavailable when the sandbox does not answer in time, or is gone.
    """

    async def list(self) -> list[FileEntry]:
        """All of them, by path, up to the supervisor's own bound."""
        ...

    async def open(self, path: str) -> FileReader:
        """Open one for reading."""
        ...

    async def create(self, path: str, limit_bytes: int) -> FileWriter:
        """Begin to write one, with the directories that it needs."""
        ...

    async def remove(self, path: str) -> None:
        """Remove one."""
        ...
