"""`sessions.ports.Store` on PostgreSQL: what is written when, what a repeated call does, and how long it may take.

The SQL is in `statements`, the threads in `calls`, the tables' shape in `schema`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, TextClause, text

from gateway.store import statements
from gateway.store.calls import BlockingCalls, Work
from gateway.store.connection import make_engine
from gateway.store.text import dump_json
from sessions.errors import NotFound, StoreUnavailable
from sessions.model import (
    LOST_RUN,
    Artifact,
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    Batch,
    GatewayId,
    Result,
    Run,
    RunId,
    RunStatus,
)

T = TypeVar("T")

_ARTIFACT_BYTES_PER_S = 5 << 20
"""How slow the database may be with large artifacts before it counts as hung."""

_CONNECT_SHARE = 0.6
"""Of a call's time, what connecting may take: a thread that connects cannot be called back."""

_NOT_KEPT = "The code was run, but the database is out of reach, and what it made could not be kept."
_RETRY_EVERY_S = 0.1
_EXPIRY_TIMEOUT_S = 120.0
_EXPIRY_BATCH = 100

_log = structlog.get_logger(__name__)


class PostgresStore:
    """Made without connecting; the database must have been through `schema.migrate`.

    The state: `_living`, the runs added here and not finished yet, in case a crash of PostgreSQL takes their rows;
    `_is_reachable`, as last logged.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0, pool_size: int = 4) -> None:
        self._engine = make_engine(url, pool_size=pool_size, connect_timeout_s=timeout_s * _CONNECT_SHARE)
        self._calls = BlockingCalls(self._engine, threads=pool_size)
        self._timeout_s = timeout_s
        self._living: dict[RunId, Run] = {}
        self._is_reachable = True

    def __repr__(self) -> str:
        return (
            f"<PostgresStore {'reachable' if self._is_reachable else 'out of reach'}, {len(self._living)} living runs>"
        )

    async def add_run(self, run: Run) -> None:
        """See `Store`. Survives a crash of the gateway at once, and one of PostgreSQL while this store lives."""
        await self._run(lambda connection: _add(connection, run))
        self._living[run.run_id] = run

    async def append(self, run_id: RunId, batch: Batch) -> None:
        """See `Store`. A finished run stays as it is. Waits for a database that restarts. Raises NotFound."""

        def work(connection: Connection) -> bool:
            return _write(connection, statements.APPEND, statements.APPEND_WITH_ARTIFACTS, {"run_id": run_id}, batch)

        await self._persist(run_id, work, batch)

    async def finish_run(self, result: Result, batch: Batch, finished_at: datetime) -> None:
        """See `Store`. A finished run stays as it is. Waits for a database that restarts. Raises NotFound."""
        parameters = {**statements.finish_parameters(result), "finished_at": finished_at}

        def work(connection: Connection) -> bool:
            return _write(connection, statements.FINISH, statements.FINISH_WITH_ARTIFACTS, parameters, batch)

        await self._persist(result.run_id, work, batch)
        self._living.pop(result.run_id, None)

    async def get_artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        """See `Store`. Anything that is no UUID is simply unknown."""
        try:
            wanted = str(uuid.UUID(artifact_id))
        except ValueError:
            return None
        row = await self._run(
            lambda connection: connection.execute(statements.GET_ARTIFACT, {"artifact_id": wanted}).one_or_none()
        )
        if row is None:
            return None
        ref = ArtifactRef(
            id=ArtifactId(wanted),
            kind=ArtifactKind(row.kind),
            name=row.name,
            content_type=row.content_type,
            size_bytes=row.size_bytes,
        )
        return Artifact(ref, bytes(row.data))

    async def mark_lost(self, gateway_id: GatewayId, at: datetime) -> int:
        """See `Store`. Each run's events end with an `end` event that says `lost`."""
        parameters = {
            "gateway_id": gateway_id,
            "at": at,
            "status": RunStatus.LOST.value,
            "answer": dump_json({"error": LOST_RUN}),
            "fields": dump_json({"status": RunStatus.LOST.value, "error": LOST_RUN}),
        }
        count = await self._run(lambda connection: _count(connection, statements.MARK_LOST, parameters))
        self._living = {run_id: run for run_id, run in self._living.items() if run.gateway_id != gateway_id}
        return count

    async def remove_expired(self, before: datetime) -> int:
        """See `Store`: events, artifacts, code, variables and answer go, and the row stays as a tombstone.

        A tombstone that was made before `before` goes whole: so it is kept for as long again.
        """
        parameters = {"before": before, "batch": _EXPIRY_BATCH, "lost": RunStatus.LOST.value}
        while await self._run(
            lambda connection: connection.execute(statements.DELETE_TOMBSTONES, parameters).rowcount,
            timeout_s=_EXPIRY_TIMEOUT_S,
        ):
            pass
        total = 0
        while count := await self._run(
            lambda connection: _count(connection, statements.EXPIRE, parameters), timeout_s=_EXPIRY_TIMEOUT_S
        ):
            total += count
        return total

    async def ping(self) -> None:
        """See `Store`."""
        await self._run(lambda connection: connection.execute(text("SELECT 1")))

    async def close(self) -> None:
        """See `Store`. Calls under way may finish."""
        await self._calls.close()

    async def _run(self, work: Work[T], *, timeout_s: float | None = None) -> T:
        try:
            answer = await self._calls.run(work, timeout_s=self._timeout_s if timeout_s is None else timeout_s)
        except StoreUnavailable as error:
            if self._is_reachable:
                _log.warning("store_unavailable", cause=str(error.__cause__ or "no answer in time").strip())
            self._is_reachable = False
            raise
        if not self._is_reachable:
            _log.info("store_available_again")
        self._is_reachable = True
        return answer

    async def _persist(self, run_id: RunId, work: Work[bool], batch: Batch) -> None:
        """Write what exists nowhere else: while the database refuses (it restarts), try until the time is over."""
        loop = asyncio.get_running_loop()
        size_bytes = sum(len(artifact.data) for artifact in batch.artifacts)
        deadline = loop.time() + self._timeout_s + size_bytes / _ARTIFACT_BYTES_PER_S

        def work_on_existing_run(connection: Connection) -> bool:
            return work(connection) or (self._restore(connection, run_id) and work(connection))

        while True:
            try:
                await self._run(work_on_existing_run, timeout_s=deadline - loop.time())
            except StoreUnavailable as error:
                if loop.time() + _RETRY_EVERY_S >= deadline:
                    raise StoreUnavailable(_NOT_KEPT) from error
                await asyncio.sleep(_RETRY_EVERY_S)
            else:
                return

    def _restore(self, connection: Connection, run_id: RunId) -> bool:
        """Add a run again whose row is gone; False when it is there (and has ended). Raises NotFound."""
        if _count(connection, statements.HAS_RUN, {"run_id": run_id}):
            return False
        if (run := self._living.get(run_id)) is None:
            raise NotFound(f"There is no run {run_id}.")
        _log.warning("run_row_restored", run_id=run_id)
        _add(connection, run)
        return True


