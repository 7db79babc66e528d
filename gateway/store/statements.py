"""The SQL of `PostgresStore`, each statement with the parameters that it takes from our records.

One statement is one round trip and one transaction. It opens no connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import TextClause, bindparam, text

from gateway.store.tables import runs
from gateway.store.text import LosslessText, dump_json, escape_text
from sessions.model import Artifact, ArtifactRef, Event, Result, Run, RunStatus

_CHUNK_BYTES = 4 << 20
"""Bytes of artifacts in one statement; they are twice as long on the way, and PostgreSQL takes no more than 1 GB."""


def _typed(sql: str, *columns: str) -> TextClause:
    """A statement whose parameters named like columns of `runs` are converted as those columns are."""
    return text(sql).bindparams(*(bindparam(name, type_=runs.c[name].type) for name in columns))


# The commit does not wait for the disk, which is most of the time an insert takes. That loses nothing when the gateway
# crashes, and when PostgreSQL crashes at most the last fraction of a second of runs that have not ended: finishing a
# run waits for its own commit, which is later in the log. `PostgresStore` adds such a run again.
ADD_RUN = _typed(
    """
    INSERT INTO runs (run_id, tenant, gateway_id, kernel_id, session_id, language, timeout_s, created_at, status, code,
                      variables)
    VALUES (:run_id, :tenant, :gateway_id, :kernel_id, :session_id, :language, :timeout_s, :created_at, :status, :code,
            :variables)
    ON CONFLICT (run_id) DO NOTHING
    RETURNING set_config('synchronous_commit', 'off', true)
    """,
    "tenant", "gateway_id", "session_id", "language", "code", "variables",
)  # fmt: skip

_EVENTS_OF = """
    INSERT INTO events (run_id, seq, type, fields)
    SELECT run_id, seq, type, CAST(fields AS json)
    FROM {run}, unnest(CAST(:seqs AS int[]), CAST(:types AS text[]), CAST(:fields AS text[]))
                AS event (seq, type, fields)
    ON CONFLICT (run_id, seq) DO NOTHING
"""
_ARTIFACTS_OF = """
    INSERT INTO artifacts (artifact_id, run_id, kind, name, content_type, size_bytes, sha256, data)
    SELECT artifact_id, run_id, kind, name, content_type, size_bytes, sha256, data
    FROM {run}, unnest(CAST(:artifact_ids AS uuid[]), CAST(:kinds AS text[]), CAST(:names AS text[]),
                       CAST(:content_types AS text[]), CAST(:sizes_bytes AS bigint[]), CAST(:sha256s AS bytea[]),
                       CAST(:datas AS bytea[]))
                AS artifact (artifact_id, kind, name, content_type, size_bytes, sha256, data)
    ON CONFLICT (artifact_id) DO NOTHING
"""
_LIVING = "SELECT run_id FROM runs WHERE run_id = :run_id AND finished_at IS NULL"
_FINISHED = """
    UPDATE runs SET status = :status, finished_at = :finished_at, output = :output, stderr = :stderr, answer = :answer,
                    wall_ms = :wall_ms, cpu_ms = :cpu_ms, memory_peak_bytes = :memory_peak_bytes
    WHERE run_id = :run_id AND finished_at IS NULL
    RETURNING run_id
