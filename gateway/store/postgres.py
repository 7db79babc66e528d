"""`sessions.ports.Store` on PostgreSQL: what is written when, what a repeated call does, and how long it may take.

The SQL is in `statements`, the mapping from rows to records in `rows`, the threads in `db_threads`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Executable, Row, text

from gateway.store import rows, writing
from gateway.store.db_threads import DbThreads, Work
from gateway.store.engine import make_engine
from gateway.store.held_runs import HeldRuns
from gateway.store.quick_lane import QuickLane
from gateway.store.statements import Prepared, reading, retention, runs, sessions
from sessions.errors import NotFound, StoreBusy, StoreUnavailable
from sessions.measures.written import WrittenBytes, bytes_of, text_bytes
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
from sessions.ports import LaneFigures
from sessions.sanitize import canonical_uuid

T = TypeVar("T")

_BULK_BYTES_PER_S = 5 << 20
"""How slow the database may be with bulk before it counts as hung."""

_LARGEST_ROW_BYTES = 64 << 20

_CONNECT_SHARE = 0.6
"""Of a call's time, what connecting may take: a thread that connects cannot be interrupted."""

_EXPIRY_TIMEOUT_S = 120.0

_WAIT_SHARE = 1.2
"""Of a call's time, how long it may wait for a thread."""

_BULK_WAIT_S = 30.0
_BULK_BYTES = 256 << 10
"""What is larger goes by the lane for bulk."""

_CLOSING_BYTES = 4 << 20
"""Behind what is larger its connection is closed: libpq's buffers only grow."""

_SIZE = text("SELECT pg_database_size(current_database())")

_log = structlog.get_logger(__name__)


