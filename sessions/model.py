"""The records that all other modules exchange: runs, events, artifacts, sessions.

Plain frozen dataclasses and enums, without I/O, and without methods that change anything.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NewType
from uuid import UUID, uuid5

from sessions.inputs import RunInputs

KernelId = NewType("KernelId", str)
"""The UUID, in canonical text form, of a kernel and so of its container."""

RunId = NewType("RunId", str)
"""The UUID, in canonical text form, of a run."""

ArtifactId = NewType("ArtifactId", str)
"""A random UUID, in canonical text form. Nothing else protects the URL of an image, so it must be unguessable."""

GatewayId = NewType("GatewayId", str)
"""The id of a gateway's data directory. Its containers and its runs are marked with it."""

TenantId = NewType("TenantId", str)
SessionId = NewType("SessionId", str)

PublicKernelId = NewType("PublicKernelId", str)
"""The kernel id that clients see. It stays the same when the container changes: see `Session.public_kernel_id`."""

JupyterSessionId = NewType("JupyterSessionId", str)
"""The UUID, in canonical text form, of a session in Jupyter's REST API, which is a name for a kernel."""

MAX_ID_CHARACTERS = 128
_JUPYTERS_KERNEL_ID = re.compile(r"\w+-\w+-\w+-\w+-\w+", re.ASCII)
_PUBLIC_KERNELS = UUID("6c0d2f5e-6a57-4f0e-9d53-0b8f4f1f9a52")

ANONYMOUS = TenantId("anonymous")
"""The tenant of requests without a token, where none is required."""


class RunStatus(StrEnum):
    """`queued` and `running` while the run lives; every other value is final."""

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    OOM = "oom"
    KERNEL_DIED = "kernel_died"
    CANCELLED = "cancelled"
    LOST = "lost"

    def is_final(self) -> bool:
        """Whether nothing can follow this status."""
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING)


class EventType(StrEnum):
    """What one event says; the fields of each are listed in docs/events.md."""

    STARTED = "started"
    STDOUT = "stdout"
    STDERR = "stderr"
    RESULT = "result"
    UPDATE = "update"
    CLEAR = "clear"
    IMAGE = "image"
    FILE = "file"
    ERROR = "error"
    INPUT_REQUEST = "input_request"
    TRUNCATED = "truncated"
    END = "end"


class ArtifactKind(StrEnum):
    """An image is an artifact that a browser can show; every other file is a file."""

    IMAGE = "image"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a run produced. `seq` counts from 1 without gaps; `fields` is JSON-ready."""

    seq: int
    type: EventType
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """An artifact without its bytes. `name` is the path relative to the working directory."""

    id: ArtifactId
    kind: ArtifactKind
    name: str
    content_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a run made, with its bytes.

    A file whose content the run has under another name as well may come without `data`, and with the `sha256` of both.
    """

    ref: ArtifactRef
    data: bytes = field(repr=False)
    sha256: bytes | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run cost, as the supervisor read it from the container's cgroup."""

    wall_ms: float
    cpu_ms: float
    memory_peak_bytes: int

    def as_json(self) -> dict[str, Any]:
        """As it stands in answers and events."""
        return {"wall_ms": self.wall_ms, "cpu_ms": self.cpu_ms, "memory_peak_bytes": self.memory_peak_bytes}


@dataclass(frozen=True, slots=True)
class ExceptionInfo:
    """The exception that ended a run. `traceback` has no ANSI codes; `line` counts from 1 in the run's own code."""

    name: str
    value: str
    traceback: tuple[str, ...]
    line: int | None

    def as_json(self) -> dict[str, Any]:
        """As it stands in answers, live and stored."""
        return {"name": self.name, "value": self.value, "traceback": list(self.traceback), "line": self.line}


@dataclass(frozen=True, slots=True)
class JupyterRequest:
    """A Jupyter client's `execute_request` for a run, without the code.

    `header` is the client's own, JSON-ready and bounded: it is the parent of all messages of the run. `content` is the
    rest of the message's content. `client` is the `session_id` of the client's WebSocket, with which it reconnects.
    """

    header: Mapping[str, Any]
    metadata: Mapping[str, Any]
    content: Mapping[str, Any]
    client: str

    @property
    def is_noted(self) -> bool:
        """Whether it belongs in a notebook. Silent requests, and those without a place in the history, do not."""
        return not self.content.get("silent") and self.content.get("store_history") is not False

    @property
    def stops_others(self) -> bool:
        """Whether its failure cancels the requests that the same client has queued behind it."""
        return self.content.get("stop_on_error") is not False


