"""`sessions.ports.Store` in memory: a real implementation, for tests and experiments, that forgets all at its end.

The contract tests run over it and over the Postgres adapter alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice

from sessions.errors import NotFound, StoreUnavailable
from sessions.measures.written import WrittenBytes, bytes_of
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactRef,
    Batch,
    Event,
    GatewayId,
    KernelId,
    Progress,
    Result,
    Run,
    RunId,
    RunQuery,
    RunRecord,
    RunStatus,
    RunSummary,
    Session,
    SessionId,
    TenantId,
    Usage,
)
from sessions.ports import LaneFigures


@dataclass(slots=True)
class StoredRun:
    """What is kept of one run. With `expired_at` set it is a tombstone: `run` is then the only content left."""

    run: Run
    number: int
    status: RunStatus
    finished_at: datetime | None = None
    expired_at: datetime | None = None
    result: Result | None = None
    progress: Progress | None = None
    events: dict[int, Event] = field(default_factory=dict)
    artifacts: dict[ArtifactId, Artifact] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Add what is not there yet; progress goes only forward."""
        for event in batch.events:
            self.events.setdefault(event.seq, event)
        for artifact in batch.artifacts:
            self.artifacts.setdefault(artifact.ref.id, artifact)
        if batch.progress and (self.progress is None or batch.progress.taken_seq >= self.progress.taken_seq):
            self.progress = batch.progress

    def size_bytes(self) -> int:
        """As `Store.run_bytes` has it, roughly."""
        made = (self.result.output, self.result.stderr, *self.result.results) if self.result is not None else ()
        return self.run.text_bytes() + sum(len(str(part)) for part in made)

    def record(self) -> RunRecord:
        """As `Store` answers."""
        return RunRecord(
            run=replace(self.run, inputs=None),
            number=self.number,
            status=self.status,
            finished_at=self.finished_at,
            expired_at=self.expired_at,
            result=self.result,
            progress=self.progress,
        )

    def summary(self) -> RunSummary:
        """As lists have it."""
        return RunSummary(
            run_id=self.run.run_id,
            number=self.number,
            status=self.status,
            language=self.run.language,
            created_at=self.run.created_at,
            finished_at=self.finished_at,
            session_id=self.run.session_id,
            usage=None if self.result is None else self.result.usage,
        )

    def expire(self, at: datetime) -> None:
        """Remove all but a tombstone."""
        if self.finished_at is None:
            self.status, self.finished_at = RunStatus.LOST, at
        self.run = replace(self.run, code="", variables={}, jupyter=None, inputs=None, traceparent=None)
        self.expired_at = at
        self.result = self.progress = None
        self.events.clear()
        self.artifacts.clear()


