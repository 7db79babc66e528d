"""The events of a run, and what else is sent over its WebSocket, as types that only the description uses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.http.description.answers import RunAnswer, Url, Uuid

Seq = Annotated[int, Meta(ge=1)]


class _Event(Struct, kw_only=True):
    run_id: Uuid
    """The run."""
    seq: Seq
    """From 1 without gaps: the position in the stream, and the `id` of a server-sent event."""


class Started(_Event, tag_field="type", tag="started", kw_only=True):
    """The code begins."""

    execution_count: int | UnsetType = UNSET
    """The number in `In [1]`."""
    session_id: str | UnsetType = UNSET
    """Its session."""
    session_created: bool | UnsetType = UNSET
    """In a session: whether the kernel is fresh."""


class Stdout(_Event, tag_field="type", tag="stdout", kw_only=True):
    """Text on stdout."""

    text: str
    """What was written."""


class Stderr(_Event, tag_field="type", tag="stderr", kw_only=True):
    """Text on stderr."""

    text: str
    """What was written."""


class Display(_Event, tag_field="type", tag="result", kw_only=True):
    """Something was displayed, or the last expression has a value."""

    data: dict[str, Any]
    """A MIME bundle; an image is replaced by `{"image": name}`."""
    metadata: dict[str, Any]
    """As the display gave it; `{}` where that is over 1,024 characters."""
    display_id: str | None
    """Under which it can be updated."""
    is_main_result: bool
    """Whether it is the value of the last expression."""


class Update(_Event, tag_field="type", tag="update", kw_only=True):
    """Replaces every result shown under that id."""

    data: dict[str, Any]
    """A MIME bundle."""
    display_id: str | None
    """Which results."""


class Clear(_Event, tag_field="type", tag="clear", kw_only=True):
    """What was shown is cleared."""

    wait: bool
    """Whether clearing waits for the next output."""


class _Artifact(_Event, kw_only=True):
    name: str
    """Its name, or path below the working directory."""
    url: Url
    """Where it is."""
    content_type: str
    """Its media type."""
    bytes: int
    """Its size."""


class Image(_Artifact, tag_field="type", tag="image", kw_only=True):
    """An image that the run made. A displayed figure's comes before its `result`."""


class File(_Artifact, tag_field="type", tag="file", kw_only=True):
    """Another file that the run made or changed."""


class ExceptionEvent(_Event, tag_field="type", tag="error", kw_only=True):
    """An exception that the code did not catch."""

    name: str
    """Its class."""
    value: str
    """Its message."""
    traceback: list[str]
    """Lines without colour codes."""


class InputRequest(_Event, tag_field="type", tag="input_request", kw_only=True):
    """`input()` waits for a line. Over the WebSocket alone."""

    prompt: str
    """What it asks."""
    password: bool
    """Whether what is typed should be hidden."""


class Truncated(_Event, tag_field="type", tag="truncated", kw_only=True):
    """Something was cut or left out."""

    what: Literal["output", "results", "images", "files", "events"]
    """What of."""
    dropped_bytes: int
    """How much."""


class End(RunAnswer, tag_field="type", tag="end", kw_only=True):
    """The last event, with the whole answer."""

    seq: Seq
    """One more than that of the event before."""


Event = (
    Started
    | Stdout
    | Stderr
    | Display
    | Update
    | Clear
    | Image
    | File
    | ExceptionEvent
    | InputRequest
    | Truncated
    | End
)


class SocketError(Struct, kw_only=True):
    """A message that was refused. The connection goes on."""

    type: Literal["error"]
    """Always `error`; unlike the event of this type it has no `seq`."""
    error: str
    """A sentence for people."""
    code: str
    """For programs, as in HTTP."""
    id: str | int | float | None
    """That of the message."""
    retry_after: int | UnsetType = UNSET
    """Seconds, where HTTP has `Retry-After`."""