def _add(connection: Connection, run: Run) -> None:
    connection.execute(statements.ADD_RUN, statements.add_run_parameters(run))


def _count(connection: Connection, statement: TextClause, parameters: Mapping[str, Any]) -> int:
    return int(connection.execute(statement, parameters).scalar_one())


def _write(
    connection: Connection,
    statement: TextClause,
    statement_with_artifacts: TextClause,
    parameters: Mapping[str, Any],
    batch: Batch,
) -> bool:
    """Write a batch at once: by one statement, or where it is large by several in one transaction.

    False when there is no such run that has not ended.
    """
    parameters = {**parameters, **statements.event_parameters(batch.events)}
    *chunks, last_chunk = list(statements.chunks(batch.artifacts)) or [[]]
    if not last_chunk:
        return bool(_count(connection, statement, parameters))
    last = {**parameters, **statements.artifact_parameters(last_chunk)}
    if not chunks:
        return bool(_count(connection, statement_with_artifacts, last))
    connection.commit()  # of nothing: the mode cannot change inside SQLAlchemy's idea of a transaction
    connection.execution_options(isolation_level="READ COMMITTED")
    with connection.begin():
        for chunk in chunks:
            first = {"run_id": parameters["run_id"], **statements.event_parameters(())}
            _count(connection, statements.APPEND_WITH_ARTIFACTS, {**first, **statements.artifact_parameters(chunk)})
        return bool(_count(connection, statement_with_artifacts, last))