def trace_fields(traceparent: str | None) -> dict[str, str]:
    """The trace as the log has it; nothing where there is none."""
    return {} if traceparent is None else {"trace_id": traceparent[3:35]}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a caller asks for, already validated: a configured language, identifier names, a finite timeout.

    `allow_stdin` means that somebody can answer `input()`. `jupyter` is set when a Jupyter client asks, in a session.
    `traceparent` is the caller's own, of W3C Trace Context, version 00.
    """

    tenant: TenantId
    code: str
    language: str
    variables: Mapping[str, Any]
    timeout_s: float
    session_id: SessionId | None = None
    allow_stdin: bool = False
    idempotency_key: str | None = None
    jupyter: JupyterRequest | None = None
    inputs: RunInputs | None = None
    traceparent: str | None = None

    def sha256(self) -> bytes:
        """A digest that is the same for two requests under one `Idempotency-Key` if they ask for the same."""
        asked: list[Any] = [self.code, self.language, self.variables, self.timeout_s, self.session_id]
        if self.inputs is not None:  # without them, it is what earlier gateways have stored
            asked.append(self.inputs.digest())
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of one piece of code, as it is recorded before it starts.

    `kernel_id` and `started_at` are set when it is about to be sent to that kernel; they change when it was not taken
    there. `code` and `variables` may hold NUL and lone surrogates. `request_sha256` comes with `idempotency_key`. A run
    that is read from the store has no `inputs`, unless it is taken over.
    """

    run_id: RunId
    tenant: TenantId
    gateway_id: GatewayId
    language: str
    code: str
    variables: Mapping[str, Any]
    timeout_s: float
    created_at: datetime
    kernel_id: KernelId | None = None
    started_at: datetime | None = None
    session_id: SessionId | None = None
    allow_stdin: bool = False
    idempotency_key: str | None = None
    request_sha256: bytes | None = None
    jupyter: JupyterRequest | None = None
    inputs: RunInputs | None = None
    traceparent: str | None = None

    def log_fields(self) -> dict[str, str]:
        """What every line of the log about it has."""
        return {"run_id": self.run_id, **trace_fields(self.traceparent)}

    def source_bytes(self) -> int:
        """The approximate size of all that it was asked with."""
        return self.text_bytes() + (0 if self.inputs is None else self.inputs.size_bytes())

    def text_bytes(self) -> int:
        """The approximate size of its code, its variables and the rest of a Jupyter client's request."""
        jupyter = self.jupyter
        asked = [] if jupyter is None else [jupyter.header, jupyter.metadata, jupyter.content]
        return len(self.code) + sum(len(json.dumps(part)) for part in (self.variables, *asked) if part)


