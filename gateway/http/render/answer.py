"""The JSON of a run's answer, as docs/http.md describes it, and JSON that every parser accepts.

Pure: what is known of the run comes in as a Result, URLs are built from the base that is passed in.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from sessions.model import ArtifactKind, ArtifactRef, Result, RunStatus
from sessions.sanitize import well_formed, well_formed_json

_SEGMENTS = {ArtifactKind.IMAGE: "image", ArtifactKind.FILE: "file"}
_PLAIN_WORDS = {
    RunStatus.ERROR: "The code raised an exception.",
    RunStatus.TIMEOUT: "The code ran past its time limit and was stopped.",
    RunStatus.OOM: "The code used more memory than its limit and was killed.",
    RunStatus.KERNEL_DIED: "The kernel died while the code ran.",
    RunStatus.CANCELLED: "The run was cancelled.",
    RunStatus.LOST: "The outcome of this run is unknown: the gateway lost sight of it. It was not run again.",
}


def run_answer(result: Result, base_url: str) -> dict[str, Any]:
    """What a client gets: `run_id`, `status` and `output` always, the rest when it has something to say."""
    answer: dict[str, Any] = {"run_id": result.run_id, "status": result.status.value, "output": result.output}
    if result.stderr:
        answer["stderr"] = result.stderr
    if result.status.is_final() and result.status is not RunStatus.OK:
        answer["error"] = result.error or _PLAIN_WORDS.get(result.status, f"The run ended as {result.status.value}.")
    if result.exception is not None:
        answer["exception"] = result.exception.as_json()
    if result.results:
        answer["results"] = [dict(bundle) for bundle in result.results]
    for key, refs in (("images", result.images), ("files", result.files)):
        if refs:
            answer[key] = {name: artifact_url(ref, base_url) for name, ref in refs.items()}
    return answer | _circumstances(result)


def final_answer(result: Result, base_url: str, request_id: str) -> tuple[dict[str, Any], int]:
    """The answer to who has asked for the run, and its HTTP status: 200, or 504 with what errors have besides."""
    answer = run_answer(result, base_url)
    if result.status is not RunStatus.TIMEOUT:
        return answer, 200
    return answer | {"code": "timeout", "request_id": request_id}, 504


def _circumstances(result: Result) -> dict[str, Any]:
    """What is known of the run beside what it made."""
    said: dict[str, Any] = {}
    if result.execution_count is not None:
        said["execution_count"] = result.execution_count
    if result.session_id is not None:
        said["session_id"] = result.session_id
        said["session_created"] = result.session_created
        said["session_lost"] = result.session_lost
    if result.truncated:
        said["truncated"] = True
    if result.usage is not None:
        said["usage"] = result.usage.as_json()
    return said


def artifact_url(ref: ArtifactRef, base_url: str) -> str:
    """The artifact's address, e.g. `https://host/image/<uuid>_triangle.png`, percent-encoded."""
    return f"{base_url}/{_SEGMENTS[ref.kind]}/{quote(f'{ref.id}_{file_name(ref)}', safe='')}"


def file_name(ref: ArtifactRef) -> str:
    """The last part of the artifact's path, as it is written in URLs: without lone surrogates."""
    return well_formed(PurePosixPath(ref.name).name)


def strict_json(value: Any) -> bytes:
    """UTF-8 JSON that any parser takes: what is not finite becomes null, lone surrogates U+FFFD."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:  # UnicodeEncodeError is one too
        return json.dumps(well_formed_json(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
