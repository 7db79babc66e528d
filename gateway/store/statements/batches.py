"""How a batch's events and artifacts are added to a run, in the statement that finds or changes that run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.store.column_types import dump_json, escape_text
from sessions.model import Artifact, Event

_CHUNK_BYTES = 4 << 20
"""Bytes of artifacts in one statement; they are twice as long on the way, and PostgreSQL takes no more than 1 GB."""

_EVENTS = """
    INSERT INTO events (run_id, seq, type, fields)
    SELECT run_id, seq, type, CAST(fields AS json)
    FROM run, unnest(CAST(:seqs AS int[]), CAST(:types AS text[]), CAST(:fields AS text[]))
              AS event (seq, type, fields)
    ON CONFLICT (run_id, seq) DO NOTHING
"""
_ARTIFACTS = """
    INSERT INTO artifacts (artifact_id, run_id, kind, name, content_type, size_bytes, sha256, data)
    SELECT artifact_id, run_id, kind, name, content_type, size_bytes, sha256, data
    FROM run, unnest(CAST(:artifact_ids AS uuid[]), CAST(:kinds AS text[]), CAST(:names AS text[]),
                     CAST(:content_types AS text[]), CAST(:sizes_bytes AS bigint[]), CAST(:sha256s AS bytea[]),
                     CAST(:datas AS bytea[]))
              AS artifact (artifact_id, kind, name, content_type, size_bytes, sha256, data)
    ON CONFLICT (artifact_id) DO NOTHING
"""


def with_batch(run: str, *others: str, has_artifacts: bool) -> str:
    """A statement that does `run`, which returns the `run_id` of the run or nothing, and adds a batch to that run.

    `others` are done too, and may refer to `run`. It returns how many runs there were: 1, or 0 and nothing is added.
    """
    parts = [_EVENTS, *([_ARTIFACTS] if has_artifacts else []), *others]
    named = ", ".join(f"part_{number} AS ({part})" for number, part in enumerate(parts))
    return f"WITH run AS ({run}), {named} SELECT count(*) FROM run"  # noqa: S608 - made of the constants above and such


def event_parameters(events: Sequence[Event]) -> dict[str, Any]:
    """For the events of a batch."""
    return {
        "seqs": [event.seq for event in events],
        "types": [event.type.value for event in events],
        "fields": [dump_json(dict(event.fields)) for event in events],
    }


def artifact_parameters(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """For the artifacts of a batch, where it has some."""
    refs = [artifact.ref for artifact in artifacts]
    return {
        "artifact_ids": [ref.id for ref in refs],
        "kinds": [ref.kind.value for ref in refs],
        "names": [escape_text(ref.name) for ref in refs],
        "content_types": [escape_text(ref.content_type) for ref in refs],
        "sizes_bytes": [ref.size_bytes for ref in refs],
        "sha256s": [artifact.sha256 or hashlib.sha256(artifact.data).digest() for artifact in artifacts],
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