@dataclass(frozen=True, slots=True)
class Result:
    """A run's final answer. `results` are MIME bundles in order, with images already moved to `images`."""

    run_id: RunId
    status: RunStatus
    output: str
    stderr: str = ""
    error: str | None = None
    exception: ExceptionInfo | None = None
    results: tuple[Mapping[str, Any], ...] = ()
    images: Mapping[str, ArtifactRef] = field(default_factory=dict)
    files: Mapping[str, ArtifactRef] = field(default_factory=dict)
    execution_count: int | None = None
    truncated: bool = False
    usage: Usage | None = None
    session_id: SessionId | None = None
    session_created: bool = False
    session_lost: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has been recorded: committed with its events, so that another gateway can continue from there.

    The committed events cover the frames up to `taken_seq`; pieces of an incomplete file are needed again, from
    `file_seq` on. `state` is what the fold knows beyond its events, JSON-ready and small.
    """

    taken_seq: int
    file_seq: int | None
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Events and artifacts that are committed together. Artifacts come with their `image` or `file` events."""

    events: tuple[Event, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the store has it.

    `number` counts up in the order in which runs were added. `result` is there once the run has ended, until retention
    removes it, which sets `expired_at`; `progress` is there while the run lives and something of it is committed.
    """

    run: Run
    number: int
    status: RunStatus
    finished_at: datetime | None = None
    expired_at: datetime | None = None
    result: Result | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as lists show it."""

    run_id: RunId
    number: int
    status: RunStatus
    language: str
    created_at: datetime
    finished_at: datetime | None
    session_id: SessionId | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs of a tenant to list, newest first: those that match every field that is set."""

    tenant: TenantId
    limit: int
    session_id: SessionId | None = None
    status: RunStatus | None = None
    before_number: int | None = None
    created_before: datetime | None = None
    created_from: datetime | None = None


class SessionState(StrEnum):
    """The state of a session's kernel. After `dead`, the next run gets a fresh kernel."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DEAD = "dead"


class SessionNews(StrEnum):
    """What the next run reports of its session: nothing, that the kernel is fresh, or that variables were lost.

    Lost variables imply a fresh kernel. Each is reported once.
    """

    NONE = "none"
    CREATED = "created"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class JupyterSession:
    """A Jupyter client's name for a kernel: usually the path of a notebook. `name` and `type` are the client's own.

    All of its texts may hold NUL and lone surrogates. `moves` counts how often it has gone to another kernel.
    """

    id: JupyterSessionId
    path: str
    name: str | None
    type: str
    moves: int = 0

    def as_json(self) -> dict[str, Any]:
        """As clients see it."""
        return {"id": self.id, "path": self.path, "name": self.name, "type": self.type}


@dataclass(frozen=True, slots=True)
class Session:
    """A kernel with an id that a client keeps.

    `kernel_id` is None while there is no sandbox. `generation` is the last kernel process that the client knows of;
    each supervisor counts its own from a random number. `version` counts the changes of `kernel_id`, `generation` and
    `news`: the store ignores a write of them unless its version is higher than the stored one. `jupyter_version` does
    the same for `jupyter`, the Jupyter sessions of this kernel. While one of them moves, two kernels have it: it is
    where its `moves` are higher. `usage` and `runs` add up the ended runs; `memory_peak_bytes` is their largest.
    """

    tenant: TenantId
    session_id: SessionId
    gateway_id: GatewayId
    language: str
    idle_timeout_s: float
    max_lifetime_s: float
    created_at: datetime
    last_used_at: datetime
    kernel_id: KernelId | None = None
    generation: int = 0
    news: SessionNews = SessionNews.NONE
    version: int = 0
    runs: int = 0
    usage: Usage = Usage(0.0, 0.0, 0)
    jupyter: tuple[JupyterSession, ...] = ()
    jupyter_version: int = 0

    @property
    def public_kernel_id(self) -> PublicKernelId:
        """The session's own id, if Jupyter clients accept it as a kernel's; otherwise a UUID that stays the same."""
        if can_name_a_kernel(self.session_id):
            return PublicKernelId(self.session_id)
        created_at = self.created_at.astimezone(UTC).isoformat()
        return PublicKernelId(str(uuid5(_PUBLIC_KERNELS, f"{self.tenant}\0{self.session_id}\0{created_at}")))

    @property
    def expires_at(self) -> datetime:
        """When it ends unless it is used or renewed before."""
        idle = self.last_used_at + timedelta(seconds=self.idle_timeout_s)
        return min(idle, self.created_at + timedelta(seconds=self.max_lifetime_s))


def can_name_a_kernel(text: str) -> bool:
    """Whether Jupyter clients and servers accept this as a kernel's id, so that a session's id may serve as one."""
    return len(text) <= MAX_ID_CHARACTERS and _JUPYTERS_KERNEL_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as it is now. `kernel_name` is the kernelspec's; `connections` counts the Jupyter clients on it."""

    session: Session
    state: SessionState
    kernel_name: str
    last_activity: datetime
    connections: int = 0


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a caller asks for, already validated. Without a `session_id` one is made up.

    `jupyter` is the Jupyter session that it has from the beginning. `files` are in its working directory then, by path.
    """

    tenant: TenantId
    session_id: SessionId | None
    language: str
    variables: Mapping[str, Any]
    idle_timeout_s: float
    max_lifetime_s: float
    jupyter: JupyterSession | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file below a session's working directory. `path` is relative to it."""

    path: str
    size_bytes: int
    modified_at: datetime
