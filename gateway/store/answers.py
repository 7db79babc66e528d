"""What of a run's final answer has no column of its own, as JSON in the column `answer`: there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sessions.model import ArtifactId, ArtifactKind, ArtifactRef, ExceptionInfo, Result


def from_result(result: Result) -> dict[str, Any]:
    """Only what has something to say."""
    fields = {
        "error": result.error,
        "exception": result.exception and result.exception.as_json(),
        "results": [dict(bundle) for bundle in result.results],
        "images": _from_refs(result.images),
        "files": _from_refs(result.files),
        "execution_count": result.execution_count,
        "truncated": result.truncated,
        "session_created": result.session_created,
        "session_lost": result.session_lost,
    }
    return {
        name: value
        for name, value in fields.items()
        if value is not None and value not in ([], {}) and value is not False
    }


def to_result_fields(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Result` that `from_result` has put there; those with nothing to say are left out again."""
    fields = dict(answer)
    if "exception" in fields:
        exception = fields["exception"]
        fields["exception"] = ExceptionInfo(
            exception["name"], exception["value"], tuple(exception["traceback"]), exception["line"]
        )
    if "results" in fields:
        fields["results"] = tuple(fields["results"])
    for name, kind in (("images", ArtifactKind.IMAGE), ("files", ArtifactKind.FILE)):
        if name in fields:
            fields[name] = _to_refs(fields[name], kind)
    return fields


def _from_refs(artifacts: Mapping[str, ArtifactRef]) -> dict[str, dict[str, Any]]:
    return {
        name: {"id": ref.id, "name": ref.name, "content_type": ref.content_type, "size_bytes": ref.size_bytes}
        for name, ref in artifacts.items()
    }


def _to_refs(stored: Mapping[str, Mapping[str, Any]], kind: ArtifactKind) -> dict[str, ArtifactRef]:
    return {
        name: ArtifactRef(ArtifactId(ref["id"]), kind, ref["name"], ref["content_type"], ref["size_bytes"])
        for name, ref in stored.items()
    }
