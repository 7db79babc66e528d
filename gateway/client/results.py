"""What the gateway answers, as records: results of runs, events, sessions, files.

`raw` is the answer itself, for fields that a newer gateway has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar

from gateway.client import show
from gateway.client.errors import ClientError, RunFailed, error_of

ContentT = TypeVar("ContentT")


@dataclass(frozen=True, slots=True)
class Artifact(Generic[ContentT]):
    """An image or file that a run has made. `read()` has its bytes; with an AsyncClient, `await read()`."""

    name: str
    url: str
    read: Callable[[], ContentT] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class CodeError:
    """The exception that ended a run. `line` counts from 1 in the run's own code."""

    name: str
    value: str
    traceback: Sequence[str]
    line: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run, or all runs of a session, cost."""

    wall_ms: float
    cpu_ms: float
    memory_peak_bytes: int


@dataclass(frozen=True, slots=True)
class RunResult(Generic[ContentT]):
    """What has become of a run.

    `status` is `ok`, `error`, `timeout`, `oom`, `kernel_died`, `cancelled` or `lost`; of a run that lives it is
    `queued` or `running`. `output` is stdout alone; `results` are MIME bundles, with the value of the last expression.
    As the value of a notebook's cell it shows itself: output, results and images.
    """

    run_id: str
    status: str
    output: str
    stderr: str
    error: str | None
    exception: CodeError | None
    results: Sequence[Mapping[str, Any]]
    images: Mapping[str, Artifact[ContentT]]
    files: Mapping[str, Artifact[ContentT]]
    execution_count: int | None
    session_id: str | None
    session_created: bool
    session_lost: bool
    truncated: bool
    usage: Usage | None
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end."""
        return self.status == "ok"

    @property
    def text(self) -> str | None:
        """The last result as text, such as the value of the last expression; None without one."""
        return next((bundle["text/plain"] for bundle in reversed(self.results) if "text/plain" in bundle), None)

    def check(self) -> RunResult[ContentT]:
        """Return the result itself. Raises RunFailed unless it is `ok`."""
        if not self.ok:
            raise RunFailed(self)
        return self

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude
        return show.mime_bundle(self)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a run produced. `seq` counts from 1 without gaps; `fields` depend on the `type`."""

    run_id: str
    seq: int
    type: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as lists show it."""

    run_id: str
    status: str
    language: str
    session_id: str | None
    created_at: datetime
    finished_at: datetime | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as it was when the gateway was asked; `state` is `starting`, `idle`, `busy` or `dead`."""

    session_id: str
    kernel_id: str
    language: str
    state: str
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    runs: int
    usage: Usage | None
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file below a session's working directory; `path` is relative to it."""

    path: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class BatchAnswer(Generic[ContentT]):
    """The answer to one item of a batch, by its place. It has a result, or the error that the item was refused with."""

    place: int
    result: RunResult[ContentT] | None
    error: ClientError | None


def batch_answer(answer: Mapping[str, Any], read: Callable[[str], ContentT]) -> BatchAnswer[ContentT]:
    """A line of the answer to a batch."""
    if "run_id" in answer:
        return BatchAnswer(answer["id"], run_result(answer, read), None)
    return BatchAnswer(answer["id"], None, error_of(answer["status_code"], answer))


def run_result(answer: Mapping[str, Any], read: Callable[[str], ContentT]) -> RunResult[ContentT]:
    """The result in an answer of `/runcode` or `/runs/{id}`, or in an `end` event. `read` fetches a URL's content."""
    exception = answer.get("exception")
    return RunResult(
        run_id=answer["run_id"],
        status=answer["status"],
        output=answer.get("output", ""),
        stderr=answer.get("stderr", ""),
        error=answer.get("error"),
        exception=exception
        and CodeError(exception["name"], exception["value"], exception["traceback"], exception.get("line")),
        results=answer.get("results", []),
        images={name: Artifact(name, url, partial(read, url)) for name, url in answer.get("images", {}).items()},
        files={name: Artifact(name, url, partial(read, url)) for name, url in answer.get("files", {}).items()},
        execution_count=answer.get("execution_count"),
        session_id=answer.get("session_id"),
        session_created=answer.get("session_created", False),
        session_lost=answer.get("session_lost", False),
        truncated=answer.get("truncated", False),
        usage=usage_of(answer),
        raw=answer,
    )


def usage_of(answer: Mapping[str, Any]) -> Usage | None:
    """The `usage` of a run or session, if it has one."""
    usage = answer.get("usage")
    return usage and Usage(usage["wall_ms"], usage["cpu_ms"], usage["memory_peak_bytes"])


def event_of(fields: Mapping[str, Any]) -> Event:
    """An event as the gateway sends it."""
    rest = {name: value for name, value in fields.items() if name not in ("run_id", "seq", "type")}
    return Event(fields["run_id"], fields["seq"], fields["type"], rest)


def run_summary(fields: Mapping[str, Any]) -> RunSummary:
    """One of `GET /runs`."""
    return RunSummary(
        run_id=fields["run_id"],
        status=fields["status"],
        language=fields["language"],
        session_id=fields.get("session_id"),
        created_at=time_of(fields["created_at"]),
        finished_at=time_of(fields["finished_at"]) if fields.get("finished_at") else None,
        usage=usage_of(fields),
    )


def session_info(fields: Mapping[str, Any]) -> SessionInfo:
    """A session as `/sessions` shows it."""
    return SessionInfo(
        session_id=fields["session_id"],
        kernel_id=fields["kernel_id"],
        language=fields["language"],
        state=fields["state"],
        created_at=time_of(fields["created_at"]),
        last_used_at=time_of(fields["last_used_at"]),
        expires_at=time_of(fields["expires_at"]),
        runs=fields["runs"],
        usage=usage_of(fields),
        raw=fields,
    )


def file_info(fields: Mapping[str, Any]) -> FileInfo:
    """One of a session's files."""
    return FileInfo(fields["path"], fields["bytes"], time_of(fields["modified_at"]))


def time_of(text: str) -> datetime:
    """A time of the gateway's, which are all in UTC."""
    return datetime.fromisoformat(text)
