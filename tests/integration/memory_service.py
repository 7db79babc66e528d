"""The service double: the part of `sessions.service.Service` that HTTP calls, in memory. It runs nothing.

It records what it was asked, counts what was read of runs and artifacts, and answers what the test has laid out: a
result for the next run, or events that the test adds one by one while they are followed. Sessions and their files are
held for real; what Jupyter makes of sessions is the real thing.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from memory_figures import MemoryFigures
from memory_files import MemoryFiles

from sessions.errors import Conflict, Gone, NotFound, TooManyRequests
from sessions.measures.stages import Stages
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    Event,
    EventType,
    GatewayId,
    JupyterSession,
    JupyterSessionId,
    KernelId,
    Result,
    Run,
    RunId,
    RunQuery,
    RunRecord,
    RunRequest,
    RunStatus,
    RunSummary,
    Session,
    SessionId,
    SessionRequest,
    SessionState,
    SessionView,
    TenantId,
)
from sessions.settings import SessionLimits

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class MemoryReadiness:
    ready: bool = True
    reasons: tuple[str, ...] = ()
    warm: int = 2
    engine: str = "memory"
    warnings: tuple[str, ...] = ()


@dataclass
class MemoryRun:
    """A run and its events. `added` is set, and replaced, whenever one is added."""

    request: RunRequest
    record: RunRecord
    events: list[Event] = field(default_factory=list)
    added: asyncio.Event = field(default_factory=asyncio.Event)
    followers: int = 0
    inputs: list[str] = field(default_factory=list)
    interrupts: int = 0

    @property
    def run_id(self) -> RunId:
        return self.record.run.run_id

    def add(self, event_type: EventType, **fields: Any) -> None:
        self.events.append(Event(len(self.events) + 1, event_type, fields))
        self._tell()

    def end(self, status: RunStatus = RunStatus.OK, **fields: Any) -> None:
        """Finish the run; its answer has what its events have printed."""
        text = "".join(event.fields["text"] for event in self.events if event.type is EventType.STDOUT)
        given = {"output": text, "session_id": self.request.session_id, **fields}
        result = Result(run_id=self.run_id, status=status, **given)
        finished_at = self.record.run.created_at + timedelta(seconds=1)
        self.record = replace(self.record, status=status, result=result, finished_at=finished_at)
        self.add(EventType.END, status=status.value, truncated=False, execution_count=None)

    def _tell(self) -> None:
        added, self.added = self.added, asyncio.Event()
        added.set()


@dataclass
class MemoryService:
    """`requests` is what was asked; `next_result` or `next_error` is what the next run gives."""

    requests: list[RunRequest] = field(default_factory=list)
    runs: list[MemoryRun] = field(default_factory=list)
    sessions: dict[tuple[TenantId, SessionId], SessionView] = field(default_factory=dict)
    session_requests: list[SessionRequest] = field(default_factory=list)
    session_limits: SessionLimits = field(default_factory=SessionLimits)
    kernel_names: dict[str, str] = field(default_factory=lambda: {"python": "python3"})
    may_create: asyncio.Event | None = None
    renewals: list[tuple[float | None, float | None]] = field(default_factory=list)
    interrupted: list[SessionId] = field(default_factory=list)
    files: MemoryFiles = field(default_factory=MemoryFiles)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    read_bytes: int = 0
    gets: int = 0
    next_result: dict[str, Any] = field(default_factory=dict)
    next_error: Exception | None = None
    follow_error: Exception | None = None
    state: MemoryReadiness = field(default_factory=MemoryReadiness)
    hold: asyncio.Event | None = None
    finished: int = 0
    figures: MemoryFigures = field(default_factory=MemoryFigures)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    has_finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def stages(self) -> Stages:
        return self.figures.stages

    # --- runs

    async def run(self, request: RunRequest) -> Result:
        await self._take(request)
        self.finished += 1
        self.has_finished.set()
        given = {"run_id": RunId(str(uuid.uuid4())), "status": RunStatus.OK, "output": "", **self.next_result}
        return Result(**{"session_id": request.session_id, **given})

    async def begin(self, request: RunRequest) -> RunId:
        await self._take(request)
        for known in self.runs:
            if request.idempotency_key and known.request.idempotency_key == request.idempotency_key:
                if known.request.sha256() != request.sha256():
                    raise Conflict("This Idempotency-Key was used with another body.")
                return known.run_id
        return self.add_run(request).run_id

    async def _take(self, request: RunRequest) -> None:
        self.requests.append(request)
        self.was_asked.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.next_error is not None:
            raise self.next_error

    async def result(self, run_id: RunId) -> Result:
        memory = self._run(None, run_id)
        while memory.record.result is None:
            await memory.added.wait()
        self.gets += 1
        return memory.record.result

    async def follow(self, run_id: RunId, after: int) -> AsyncIterator[Sequence[Event]]:
        memory = self._run(None, run_id)
        memory.followers += 1
        try:
            while True:
                added = memory.added
                batch = [event for event in memory.events if event.seq > after]
                if batch:
                    yield batch
                    after = batch[-1].seq
                if memory.record.finished_at is not None and after >= len(memory.events):
                    return
                if self.follow_error is not None:
                    raise self.follow_error
                if added is memory.added:
                    await added.wait()
        finally:
            memory.followers -= 1

    async def get_run(self, tenant: TenantId, run_id: RunId) -> RunRecord:
        self.gets += 1
        record = self._run(tenant, run_id).record
        if record.expired_at is not None:
            raise Gone
        return record

    async def run_bytes(self, run_id: RunId) -> int:
        record = self._run(None, run_id).record
        return len(record.run.code) + (0 if record.result is None else len(record.result.output))

    async def stored_bytes(self, run_id: RunId) -> int:
        return await self.run_bytes(run_id)

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        records = [memory.record for memory in reversed(self.runs) if memory.record.run.tenant == query.tenant]
        matching = [
            record
            for record in records
            if query.session_id in (None, record.run.session_id)
            and query.status in (None, record.status)
            and (query.before_number is None or record.number < query.before_number)
            and (query.created_before is None or record.run.created_at < query.created_before)
        ]
        return [_summary(record) for record in matching[: query.limit]]

    async def cancel(self, tenant: TenantId, run_id: RunId) -> None:
        memory = self._run(tenant, run_id)
        if memory.record.finished_at is None:
            memory.end(RunStatus.CANCELLED)

    async def interrupt(self, tenant: TenantId, run_id: RunId) -> None:
        memory = self._run(tenant, run_id)
        if memory.record.finished_at is not None:
            raise Conflict("This run is not running here.")
        memory.interrupts += 1

    async def answer_input(self, tenant: TenantId, run_id: RunId, value: str) -> None:
        memory = self._run(tenant, run_id)
        if not memory.events or memory.events[-1].type is not EventType.INPUT_REQUEST:
            raise Conflict("This run does not wait in input().")
        memory.inputs.append(value)

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        if artifact_id not in self.artifacts:
            raise NotFound
        self.read_bytes += self.artifacts[artifact_id].ref.size_bytes
        return self.artifacts[artifact_id]

    async def artifact_ref(self, artifact_id: ArtifactId) -> ArtifactRef:
        if artifact_id not in self.artifacts:
            raise NotFound
        return self.artifacts[artifact_id].ref

    async def artifact_piece(self, artifact_id: ArtifactId, offset: int, size_bytes: int) -> bytes:
        if artifact_id not in self.artifacts:
            return b""
        piece = self.artifacts[artifact_id].data[offset : offset + size_bytes]
        self.read_bytes += len(piece)
        return piece

    def _run(self, tenant: TenantId | None, run_id: RunId) -> MemoryRun:
        for memory in self.runs:
            if memory.run_id == run_id and tenant in (None, memory.record.run.tenant):
                return memory
        raise NotFound("There is no such run.")

    # --- sessions

    async def create_session(self, asked: SessionRequest) -> SessionView:
        self.session_requests.append(asked)
        session_id = asked.session_id or SessionId(uuid.uuid4().hex)
        if (asked.tenant, session_id) in self.sessions:
            raise Conflict("There is a session with this id.")
        if len(self.list_sessions(asked.tenant)) >= self.session_limits.max_per_tenant:
            raise TooManyRequests("You have as many sessions as you may: end one.", retry_after_s=30)
        if self.may_create is not None:
            await self.may_create.wait()
        session = Session(
            tenant=asked.tenant,
            session_id=session_id,
            gateway_id=GatewayId("g"),
            language=asked.language,
            idle_timeout_s=asked.idle_timeout_s,
            max_lifetime_s=asked.max_lifetime_s,
            created_at=NEW_YEAR,
            last_used_at=NEW_YEAR,
            kernel_id=KernelId("k"),
            jupyter=() if asked.jupyter is None else (asked.jupyter,),
        )
        kernel_name = self.kernel_names[asked.language]
        self.sessions[asked.tenant, session_id] = SessionView(session, SessionState.IDLE, kernel_name, NEW_YEAR)
        return self.sessions[asked.tenant, session_id]

    def list_sessions(self, tenant: TenantId) -> list[SessionView]:
        return [view for (owner, _), view in self.sessions.items() if owner == tenant]

    def get_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        if (tenant, session_id) not in self.sessions:
            raise NotFound("There is no such session.")
        return self.sessions[tenant, session_id]

    def session_of_kernel(self, tenant: TenantId, kernel_id: str) -> SessionView:
        for view in self.list_sessions(tenant):
            if kernel_id in (view.session.public_kernel_id, view.session.session_id):
                return view
        raise NotFound("There is no such kernel.")

    async def put_jupyter_session(
        self, tenant: TenantId, session_id: SessionId, jupyter: JupyterSession
    ) -> SessionView:
        view = self.get_session(tenant, session_id)
        by_id = {**{one.id: one for one in view.session.jupyter}, jupyter.id: jupyter}
        session = replace(view.session, jupyter=tuple(by_id.values()))
        self.sessions[tenant, session_id] = replace(view, session=session)
        return self.sessions[tenant, session_id]

    async def remove_jupyter_session(
        self, tenant: TenantId, session_id: SessionId, jupyter_id: JupyterSessionId
    ) -> None:
        view = self.get_session(tenant, session_id)
        rest = tuple(one for one in view.session.jupyter if one.id != jupyter_id)
        self.sessions[tenant, session_id] = replace(view, session=replace(view.session, jupyter=rest))

    async def renew_session(
        self, tenant: TenantId, session_id: SessionId, *, idle_timeout_s: float | None, max_lifetime_s: float | None
    ) -> SessionView:
        view = self.get_session(tenant, session_id)
        self.renewals.append((idle_timeout_s, max_lifetime_s))
        session = replace(
            view.session,
            last_used_at=view.session.last_used_at + timedelta(seconds=1),
            idle_timeout_s=idle_timeout_s or view.session.idle_timeout_s,
            max_lifetime_s=max_lifetime_s or view.session.max_lifetime_s,
        )
        self.sessions[tenant, session_id] = replace(view, session=session)
        return self.sessions[tenant, session_id]

    async def delete_session(self, tenant: TenantId, session_id: SessionId) -> None:
        self.get_session(tenant, session_id)
        del self.sessions[tenant, session_id]

    async def interrupt_session(self, tenant: TenantId, session_id: SessionId) -> None:
        self.get_session(tenant, session_id)
        self.interrupted.append(session_id)

    async def restart_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        view = self.get_session(tenant, session_id)
        self.sessions[tenant, session_id] = replace(view, state=SessionState.STARTING)
        return self.sessions[tenant, session_id]

    async def session_runs(self, tenant: TenantId, session_id: SessionId, newest: int) -> list[RunSummary]:
        self.get_session(tenant, session_id)
        query = RunQuery(tenant, limit=len(self.runs), session_id=session_id)
        ended = [summary for summary in await self.list_runs(query) if summary.status.is_final()]
        return ended[:newest][::-1]

    async def get_events(self, tenant: TenantId, run_id: RunId) -> tuple[RunRecord, Sequence[Event]]:
        return await self.get_run(tenant, run_id), self._run(tenant, run_id).events

    async def session_files(self, tenant: TenantId, session_id: SessionId) -> MemoryFiles:
        self.get_session(tenant, session_id)
        return self.files

    def readiness(self) -> MemoryReadiness:
        return self.state

    # --- what a test lays out

    def add(self, name: str, data: bytes, kind: ArtifactKind, content_type: str = "text/plain") -> ArtifactRef:
        ref = ArtifactRef(ArtifactId(str(uuid.uuid4())), kind, name, content_type, len(data))
        self.artifacts[ref.id] = Artifact(ref, data)
        return ref

    def add_run(self, request: RunRequest, run_id: str = "") -> MemoryRun:
        number = len(self.runs) + 1
        run = Run(
            run_id=RunId(run_id or str(uuid.uuid4())),
            tenant=request.tenant,
            gateway_id=GatewayId("g"),
            language=request.language,
            code=request.code,
            variables=request.variables,
            timeout_s=request.timeout_s,
            created_at=NEW_YEAR + timedelta(minutes=number),
            session_id=request.session_id,
            traceparent=request.traceparent,
        )
        memory = MemoryRun(request, RunRecord(run, number, RunStatus.RUNNING))
        memory.add(EventType.STARTED, session_id=request.session_id, session_created=None, execution_count=number)
        self.runs.append(memory)
        return memory


def _summary(record: RunRecord) -> RunSummary:
    run = record.run
    usage = record.result.usage if record.result is not None else None
    return RunSummary(
        run.run_id,
        record.number,
        record.status,
        run.language,
        run.created_at,
        record.finished_at,
        run.session_id,
        usage,
    )
