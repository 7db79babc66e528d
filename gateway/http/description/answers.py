"""The bodies of our own answers, as types that only the description uses. A field with UNSET may be left out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from sessions.model import RunStatus, SessionState

Time = Annotated[
    str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$", extra_json_schema={"format": "date-time"})
]
Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Url = Annotated[str, Meta(extra_json_schema={"format": "uri"})]


class Error(Struct):
    """What every refusal of our own routes is."""

    error: str
    """A sentence for people, which may change."""
    code: str
    """For programs."""
    request_id: str
    """That of `X-Request-Id`. It is in the log too."""


class ReadyError(Error):
    """Why no run would be taken."""

    reasons: list[str] | UnsetType = UNSET
    """One sentence each."""


class Usage(Struct):
    """What a run used."""

    wall_ms: float
    """From its beginning to its end."""
    cpu_ms: float
    """Of all its processes."""
    memory_peak_bytes: int
    """As the container's cgroup counts it, file cache included."""


class CodeException(Struct):
    """The exception that ended a run."""

    name: str
    """Its class, such as `ZeroDivisionError`."""
    value: str
    """Its message."""
    traceback: list[str]
    """Lines without colour codes; repeated frames are counted."""
    line: int | None
    """Where in your own code, from 1."""


class RunAnswer(Struct, kw_only=True):
    """A run. `run_id`, `status` and `output` are always there, the others when they have something to say."""

    run_id: Uuid
    """Its id."""
    status: RunStatus
    """How it ended."""
    output: str
    """What was written to stdout, and nothing else."""
    stderr: str | UnsetType = UNSET
    """What was written to stderr. Lines that begin with `[cellblock]` are ours, and say what was cut."""
    error: str | UnsetType = UNSET
    """For every status but `ok`: the traceback, or a sentence."""
    exception: CodeException | UnsetType = UNSET
    """The exception that ended it."""
    results: list[dict[str, Any]] | UnsetType = UNSET
    """MIME bundles of what was displayed, and of the last expression's value. An image is replaced by its name."""
    images: dict[str, Url] | UnsetType = UNSET
    """URLs of displayed figures, and of image files that the run made, by name."""
    files: dict[str, Url] | UnsetType = UNSET
    """URLs of all other files that it made or changed, by path."""
    execution_count: int | UnsetType = UNSET
    """The number in `In [1]`."""
    session_id: str | UnsetType = UNSET
    """Its session."""
    session_created: bool | UnsetType = UNSET
    """In a session: whether the kernel is fresh."""
    session_lost: bool | UnsetType = UNSET
    """In a session: whether the variables are gone, because the kernel died or had to be killed."""
    truncated: bool | UnsetType = UNSET
    """`true` when something was cut or left out."""
    usage: Usage | UnsetType = UNSET
    """What it used."""


class TimedOutAnswer(RunAnswer, kw_only=True):
    """The answer of a run that passed its time limit."""

    code: Literal["timeout"]
    """As in an error."""
    request_id: str
    """As in an error."""


class RunRecord(RunAnswer, kw_only=True):
    """A run's answer, so far or final, with what was asked and when."""

    code: str
    """The code, as it was run."""
    language: str
    """Its language."""
    created_at: Time
    """When it was asked for."""
    finished_at: Time | None
    """When it ended; `null` while it lives."""
    traceparent: str | UnsetType = UNSET
    """That of the request that asked for it, where it had one."""


class RunSummary(Struct):
    """A run in the list of runs."""

    run_id: Uuid
    """Its id."""
    status: RunStatus
    """`queued` and `running` while it lives."""
    language: str
    """Its language."""
    session_id: str | None
    """Its session, if it has one."""
    created_at: Time
    """When it was asked for."""
    finished_at: Time | None
    """When it ended; `null` while it lives."""
    usage: Usage | None
    """What it used; `null` while it lives."""


class RunList(Struct):
    """Runs, newest first."""

    runs: list[RunSummary]
    """At most `limit` of them."""


class CancelAnswer(Struct):
    """A run that is asked to end."""

    run_id: Uuid
    """Its id."""
    status: RunStatus
    """Its status at this moment."""


class SessionAnswer(Struct):
    """A session."""

    session_id: str
    """Its id."""
    kernel_id: str
    """What Jupyter clients know it by. It stays, whatever becomes of the kernel."""
    language: str
    """Its language."""
    state: SessionState
    """`dead`: its kernel is gone, and the next run gets a fresh one."""
    created_at: Time
    """When it was made."""
    last_used_at: Time
    """When it was used last."""
    expires_at: Time
    """When it ends, unless it is used or renewed before."""
    idle_timeout: float
    """Seconds from its last use to its end."""
    max_lifetime: float
    """Seconds from its making to its end, at most."""
    runs: int
    """How many runs it has had."""
    usage: Usage
    """The sum of its runs; of memory, the largest."""


class RestartedSession(SessionAnswer):
    """A session with a fresh kernel."""

    session_lost: bool
    """Whether its files were gone already, because its sandbox was."""


class SessionList(Struct):
    """Sessions, oldest first."""

    sessions: list[SessionAnswer]
    """All of yours."""


class InterruptAnswer(Struct):
    """The session that was interrupted."""

    session_id: str
    """Its id."""


class FileEntry(Struct):
    """A file of a session."""

    path: str
    """Its path below the working directory."""
    bytes: int
    """Its size."""
    modified_at: Time
    """When it was written last."""


class FileList(Struct):
    """Files of a session."""

    files: list[FileEntry]
    """All below the working directory."""


class Health(Struct):
    """The process lives."""

    status: Literal["ok"]
    """Always `ok`."""


class Ready(Struct):
    """A run would be taken."""

    status: Literal["ready"]
    """Always `ready`."""
    engine: str
    """What runs the sandboxes, such as `docker`."""
    warm: int
    """How many kernels wait for a run."""
    warnings: list[str] | UnsetType = UNSET
    """Which limits the sandboxes lack, or why they start more slowly."""


class Root(Struct):
    """What there is."""

    name: Literal["cellblock"]
    """Always `cellblock`."""
    routes: list[str]
    """Method and path of each route."""
