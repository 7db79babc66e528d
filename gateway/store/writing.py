"""Writes what runs make, on a connection that somebody else owns: by one statement, or what is large by several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, TextClause

from gateway.store.statements import batches, runs, sessions
from sessions.model import Batch, Result, RunId, Session


def append(connection: Connection, run_id: RunId, epoch: int, batch: Batch) -> bool:
    """Add a batch and its progress. False when there is no such run to be written to; then nothing is added.

    To be written to is one that has not ended and that has this epoch.
    """
    parameters: dict[str, Any] = {"run_id": run_id, "epoch": epoch}
    if batch.progress is not None:
        parameters |= runs.progress_parameters(batch.progress)

    return _write(connection, partial(runs.append, has_progress=batch.progress is not None), parameters, batch)


def finish(
    connection: Connection, result: Result, epoch: int, batch: Batch, finished_at: datetime, *, session: Session | None
) -> bool:
    """Add the last batch, the answer, and the session's part. False as with `append`."""
    parameters = runs.finish_parameters(result, epoch, finished_at)
    if session is not None:
        parameters |= sessions.after_run_parameters(session)

    return _write(connection, partial(runs.finish, has_session=session is not None), parameters, batch)


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
