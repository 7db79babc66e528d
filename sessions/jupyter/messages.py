"""Jupyter messages to and from clients, on any channel, and those that the gateway makes itself. Pure.

A kernel's message is passed on unchanged but for its parent header: requests are sent to the kernel under a msg_id of
ours, and the answers name the client's own header again. https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NoReturn
from uuid import uuid4

from kernel_image.protocol import MESSAGE_CHANNELS, decode_message, encode_message
from sessions import quick_json
from sessions.errors import ProtocolViolation
from sessions.kernels.messages import PROTOCOL_VERSION, decode_object
from sessions.model import Result, RunStatus
from sessions.sanitize import has_too_many_values

_EMPTY = b"{}"
_MAX_HEADER_BYTES = 32 << 10
_MAX_CACHED_BYTES = 2048
_MAX_STATUS_BYTES = 256
_MAX_VALUES = 1_000_000
_MAX_CONTAINERS = 100_000

_SESSION = uuid4().hex


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """One message. `metadata` and `content` are JSON objects, as text in UTF-8."""

    channel: str
    header: Mapping[str, Any]
    parent_header: Mapping[str, Any]
    metadata: bytes = _EMPTY
    content: bytes = _EMPTY
    buffers: tuple[bytes, ...] = ()

    @property
    def msg_type(self) -> str:
        """Its type, such as `execute_request`."""
        return str(self.header["msg_type"])

    @property
    def msg_id(self) -> str:
        """Its id."""
        return str(self.header["msg_id"])

    @property
    def parent_id(self) -> str:
        """The msg_id of the request that it answers; empty if there is none."""
        return str(self.parent_header.get("msg_id", ""))

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return 1024 + len(self.metadata) + len(self.content) + sum(map(len, self.buffers))

    def frame(self, header: Mapping[str, Any] | None = None) -> bytes:
        """Its bytes in the framing of `v1.kernel.websocket.jupyter.org`; `header` replaces its own, if given."""
        parts = (quick_json.dump(dict(part)) for part in (header or self.header, self.parent_header))
        return encode_message(self.channel, [*parts, self.metadata, self.content, *self.buffers])


def parse_kernel_frame(frame: memoryview) -> ClientMessage | None:
    """The message in a frame from a kernel, with the header fields that clients insist on; None if it is malformed.

    A message whose metadata or content is too costly to decode is replaced by a note that it was cut.
    """
    channel, parts = decode_message(frame)
    if channel not in MESSAGE_CHANNELS:
        return None
    try:
        parent = parts[1]
        header = _decode_header(parts[0])
        parent_header = _decode_parent(parent) if len(parent) <= _MAX_CACHED_BYTES else _decode_header(parent)
        parts[2:4] = map(_well_formed, parts[2:4])
        msg_type = header.get("msg_type")
        if not isinstance(msg_type, str):
            return None
        if any(_is_too_costly(part) for part in parts[2:4]):
            return note(f"a {msg_type} was cut: it had too many values in it", parent_header)
    except (ProtocolViolation, ValueError, RecursionError):
        return None
    header = _complete(header)
    return ClientMessage(channel, header, parent_header, parts[2], parts[3], tuple(parts[4:]))


def _well_formed(part: bytes) -> bytes:
    """Valid UTF-8: ipykernel writes file names in other encodings as raw bytes."""
    return part if part.isascii() else part.decode("utf-8", "replace").encode()


def _decode_header(part: bytes) -> dict[str, Any]:
    """A header of bounded size, since every client's outbox keeps it. Raises ProtocolViolation, ValueError."""
    if len(part) > _MAX_HEADER_BYTES:
        raise ValueError(len(part))
    header = decode_object(part.decode())
    if not all(isinstance(value, str) for value in header.values()):
        json.dumps(header, allow_nan=False)
    return header


@lru_cache(maxsize=64)
def _decode_parent(part: bytes) -> Mapping[str, Any]:
    """The same; all messages of a request have the same parent, to the byte."""
    return _decode_header(part)