class PostgresStore:
    """Made without connecting; the database must have been through `migrate.migrate`.

    There are two lanes of threads and connections: one for what is small, and one for bulk, which may take its time.
    What every run writes goes by the quick lane first, which has no threads, as long as that is small and goes well.

    The state: `_held`, the runs added or taken over here and not finished yet; `_is_reachable` and `_lack`, as last
    logged.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 5.0, pool_size: int = 2, bulk_pool_size: int = 3, quick_pool_size: int = 4
    ) -> None:
        """At most as many connections as the pools have; config.yaml, the README and `database.url` say so too."""
        connect_timeout_s = timeout_s * _CONNECT_SHARE
        self._engine = make_engine(url, pool_size=pool_size, connect_timeout_s=connect_timeout_s)
        self._calls = DbThreads(self._engine, threads=pool_size, wait_s=timeout_s * _WAIT_SHARE)
        self._bulk_engine = make_engine(url, pool_size=bulk_pool_size, connect_timeout_s=connect_timeout_s)
        self._bulk_calls = DbThreads(self._bulk_engine, threads=bulk_pool_size, wait_s=_BULK_WAIT_S, name="store-bulk")
        self._quick = QuickLane(url, runs.QUICK, connections=quick_pool_size, connect_timeout_s=connect_timeout_s)
        self._timeout_s = timeout_s
        self._held = HeldRuns()
        self._is_reachable = True
        self._lack = ""
        self.written = WrittenBytes()

    def __repr__(self) -> str:
        return f"<PostgresStore {'reachable' if self._is_reachable else 'out of reach'}, {len(self._held)} living runs>"

    async def add_run(self, run: Run) -> RunRecord | None:
        """Survives a crash of the gateway at once, and one of PostgreSQL while this store lives.

        With an idempotency key, or without a kernel, it survives a power cut, too.
        """
        epoch = self._held.epoch(run.run_id)
        size_bytes = run.source_bytes()

        def work(connection: Connection) -> RunRecord | None:
            existing = _add_run(connection, run, epoch)
            _close_behind(connection, size_bytes)
            return existing

        existing = None
        if not await self._add_quickly(run, epoch, size_bytes):
            existing = await self._run(work, is_bulk=size_bytes > _BULK_BYTES)
        if existing is None:
            self._held.added(run)
        return existing

    async def _add_quickly(self, run: Run, epoch: int, size_bytes: int) -> bool:
        """False when there may be another run in its way."""
        if size_bytes > _BULK_BYTES or not self._quick.is_free():
            return False
        return (
            await self._run_quickly(runs.ADD_RUN_QUICKLY, runs.add_parameters(run, epoch), self._timeout_s) is not None
        )

    async def start_run(self, run_id: RunId, kernel_id: KernelId, started_at: datetime) -> None:
        """Survives a power cut."""
        parameters = runs.start_parameters(run_id, self._held.epoch(run_id), kernel_id, started_at)

        def work(connection: Connection) -> bool:
            return connection.execute(runs.START_RUN, parameters).one_or_none() is not None

        is_started = await self._run_quickly(runs.START_RUN_QUICKLY, parameters, self._timeout_s) is not None
        if not is_started and not await self._run(lambda connection: self._held.write(connection, run_id, work)):
            raise NotFound(f"The run {run_id} has ended, or another gateway has taken it over.")
        self._held.started(run_id, kernel_id, started_at)

    async def withdraw_run(self, run_id: RunId) -> None:
        """A finished run stays as it is."""
        parameters = {"run_id": run_id, "epoch": self._held.epoch(run_id)}
        await self._run(lambda connection: connection.execute(runs.WITHDRAW_RUN, parameters))
        self._held.ended(run_id)

    async def append(self, run_id: RunId, batch: Batch) -> None:
        """A finished run stays as it is. Raises NotFound.

        Progress that is less than what is stored is left out. So is all of it when a later gateway holds the run: there
        is one to a data directory, so this process is on its way out, and its followers hang up with it.
        """
        epoch = self._held.epoch(run_id)
        await self._persist(
            run_id,
            lambda connection: writing.append(connection, run_id, epoch, batch),
            lambda: writing.quick_append(run_id, epoch, batch),
            bytes_of(batch),
        )

    async def finish_run(
        self, result: Result, batch: Batch, finished_at: datetime, session: Session | None = None
    ) -> None:
        """A finished run stays as it is. Raises NotFound."""
        epoch = self._held.epoch(result.run_id)

        def work(connection: Connection) -> bool:
            return writing.finish(connection, result, epoch, batch, finished_at, session=session)

        def quick() -> writing.QuickWrite | None:
            return writing.quick_finish(result, epoch, batch, finished_at, session=session)

        await self._persist(result.run_id, work, quick, bytes_of(batch, result))
        self._held.ended(result.run_id)

    async def get_run(self, run_id: RunId) -> RunRecord | None:
        if (wanted := canonical_uuid(run_id)) is None:
            return None
        return await self._record(reading.run(RunId(wanted)))

    async def run_bytes(self, run_id: RunId) -> int:
        if (wanted := canonical_uuid(run_id)) is None:
            return 0
        row = await self._row(reading.run_bytes(RunId(wanted)))
        return 0 if row is None else int(row.size_bytes)

    async def find_run(self, tenant: TenantId, idempotency_key: str) -> RunRecord | None:
        return await self._record(reading.run_of_key(tenant, idempotency_key))

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        return [rows.to_summary(row) for row in await self._rows(reading.listed_runs(query))]

    async def get_events(self, run_id: RunId, after: int, limit: int) -> list[Event]:
        if (wanted := canonical_uuid(run_id)) is None:
            return []
        return [rows.to_event(row) for row in await self._rows(reading.events_after(RunId(wanted), after, limit))]

    async def unfinished_runs(self, gateway_id: GatewayId) -> list[RunRecord]:
        """Whatever is being written to them is waited for."""
        taken = await self._run(lambda connection: _take_over(connection, gateway_id))
        for row in taken:
            self._held.taken_over(row.run_id, row.epoch)
        return [await self._whole(row) for row in taken]

    async def _whole(self, row: Row[Any]) -> RunRecord:
        """The record of a run that was taken over, with its inputs, of which there may be much."""
        record = rows.to_record(row)
        if not row.has_inputs:
            return record
        given = await self._row(reading.inputs(record.run.run_id), is_bulk=True)
        return replace(record, run=replace(record.run, inputs=given and rows.to_inputs(given)))

    async def get_artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        """Anything that is no UUID is simply unknown."""
        if (wanted := canonical_uuid(artifact_id)) is None:
            return None
        row = await self._row(reading.artifact(ArtifactId(wanted)), is_bulk=True)
        return row and rows.to_artifact(row)

    async def find_artifact(self, artifact_id: ArtifactId) -> ArtifactRef | None:
        """Anything that is no UUID is simply unknown."""
        if (wanted := canonical_uuid(artifact_id)) is None:
            return None
        row = await self._row(reading.artifact_ref(ArtifactId(wanted)))
        return row and rows.to_ref(row)

    async def read_artifact(self, artifact_id: ArtifactId, offset: int, size_bytes: int) -> bytes:
        """Only this piece is read, since artifacts are stored uncompressed."""
        statement = reading.artifact_piece(artifact_id, offset, size_bytes)
        row = await self._row(statement, is_bulk=size_bytes > _BULK_BYTES // 4)
        return b"" if row is None else bytes(row.data or b"")

    async def add_session(self, session: Session) -> Session | None:
        """One of another gateway whose time was over when this one was made gives way to it."""
        return await self._run(lambda connection: _add_session(connection, session))

    async def update_session(self, session: Session) -> None:
        await self._write_session(sessions.UPDATE_SESSION, session)

    async def renew_session(self, session: Session) -> None:
        await self._write_session(sessions.RENEW_SESSION, session)

    async def remove_session(self, session: Session) -> None:
        await self._write_session(sessions.REMOVE_SESSION, session)

    async def sessions_of(self, gateway_id: GatewayId) -> list[Session]:
        """Oldest first."""
        return [rows.to_session(row) for row in await self._rows(sessions.sessions_of(gateway_id))]

    async def remove_expired(self, before: datetime) -> int:
        """Events, artifacts, code, variables and answer go, and the row stays as a tombstone.

        A tombstone that was made before `before` goes whole: so it is kept for as long again.
        """
        parameters = retention.parameters(before)
        while await self._run(
            lambda connection: connection.execute(retention.DELETE_TOMBSTONES, parameters).rowcount,
            timeout_s=_EXPIRY_TIMEOUT_S,
            is_bulk=True,
        ):
            pass
        total = 0
        while count := await self._run(
            lambda connection: int(connection.execute(retention.EXPIRE, parameters).scalar_one()),
            timeout_s=_EXPIRY_TIMEOUT_S,
            is_bulk=True,
        ):
            total += count
        return total

    async def ping(self) -> None:
        await self._run(lambda connection: connection.execute(text("SELECT 1")))

    async def size_bytes(self) -> int:
        """Of the whole database, of all who use it."""
        return int(await self._run(lambda connection: connection.execute(_SIZE).scalar_one()))

    def lanes(self) -> tuple[LaneFigures, ...]:
        return (self._quick.figures(), self._calls.figures("small"), self._bulk_calls.figures("bulk"))

    async def close(self) -> None:
        """Calls under way may finish."""
        await asyncio.gather(self._quick.close(), self._calls.close(), self._bulk_calls.close())

    async def _write_session(self, statement: Executable, session: Session) -> None:
        """Leave a session alone that has the same name and is another one."""
        parameters = rows.from_session(session)
        await self._run(lambda connection: connection.execute(statement, parameters))

    async def _record(self, statement: reading.RunSelect) -> RunRecord | None:
        """A run's row; a large one by the lane for bulk, which is not asked for what there is not."""
        row = await self._row(reading.if_small(statement, _BULK_BYTES))
        if row is None and await self._row(reading.only_id(statement)) is not None:
            row = await self._row(statement, is_bulk=True)
        return row and rows.to_record(row)

    async def _row(self, statement: Executable, *, is_bulk: bool = False) -> Row[Any] | None:
        def work(connection: Connection) -> Row[Any] | None:
            row = connection.execute(statement).one_or_none()
            if is_bulk and row is not None:
                _close_behind(connection, text_bytes(row._asdict()))
            return row

        return await self._run(work, is_bulk=is_bulk)

    async def _rows(self, statement: Executable) -> list[Row[Any]]:
        return await self._run(lambda connection: list(connection.execute(statement).all()))

    async def run(self, work: Work[T]) -> T:
        """What another part of the store has to do on one of its connections. Raises StoreUnavailable."""
        return await self._run(work)

    async def _run(self, work: Work[T], *, timeout_s: float | None = None, is_bulk: bool = False) -> T:
        calls = self._bulk_calls if is_bulk else self._calls
        if timeout_s is None:
            timeout_s = self._timeout_s + (_LARGEST_ROW_BYTES / _BULK_BYTES_PER_S if is_bulk else 0)
        try:
            answer = await calls.run(work, timeout_s=timeout_s)
        except StoreBusy:
            _log.warning("store_busy", lane="bulk" if is_bulk else "small")
            raise
        except StoreUnavailable as error:
            self._log_failure(error)
            raise
        self._note_answer()
        return answer

    async def _run_quickly(self, statement: Prepared, parameters: Mapping[str, Any], timeout_s: float) -> Any:
        """The first row; None when there is none, or the threads are to do it."""
        try:
            row = await self._quick.run(statement, parameters, timeout_s=timeout_s)
        except StoreUnavailable as error:
            self._log_failure(error)
            raise
        if row is not None:
            self._note_answer()
        return row

    def _note_answer(self) -> None:
        if not self._is_reachable:
            _log.info("store_available_again")
        self._is_reachable = True

    def _log_failure(self, error: StoreUnavailable) -> None:
        """Once per outage; a database that answers but lacks something is logged once per lack."""
        cause = str(error.__cause__ or "no answer in time").strip()
        if type(error) is not StoreUnavailable:
            if self._lack != type(error).__name__:
                _log.error("store_unusable", reason=str(error), cause=cause)
            self._lack = type(error).__name__
        else:
            if self._is_reachable:
                _log.warning("store_unavailable", cause=cause)
            self._is_reachable = False

    async def _persist(
        self, run_id: RunId, work: Work[bool], quick: Callable[[], writing.QuickWrite | None], written: WrittenBytes
    ) -> None:
        """Write what exists nowhere else, with a time-out that grows with its size. The caller retries."""
        size_bytes = written.total

        def write(connection: Connection) -> None:
            self._held.write(connection, run_id, work)
            _close_behind(connection, size_bytes)

        timeout_s = self._timeout_s + size_bytes / _BULK_BYTES_PER_S
        is_written = False
        if size_bytes <= _BULK_BYTES and self._quick.is_free() and (quick_write := quick()) is not None:
            row = await self._run_quickly(*quick_write, timeout_s)
            is_written = row is not None and bool(row[0])
        if not is_written:
            await self._run(write, timeout_s=timeout_s, is_bulk=size_bytes > _BULK_BYTES)
        self._lack = ""
        self.written += written