"""


def _statement(run: str, *, has_artifacts: bool) -> str:
    parts = [f"WITH run AS ({run}), added_events AS ({_EVENTS_OF.format(run='run')})"]
    if has_artifacts:
        parts.append(f", added_artifacts AS ({_ARTIFACTS_OF.format(run='run')})")
    parts.append(" SELECT count(*) FROM run")
    return "".join(parts)


# Each returns 1, or 0 when there is no such run that has not ended; then nothing is added.
APPEND = text(_statement(_LIVING, has_artifacts=False))
APPEND_WITH_ARTIFACTS = text(_statement(_LIVING, has_artifacts=True))
FINISH = _typed(_statement(_FINISHED, has_artifacts=False), "output", "stderr", "answer")
FINISH_WITH_ARTIFACTS = _typed(_statement(_FINISHED, has_artifacts=True), "output", "stderr", "answer")

HAS_RUN = text("SELECT count(*) FROM runs WHERE run_id = :run_id")

GET_ARTIFACT = text(
    "SELECT kind, name, content_type, size_bytes, data FROM artifacts WHERE artifact_id = :artifact_id"
).columns(name=LosslessText, content_type=LosslessText)

# The `end` event closes the sequence, so that a client that follows the run sees it end.
MARK_LOST = text(
    """
    WITH lost AS (
        UPDATE runs SET status = :status, finished_at = :at, answer = CAST(:answer AS json)
        WHERE gateway_id = :gateway_id AND finished_at IS NULL
        RETURNING run_id
    ), ended AS (
        INSERT INTO events (run_id, seq, type, fields)
        SELECT run_id, 1 + coalesce((SELECT max(seq) FROM events WHERE events.run_id = lost.run_id), 0), 'end',
               CAST(:fields AS json)
        FROM lost
    )
    SELECT count(*) FROM lost
    """
).bindparams(bindparam("gateway_id", type_=LosslessText()))


# Retention, in batches: no lock is held for long, and gateways that share the database do not wait for each other.
# What a gateway left unfinished for ever is over once its time limit has passed; the run becomes `lost`.
EXPIRE = text(
    """
    WITH due AS (
        SELECT run_id FROM runs
        WHERE expired_at IS NULL AND created_at < :before
              AND (finished_at IS NOT NULL OR created_at + make_interval(secs => timeout_s) < :before)
        ORDER BY created_at LIMIT :batch FOR UPDATE SKIP LOCKED
    ), without_events AS (
        DELETE FROM events USING due WHERE events.run_id = due.run_id
    ), without_artifacts AS (
        DELETE FROM artifacts USING due WHERE artifacts.run_id = due.run_id
    ), expired AS (
        UPDATE runs SET expired_at = now(), code = NULL, variables = NULL, output = NULL, stderr = NULL, answer = NULL,
                        status = CASE WHEN finished_at IS NULL THEN :lost ELSE status END,
                        finished_at = coalesce(finished_at, now())
        FROM due WHERE runs.run_id = due.run_id
    )
    SELECT count(*) FROM due
    """
)
DELETE_TOMBSTONES = text(
    """
    DELETE FROM runs WHERE run_id IN (
        SELECT run_id FROM runs WHERE expired_at < :before ORDER BY expired_at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    """
)


def add_run_parameters(run: Run) -> dict[str, Any]:
    """For `ADD_RUN`."""
    return {
        "run_id": run.run_id,
        "tenant": run.tenant,
        "gateway_id": run.gateway_id,
        "kernel_id": run.kernel_id,
        "session_id": run.session_id,
        "language": run.language,
        "timeout_s": run.timeout_s,
        "created_at": run.created_at,
        "status": RunStatus.QUEUED if run.kernel_id is None else RunStatus.RUNNING,
        "code": run.code,
        "variables": dict(run.variables),
    }


def event_parameters(events: Sequence[Event]) -> dict[str, Any]:
    """For the events of an `APPEND` or a `FINISH`."""
    return {
        "seqs": [event.seq for event in events],
        "types": [event.type.value for event in events],
        "fields": [dump_json(dict(event.fields)) for event in events],
    }


def artifact_parameters(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """For the artifacts of an `APPEND_WITH_ARTIFACTS` or a `FINISH_WITH_ARTIFACTS`."""
    refs = [artifact.ref for artifact in artifacts]
    return {
        "artifact_ids": [ref.id for ref in refs],
        "kinds": [ref.kind.value for ref in refs],
        "names": [escape_text(ref.name) for ref in refs],
        "content_types": [escape_text(ref.content_type) for ref in refs],
        "sizes_bytes": [ref.size_bytes for ref in refs],
        "sha256s": [hashlib.sha256(artifact.data).digest() for artifact in artifacts],
        "datas": [artifact.data for artifact in artifacts],
    }


def chunks(artifacts: Sequence[Artifact]) -> Iterator[list[Artifact]]:
    """The artifacts in groups that fit into one statement."""
    chunk: list[Artifact] = []
    size_bytes = 0
    for artifact in artifacts:
        if chunk and size_bytes + len(artifact.data) > _CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(artifact)
        size_bytes += len(artifact.data)
    if chunk:
        yield chunk


def finish_parameters(result: Result) -> dict[str, Any]:
    """For a `FINISH`, less the events, the artifacts and the time."""
    usage = result.usage
    return {
        "run_id": result.run_id,
        "status": result.status.value,
        "output": result.output,
        "stderr": result.stderr,
        "answer": _answer(result),
        "wall_ms": usage.wall_ms if usage else None,
        "cpu_ms": usage.cpu_ms if usage else None,
        "memory_peak_bytes": usage.memory_peak_bytes if usage else None,
    }


def _answer(result: Result) -> dict[str, Any]:
    """What of the final answer has no column of its own; only what has something to say."""
    fields = {
        "error": result.error,
        "exception": result.exception and result.exception.as_json(),
        "results": [dict(bundle) for bundle in result.results],
        "images": _refs(result.images),
        "files": _refs(result.files),
        "execution_count": result.execution_count,
        "truncated": result.truncated,
    }
    return {
        name: value
        for name, value in fields.items()
        if value is not None and value not in ([], {}) and value is not False
    }


def _refs(artifacts: Mapping[str, ArtifactRef]) -> dict[str, dict[str, Any]]:
    return {
        name: {"id": ref.id, "name": ref.name, "content_type": ref.content_type, "size_bytes": ref.size_bytes}
        for name, ref in artifacts.items()
    }
