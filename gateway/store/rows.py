"""The mapping between records and rows, both ways. All times are in UTC, whatever the server's time zone is.

It runs no statements. The part of an answer without a column of its own is in `answers`.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from gateway.store import answers
from sessions.inputs import RunInputs
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


def _names(record: type[Any], *left_out: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name not in left_out)


# Fields and columns have the same names, so that each is written down in the record and in `tables`, and nowhere else.
_USAGE_COLUMNS = _names(Usage)
_RUN_FIELDS = _names(Run, "inputs")
INPUT_COLUMNS = ("inputs", "input_data")
RUN_COLUMNS = (*_RUN_FIELDS, *INPUT_COLUMNS)
_JUPYTER_FIELDS = _names(JupyterRequest)
RESULT_COLUMNS = ("status", "output", "stderr", "answer", *_USAGE_COLUMNS)
_SUMMARY_FIELDS = _names(RunSummary, "usage")
SUMMARY_COLUMNS = (*_SUMMARY_FIELDS, *_USAGE_COLUMNS)
_SESSION_COLUMNS = _names(Session, "usage")


def from_run(run: Run) -> dict[str, Any]:
    """The values of `RUN_COLUMNS`."""
    return {
        **_values(run, _RUN_FIELDS),
        "variables": dict(run.variables),
        "jupyter": None if run.jupyter is None else _values(run.jupyter, _JUPYTER_FIELDS),
        **(dict.fromkeys(INPUT_COLUMNS) if run.inputs is None else _from_inputs(run.inputs)),
    }


def _from_inputs(inputs: RunInputs) -> dict[str, Any]:
    sizes_bytes = [[path, len(data)] for path, data in inputs.files.items()]
    return {
        "inputs": {"files": sizes_bytes, "fetch": list(inputs.fetch), "env": dict(inputs.env)},
        "input_data": b"".join(inputs.files.values()),
    }


def to_inputs(row: Row[Any]) -> RunInputs | None:
    """From `INPUT_COLUMNS`."""
    if row.inputs is None:
        return None
    data, offset, files = memoryview(row.input_data), 0, {}
    for path, size_bytes in row.inputs["files"]:
        files[path] = bytes(data[offset : offset + size_bytes])
        offset += size_bytes
    return RunInputs(files, tuple(row.inputs["fetch"]), row.inputs["env"])


def from_result(result: Result) -> dict[str, Any]:
    """The values of `RESULT_COLUMNS`."""
    usage = dict.fromkeys(_USAGE_COLUMNS) if result.usage is None else _values(result.usage, _USAGE_COLUMNS)
    answer = answers.from_result(result)
    return {**_values(result, ("output", "stderr")), "status": result.status.value, "answer": answer, **usage}


def from_session(session: Session) -> dict[str, Any]:
    """The values of all columns of `sessions`."""
    return {
        **_values(session, _SESSION_COLUMNS),
        **_values(session.usage, _USAGE_COLUMNS),
        "news": session.news.value,
        "expires_at": session.expires_at,
        "jupyter": _from_jupyter(session.jupyter),
    }


def to_record(row: Row[Any]) -> RunRecord:
    """From all columns of `runs` but those of inputs. A tombstone's code is empty, and it has no variables."""
    changed = {
        "code": row.code or "",
        "variables": row.variables or {},
        "jupyter": None if row.jupyter is None else JupyterRequest(**row.jupyter),
    }
    return RunRecord(
        run=Run(**{**_values(row, _RUN_FIELDS), **changed}),
        number=row.number,
        status=RunStatus(row.status),
        finished_at=_in_utc(row.finished_at),
        expired_at=_in_utc(row.expired_at),
        result=_to_result(row) if row.finished_at is not None and row.expired_at is None else None,
        progress=None if row.progress is None else Progress(row.taken_seq, **row.progress),
    )


def to_summary(row: Row[Any]) -> RunSummary:
    """From `SUMMARY_COLUMNS`."""
    changed = {"status": RunStatus(row.status), "usage": _to_usage(row)}
    return RunSummary(**{**_values(row, _SUMMARY_FIELDS), **changed})


def to_event(row: Row[Any]) -> Event:
    """From `seq`, `type` and `fields` of `events`."""
    return Event(row.seq, EventType(row.type), row.fields)


def to_artifact(row: Row[Any]) -> Artifact:
    """From all columns of `artifacts`."""
    return Artifact(to_ref(row), row.data)


def to_ref(row: Row[Any]) -> ArtifactRef:
    """From all columns of `artifacts` but the bytes."""
    return ArtifactRef(row.artifact_id, ArtifactKind(row.kind), row.name, row.content_type, row.size_bytes)


def to_session(row: Row[Any]) -> Session:
    """From all columns of `sessions`."""
    changed = {"news": SessionNews(row.news), "usage": _to_usage(row), "jupyter": _to_jupyter(row.jupyter)}
    return Session(**{**_values(row, _SESSION_COLUMNS), **changed})


def _from_jupyter(sessions: tuple[JupyterSession, ...]) -> Any:
    """One is an object, as an earlier Cellblock has it; several are a list of them."""
    stored = [{**one.as_json(), **({"moves": one.moves} if one.moves else {})} for one in sessions]
    return stored if len(stored) > 1 else next(iter(stored), None)


def _to_jupyter(stored: Any) -> tuple[JupyterSession, ...]:
    given = stored if isinstance(stored, list) else [] if stored is None else [stored]
    return tuple(JupyterSession(**fields) for fields in given)


def _values(source: object, names: tuple[str, ...]) -> dict[str, Any]:
    """These attributes of a record or a row; times in UTC."""
    return {name: _in_utc(getattr(source, name)) for name in names}


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
    return None if row.wall_ms is None else Usage(**_values(row, _USAGE_COLUMNS))


def _in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value