def _close_behind(connection: Connection, size_bytes: int) -> None:
    """Have the connection closed, rather than used again, when this much has gone through it."""
    if size_bytes > _CLOSING_BYTES:
        connection.detach()


def _add_run(connection: Connection, run: Run, epoch: int) -> RunRecord | None:
    """None when the run is there now, or the one that has its key."""
    parameters = runs.add_parameters(run, epoch)
    while connection.execute(runs.ADD_RUN, parameters).one_or_none() is None:
        in_the_way = connection.execute(reading.runs_in_the_way(run)).all()
        if any(row.run_id == run.run_id for row in in_the_way):
            return None
        if in_the_way:
            return rows.to_record(in_the_way[0])
        # What was in the way has been withdrawn in between.
    return None


def _take_over(connection: Connection, gateway_id: GatewayId) -> list[Row[Any]]:
    """The rows of a gateway's living runs, oldest first, each in a new epoch.

    Once more where one of them has changed in between: it has ended, or a take-over that hung has come to its end.
    """
    while True:
        seen = connection.execute(reading.unfinished_epochs(gateway_id)).all()
        taken = connection.execute(runs.TAKE_OVER, runs.take_over_parameters(gateway_id, seen)).all()
        if len(taken) == len(seen):
            return sorted(taken, key=lambda row: int(row.number))


def _add_session(connection: Connection, session: Session) -> Session | None:
    """None when the session is there now, or the one that has its name."""
    parameters = rows.from_session(session)
    while connection.execute(sessions.ADD_SESSION, parameters).one_or_none() is None:
        row = connection.execute(sessions.session(session.tenant, session.session_id)).one_or_none()
        if row is not None:
            existing = rows.to_session(row)
            is_same = (existing.gateway_id, existing.created_at) == (session.gateway_id, session.created_at)
            return None if is_same else existing
    return None