class MemoryStore:
    """The state: `runs` and `sessions`, by their ids, for tests to look into, and `_last_number`, which a run had.

    `is_reachable` is for tests to take the store away.
    """

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.runs: dict[RunId, StoredRun] = {}
        self.sessions: dict[tuple[TenantId, SessionId], Session] = {}
        self.is_reachable = True
        self.written = WrittenBytes()
        self._last_number = 0
        self._now = now

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self.runs)} runs, {len(self.sessions)} sessions>"

    async def add_run(self, run: Run) -> RunRecord | None:
        self._check()
        if run.run_id in self.runs:
            return None
        if run.idempotency_key is not None and (existing := await self.find_run(run.tenant, run.idempotency_key)):
            return existing
        self._last_number += 1
        status = RunStatus.QUEUED if run.kernel_id is None else RunStatus.RUNNING
        self.runs[run.run_id] = StoredRun(run, self._last_number, status)
        return None

    async def start_run(self, run_id: RunId, kernel_id: KernelId, started_at: datetime) -> None:
        stored = self._find(run_id)
        if stored.finished_at is not None:
            raise NotFound(f"The run {run_id} has ended.")
        if stored.run.kernel_id not in (None, kernel_id):
            stored.progress = None
        stored.run = replace(stored.run, kernel_id=kernel_id, started_at=started_at)
        stored.status = RunStatus.RUNNING

    async def withdraw_run(self, run_id: RunId) -> None:
        """A finished run stays as it is."""
        self._check()
        if run_id in self.runs and self.runs[run_id].finished_at is None:
            del self.runs[run_id]

    async def append(self, run_id: RunId, batch: Batch) -> None:
        """A finished run stays as it is. Raises NotFound."""
        stored = self._find(run_id)
        if stored.finished_at is None:
            stored.add(batch)
        self.written += bytes_of(batch)

    async def finish_run(
        self, result: Result, batch: Batch, finished_at: datetime, session: Session | None = None
    ) -> None:
        """A finished run stays as it is. Raises NotFound."""
        stored = self._find(result.run_id)
        if stored.finished_at is not None:
            return
        stored.add(batch)
        stored.run = replace(stored.run, inputs=None)
        self.written += bytes_of(batch, result)
        stored.status, stored.result, stored.finished_at = result.status, result, finished_at
        stored.progress = None
        if session is not None and (kept := self._same(session)):
            self.sessions[_name(session)] = replace(
                _with_kernel(kept, session),
                last_used_at=max(kept.last_used_at, session.last_used_at),
                runs=session.runs,
                usage=_largest(kept.usage, session.usage, wall_ms=session.usage.wall_ms),
            )

    async def get_run(self, run_id: RunId) -> RunRecord | None:
        self._check()
        return self.runs[run_id].record() if run_id in self.runs else None

    async def run_bytes(self, run_id: RunId) -> int:
        self._check()
        return self.runs[run_id].size_bytes() if run_id in self.runs else 0

    async def find_run(self, tenant: TenantId, idempotency_key: str) -> RunRecord | None:
        self._check()
        for stored in self.runs.values():
            if (stored.run.tenant, stored.run.idempotency_key) == (tenant, idempotency_key):
                return stored.record()
        return None

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        self._check()
        matching = (stored for stored in reversed(self.runs.values()) if _matches(stored, query))
        return [stored.summary() for stored in islice(matching, query.limit)]

    async def get_events(self, run_id: RunId, after: int, limit: int) -> list[Event]:
        self._check()
        if run_id not in self.runs:
            return []
        return [event for seq, event in sorted(self.runs[run_id].events.items()) if seq > after][:limit]

    async def unfinished_runs(self, gateway_id: GatewayId) -> list[RunRecord]:
        """Takes nothing over: this is one store, whoever uses it, and no other could write to its runs."""
        self._check()
        return [
            replace(stored.record(), run=stored.run)
            for stored in self.runs.values()
            if stored.run.gateway_id == gateway_id and stored.finished_at is None
        ]

    async def get_artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        self._check()
        for stored in self.runs.values():
            if (artifact := stored.artifacts.get(artifact_id)) is None:
                continue
            if artifact.data or not artifact.ref.size_bytes:
                return artifact
            data = [one.data for one in stored.artifacts.values() if one.data]
            same = [one for one in data if hashlib.sha256(one).digest() == artifact.sha256]
            return replace(artifact, data=same[0]) if same else None
        return None

    async def find_artifact(self, artifact_id: ArtifactId) -> ArtifactRef | None:
        artifact = await self.get_artifact(artifact_id)
        return None if artifact is None else artifact.ref

    async def read_artifact(self, artifact_id: ArtifactId, offset: int, size_bytes: int) -> bytes:
        artifact = await self.get_artifact(artifact_id)
        return b"" if artifact is None else artifact.data[offset : offset + size_bytes]

    async def add_session(self, session: Session) -> Session | None:
        """One of another gateway whose time was over when this one was made gives way to it."""
        self._check()
        existing = self.sessions.get(_name(session))
        if existing is not None:
            is_foreign = existing.gateway_id != session.gateway_id
            if not (is_foreign and existing.expires_at <= session.created_at):
                return None if self._same(session) else existing
        self.sessions[_name(session)] = session
        return None

    async def update_session(self, session: Session) -> None:
        """One of the same name that is not this one is left alone."""
        self._check()
        if kept := self._same(session):
            self.sessions[_name(session)] = _with_kernel(kept, session)

    async def renew_session(self, session: Session) -> None:
        """One of the same name that is not this one is left alone."""
        self._check()
        if kept := self._same(session):
            newer = session if session.jupyter_version > kept.jupyter_version else kept
            self.sessions[_name(session)] = replace(
                kept,
                jupyter=newer.jupyter,
                jupyter_version=newer.jupyter_version,
                last_used_at=max(kept.last_used_at, session.last_used_at),
                idle_timeout_s=session.idle_timeout_s,
                max_lifetime_s=session.max_lifetime_s,
                usage=_largest(kept.usage, session.usage, wall_ms=kept.usage.wall_ms),
            )

    async def remove_session(self, session: Session) -> None:
        """One of the same name that is not this one is left alone."""
        self._check()
        if self._same(session):
            del self.sessions[_name(session)]

    async def sessions_of(self, gateway_id: GatewayId) -> list[Session]:
        """Oldest first."""
        self._check()
        mine = (session for session in self.sessions.values() if session.gateway_id == gateway_id)
        return sorted(mine, key=lambda session: (session.created_at, *_name(session)))

    async def remove_expired(self, before: datetime) -> int:
        """The run stays as a tombstone until that, too, is older than `before`."""
        self._check()
        self.runs = {
            run_id: stored
            for run_id, stored in self.runs.items()
            if stored.expired_at is None or stored.expired_at >= before
        }
        due = [stored for stored in self.runs.values() if _is_due(stored, before)]
        for stored in due:
            stored.expire(self._now())
        return len(due)

    async def ping(self) -> None:
        self._check()

    async def size_bytes(self) -> int:
        self._check()
        return sum(stored.size_bytes() for stored in self.runs.values())

    def lanes(self) -> tuple[LaneFigures, ...]:
        """None: there are no connections."""
        return ()

    async def close(self) -> None:
        """What was stored can still be looked at."""
        self.is_reachable = False

    def _check(self) -> None:
        if not self.is_reachable:
            raise StoreUnavailable

    def _find(self, run_id: RunId) -> StoredRun:
        self._check()
        if run_id not in self.runs:
            raise NotFound(f"There is no run {run_id}.")
        return self.runs[run_id]

    def _same(self, session: Session) -> Session | None:
        """What is stored of this session, unless one that is not it has its name."""
        kept = self.sessions.get(_name(session))
        is_same = kept and (kept.gateway_id, kept.created_at) == (session.gateway_id, session.created_at)
        return kept if is_same else None


