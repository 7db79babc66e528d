"""Writes what runs make, on a connection that somebody else owns: by one statement, or what is large by several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, TextClause

from gateway.store.statements import Prepared, batches, runs, sessions
from sessions.model import Batch, Result, RunId, Session

QuickWrite = tuple[Prepared, dict[str, Any]]
"""A statement of the quick lane, which returns 1 if there was a run to be written to, and its parameters."""


def append(connection: Connection, run_id: RunId, epoch: int, batch: Batch) -> bool:
    """Add a batch and its progress. False when there is no such run to be written to; then nothing is added.

    To be written to is one that has not ended and that has this epoch.
    """
    parameters = _append_parameters(run_id, epoch, batch)
    return _write(connection, partial(runs.append, has_progress=batch.progress is not None), parameters, batch)


def finish(
    connection: Connection, result: Result, epoch: int, batch: Batch, finished_at: datetime, *, session: Session | None
) -> bool:
    """Add the last batch, the answer, and the session's part. False as with `append`."""
    parameters = _finish_parameters(result, epoch, finished_at, session)
    return _write(connection, partial(runs.finish, has_session=session is not None), parameters, batch)


def quick_append(run_id: RunId, epoch: int, batch: Batch) -> QuickWrite | None:
    """`append` for the quick lane, if the batch is one for it: of events and progress alone."""
    if batch.artifacts or batch.progress is None:
        return None
    parameters = {**_append_parameters(run_id, epoch, batch), **batches.event_parameters(batch.events)}
    return runs.APPEND_QUICKLY, parameters


def quick_finish(
    result: Result, epoch: int, batch: Batch, finished_at: datetime, *, session: Session | None
) -> QuickWrite | None:
    """`finish`, likewise."""
    if batch.artifacts:
        return None
    parameters = _finish_parameters(result, epoch, finished_at, session)
    return runs.finish_quickly(has_session=session is not None), {
        **parameters,
        **batches.event_parameters(batch.events),
    }


def _append_parameters(run_id: RunId, epoch: int, batch: Batch) -> dict[str, Any]:
    progress = {} if batch.progress is None else runs.progress_parameters(batch.progress)
    return {"run_id": run_id, "epoch": epoch, **progress}


def _finish_parameters(result: Result, epoch: int, finished_at: datetime, session: Session | None) -> dict[str, Any]:
    changes = {} if session is None else sessions.after_run_parameters(session)
    return {**runs.finish_parameters(result, epoch, finished_at), **changes}


def _write(
    connection: Connection, statement: Callable[..., TextClause], parameters: Mapping[str, Any], batch: Batch
) -> bool:
    parameters = {**parameters, **batches.event_parameters(batch.events)}
    *chunks, last_chunk = list(batches.chunks(batch.artifacts)) or [[]]
    if not last_chunk:
        return _count(connection, statement(has_artifacts=False), parameters)
    last = {**parameters, **batches.artifact_parameters(last_chunk)}
    if not chunks:
        return _count(connection, statement(has_artifacts=True), last)
    connection.commit()  # of nothing: the mode cannot change inside SQLAlchemy's idea of a transaction
    connection.execution_options(isolation_level="READ COMMITTED")
    with connection.begin():
        for chunk in chunks:
            first = {"run_id": parameters["run_id"], "epoch": parameters["epoch"], **batches.event_parameters(())}
            adding = runs.append(has_progress=False, has_artifacts=True)
            _count(connection, adding, {**first, **batches.artifact_parameters(chunk)})
        return _count(connection, statement(has_artifacts=True), last)


def _count(connection: Connection, statement: TextClause, parameters: Mapping[str, Any]) -> bool:
    return bool(connection.execute(statement, parameters).scalar_one())
