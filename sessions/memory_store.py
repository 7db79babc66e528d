"""`sessions.ports.Store` in memory: a real implementation, for tests and experiments, that forgets all at its end.

The contract tests run over it and over the Postgres adapter alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sessions.errors import NotFound, StoreUnavailable
from sessions.model import (
    LOST_RUN,
    Artifact,
    ArtifactId,
    Batch,
    Event,
    EventType,
    GatewayId,
    Result,
    Run,
    RunId,
    RunStatus,
)


@dataclass(slots=True)
class StoredRun:
    """What is kept of one run. With `expired_at` set it is a tombstone: `run` is then the only content left."""

    run: Run
    status: RunStatus
    finished_at: datetime | None = None
    expired_at: datetime | None = None
    result: Result | None = None
    events: dict[int, Event] = field(default_factory=dict)
    artifacts: dict[ArtifactId, Artifact] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Add what is not there yet."""
        for event in batch.events:
            self.events.setdefault(event.seq, event)
        for artifact in batch.artifacts:
            self.artifacts.setdefault(artifact.ref.id, artifact)


class MemoryStore:
    """The state: `runs`, by id, for tests to look into; and `is_reachable`, for tests to take the store away."""

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.runs: dict[RunId, StoredRun] = {}
        self.is_reachable = True
        self._now = now

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self.runs)} runs>"

    async def add_run(self, run: Run) -> None:
        """See `Store`."""
        self._check()
        status = RunStatus.QUEUED if run.kernel_id is None else RunStatus.RUNNING
        self.runs.setdefault(run.run_id, StoredRun(run, status))

    async def append(self, run_id: RunId, batch: Batch) -> None:
        """See `Store`. A finished run stays as it is. Raises NotFound."""
        stored = self._find(run_id)
        if stored.finished_at is None:
            stored.add(batch)

    async def finish_run(self, result: Result, batch: Batch, finished_at: datetime) -> None:
        """See `Store`. A finished run stays as it is. Raises NotFound."""
        stored = self._find(result.run_id)
        if stored.finished_at is None:
            stored.add(batch)
            stored.status, stored.result, stored.finished_at = result.status, result, finished_at

    async def get_artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        """See `Store`."""
        self._check()
        for stored in self.runs.values():
            if artifact_id in stored.artifacts:
                return stored.artifacts[artifact_id]
        return None

    async def mark_lost(self, gateway_id: GatewayId, at: datetime) -> int:
        """See `Store`. Each run's events end with an `end` event that says `lost`."""
        self._check()
        lost = [
            stored
            for stored in self.runs.values()
            if stored.run.gateway_id == gateway_id and stored.finished_at is None
        ]
        for stored in lost:
            seq = max(stored.events, default=0) + 1
            stored.events[seq] = Event(seq, EventType.END, {"status": RunStatus.LOST.value, "error": LOST_RUN})
            stored.status, stored.finished_at = RunStatus.LOST, at
        return len(lost)

    async def remove_expired(self, before: datetime) -> int:
        """See `Store`. The run stays as a tombstone until that, too, is older than `before`."""
        self._check()
        self.runs = {
            run_id: stored
            for run_id, stored in self.runs.items()
            if stored.expired_at is None or stored.expired_at >= before
        }
        due = [stored for stored in self.runs.values() if _is_due(stored, before)]
        for stored in due:
            if stored.finished_at is None:
                stored.status, stored.finished_at = RunStatus.LOST, self._now()
            stored.expired_at = self._now()
            stored.result = None
            stored.events.clear()
            stored.artifacts.clear()
        return len(due)

    async def ping(self) -> None:
        """See `Store`."""
        self._check()

    async def close(self) -> None:
        """See `Store`. What was stored can still be looked at."""
        self.is_reachable = False

    def _check(self) -> None:
        if not self.is_reachable:
            raise StoreUnavailable

    def _find(self, run_id: RunId) -> StoredRun:
        self._check()
        if run_id not in self.runs:
            raise NotFound(f"There is no run {run_id}.")
        return self.runs[run_id]


def _is_due(stored: StoredRun, before: datetime) -> bool:
    if stored.expired_at is not None or stored.run.created_at >= before:
        return False
    time_limit = stored.run.created_at + timedelta(seconds=stored.run.timeout_s)
    return stored.finished_at is not None or time_limit < before