def _is_too_costly(part: bytes) -> bool:
    """Whether decoding would take too long. Raises ValueError, RecursionError if it is not a JSON object."""
    if part == _EMPTY:
        return False
    text = part.decode()
    if has_too_many_values(text, max_values=_MAX_VALUES, max_containers=_MAX_CONTAINERS):
        return True
    if not isinstance(quick_json.load(text, _STRICT), dict):
        raise ValueError(text[:20])  # noqa: TRY004 - as for any other text that is not an object
    return False


def _refuse(constant: str) -> NoReturn:
    """Python accepts NaN and the infinities; browsers do not."""
    raise ValueError(constant)


_STRICT = json.JSONDecoder(parse_constant=_refuse)


def _complete(header: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields that clients insist on; the supervisor's own messages lack some of them."""
    given = {name: value for name, value in header.items() if isinstance(value, str) or name not in _REQUIRED}
    return given if given.keys() >= _REQUIRED else {**_header(str(header["msg_type"])), **given}


_REQUIRED = frozenset({"msg_id", "msg_type", "username", "session", "version", "date"})


def _header(msg_type: str) -> dict[str, Any]:
    return {
        "msg_id": uuid4().hex,
        "msg_type": msg_type,
        "username": "cellblock",
        "session": _SESSION,
        "date": datetime.now(UTC).isoformat(),
        "version": PROTOCOL_VERSION,
    }


def make(
    msg_type: str, content: Mapping[str, Any], parent_header: Mapping[str, Any], channel: str = "iopub"
) -> ClientMessage:
    """A message that the gateway makes itself."""
    return ClientMessage(channel, _header(msg_type), parent_header, content=json.dumps(dict(content)).encode())


def status(state: str, parent_header: Mapping[str, Any]) -> ClientMessage:
    """The kernel is `busy`, `idle`, `starting`, `restarting` or `dead`."""
    return make("status", {"execution_state": state}, parent_header)


def says_state(message: ClientMessage, state: str) -> bool:
    """Whether it is a status message that says so."""
    return (
        message.msg_type == "status"
        and len(message.content) < _MAX_STATUS_BYTES
        and f'"{state}"'.encode() in message.content
    )


def note(text: str, parent_header: Mapping[str, Any]) -> ClientMessage:
    """A line of ours on stderr, in the output of the request `parent_header`."""
    return make("stream", {"name": "stderr", "text": f"[cellblock] {text}\n"}, parent_header)


def dropped(request: ClientMessage, error: Exception) -> list[ClientMessage]:
    """A line of ours that a request has not reached the kernel, and why; and `idle`, for which widgets wait."""
    return [note(f"{request.msg_type} was dropped: {error}", request.header), status("idle", request.header)]


def run_ending(
    parent_header: Mapping[str, Any], result: Result | None, *, is_aborted: bool = False, has_error: bool = False
) -> list[ClientMessage]:
    """The messages that end a run whose kernel has not sent them. `has_error`: the error has been sent already."""
    count = result.execution_count if result is not None else None
    if result is not None and result.status is RunStatus.OK:
        content: dict[str, Any] = {"status": "ok", "execution_count": count, "user_expressions": {}, "payload": []}
        answers = []
    elif is_aborted:
        content = {"status": "aborted"}
        answers = [status("busy", parent_header)]
    else:
        name, value, traceback = _error_of(result)
        error = {"ename": name, "evalue": value, "traceback": traceback}
        content = {"status": "error", "execution_count": count, "user_expressions": {}, "payload": [], **error}
        answers = [] if has_error else [make("error", error, parent_header)]
    return [*answers, make("execute_reply", content, parent_header, "shell"), status("idle", parent_header)]


def _error_of(result: Result | None) -> tuple[str, str, list[str]]:
    if result is None:
        return "EndNotStored", "The run has ended, but that could not be stored.", []
    if result.exception is not None:
        return result.exception.name, result.exception.value, list(result.exception.traceback)
    name = "".join(word.capitalize() for word in result.status.value.split("_"))
    value = result.error or f"The run ended as {result.status.value}."
    return name, value, [f"{name}: {value}"]