def _name(session: Session) -> tuple[TenantId, SessionId]:
    return session.tenant, session.session_id


def _with_kernel(kept: Session, changed: Session) -> Session:
    """What is stored, with its kernel and the news of it where those are newer."""
    if changed.version <= kept.version:
        return kept
    return replace(
        kept, kernel_id=changed.kernel_id, generation=changed.generation, news=changed.news, version=changed.version
    )


def _matches(stored: StoredRun, query: RunQuery) -> bool:
    run = stored.run
    return (
        stored.expired_at is None
        and run.tenant == query.tenant
        and query.session_id in (None, run.session_id)
        and query.status in (None, stored.status)
        and (query.before_number is None or stored.number < query.before_number)
        and (query.created_before is None or run.created_at < query.created_before)
        and (query.created_from is None or run.created_at >= query.created_from)
    )


def _is_due(stored: StoredRun, before: datetime) -> bool:
    if stored.expired_at is not None or stored.run.created_at >= before:
        return False
    time_limit = stored.run.created_at + timedelta(seconds=stored.run.timeout_s)
    return stored.finished_at is not None or time_limit < before


def _largest(one: Usage, other: Usage, *, wall_ms: float) -> Usage:
    return Usage(wall_ms, max(one.cpu_ms, other.cpu_ms), max(one.memory_peak_bytes, other.memory_peak_bytes))
