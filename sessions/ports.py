"""What the engine needs from the outside world, as Protocols. Only `gateway.app` names the adapters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from sessions.model import (
    Artifact,
    ArtifactId,
    Batch,
    Fate,
    GatewayId,
    KernelId,
    LaunchSpec,
    Result,
    Run,
    RunId,
    Sandbox,
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

    async def add_run(self, run: Run) -> None:
        """Record a run as `queued` (or `running` when it has a `kernel_id`)."""
        ...

    async def append(self, run_id: RunId, batch: Batch) -> None:
        """Add events and artifacts to a run that goes on. Repeating a batch is harmless."""
        ...

    async def finish_run(self, result: Result, batch: Batch, finished_at: datetime) -> None:
        """Add the last events and artifacts and the final answer, in one transaction. Repeating it changes nothing."""
        ...

    async def get_artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        """An artifact with its bytes, or None."""
        ...

    async def mark_lost(self, gateway_id: GatewayId, at: datetime) -> int:
        """Give every unfinished run of this gateway the status `lost`; returns how many there were."""
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
        """Listen for this kernel's supervisor; returns the directory to mount. `accept` is called per connection."""
        ...

    def close(self, kernel_id: KernelId) -> None:
        """Stop listening, drop this kernel's links and remove its directory. Unknown ids are no error."""
        ...

    def remove_leftovers(self) -> None:
        """Remove the directories of an earlier gateway on the same data directory."""
        ...


class Clock(Protocol):
    """Time, passed in so that tests can own it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...
