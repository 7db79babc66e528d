"""From rows to records. All times come out in UTC, whatever the server's time zone is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from gateway.store import answers
from sessions.model import (
    Artifact,
    ArtifactKind,
    ArtifactRef,
    Event,
    EventType,
    JupyterRequest,
    JupyterSession,
    Progress,
    Result,
    Run,
    RunRecord,
    RunStatus,
    RunSummary,
    Session,
    SessionNews,
    Usage,
)


def to_record(row: Row[Any]) -> RunRecord:
    """From all columns of `runs`. A tombstone's code is empty, and it has no variables."""
    run = Run(
        run_id=row.run_id,
        tenant=row.tenant,
        gateway_id=row.gateway_id,
        language=row.language,
        code=row.code or "",
        variables=row.variables or {},
        timeout_s=row.timeout_s,
        created_at=_in_utc(row.created_at),
        kernel_id=row.kernel_id,
        started_at=_in_utc_if_set(row.started_at),
        session_id=row.session_id,
        allow_stdin=row.allow_stdin,
        idempotency_key=row.idempotency_key,
        request_sha256=row.request_sha256,
        jupyter=None if row.jupyter is None else JupyterRequest(**row.jupyter),
    )
    return RunRecord(
        run=run,
        number=row.number,
        status=RunStatus(row.status),
        finished_at=_in_utc_if_set(row.finished_at),
        expired_at=_in_utc_if_set(row.expired_at),
        result=_to_result(row) if row.finished_at is not None and row.expired_at is None else None,
        progress=None if row.progress is None else Progress(row.taken_seq, **row.progress),
    )


def to_summary(row: Row[Any]) -> RunSummary:
    """From the columns of `reading.listed_runs`."""
    return RunSummary(
        run_id=row.run_id,
        number=row.number,
        status=RunStatus(row.status),
        language=row.language,
        created_at=_in_utc(row.created_at),
        finished_at=_in_utc_if_set(row.finished_at),
        session_id=row.session_id,
        usage=_to_usage(row),
    )


def to_event(row: Row[Any]) -> Event:
    """From `seq`, `type` and `fields` of `events`."""
    return Event(row.seq, EventType(row.type), row.fields)


def to_artifact(row: Row[Any]) -> Artifact:
    """From all columns of `artifacts`."""
    ref = ArtifactRef(row.artifact_id, ArtifactKind(row.kind), row.name, row.content_type, row.size_bytes)
    return Artifact(ref, row.data)


def to_session(row: Row[Any]) -> Session:
    """From all columns of `sessions`."""
    return Session(
        tenant=row.tenant,
        session_id=row.session_id,
        gateway_id=row.gateway_id,
        language=row.language,
        idle_timeout_s=row.idle_timeout_s,
        max_lifetime_s=row.max_lifetime_s,
        created_at=_in_utc(row.created_at),
        last_used_at=_in_utc(row.last_used_at),
        kernel_id=row.kernel_id,
        generation=row.generation,
        news=SessionNews(row.news),
        version=row.version,
        runs=row.runs,
        usage=Usage(row.wall_ms, row.cpu_ms, row.memory_peak_bytes),
        jupyter=None if row.jupyter is None else JupyterSession(**row.jupyter),
        jupyter_version=row.jupyter_version,
    )


def _to_result(row: Row[Any]) -> Result:
    return Result(
        run_id=row.run_id,
        status=RunStatus(row.status),
        output=row.output or "",  # an earlier Cellblock stored none of a lost run
        stderr=row.stderr or "",
        usage=_to_usage(row),
        session_id=row.session_id,
        **answers.to_result_fields(row.answer or {}),
    )


def _to_usage(row: Row[Any]) -> Usage | None:
    return None if row.wall_ms is None else Usage(row.wall_ms, row.cpu_ms, row.memory_peak_bytes)


def _in_utc(at: datetime) -> datetime:
    return at.astimezone(UTC)


def _in_utc_if_set(at: datetime | None) -> datetime | None:
    return None if at is None else at.astimezone(UTC)
