"""Jupyter messages: builds requests, decodes and checks everything that kernels send.

Hostile code may have written what kernels send: its size and depth are bounded, its types are checked, and whatever is
wrong with it raises the same type of error. Message types: https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import uuid4

from kernel_image.protocol import ARTIFACT_CHANNEL, CLIENT_ID, FrameError, decode_message, encode_message
from sessions import quick_json
from sessions.errors import ProtocolViolation
from sessions.model import JupyterRequest
from sessions.sanitize import has_too_many_values, is_deeper

PROTOCOL_VERSION = "5.4"
"""Of the messages that we make: jupyter_client's own, without the import of all of it."""

ACCEPTED: Mapping[str, frozenset[str]] = {
    "iopub": frozenset(
        {
            "status",
            "stream",
            "display_data",
            "update_display_data",
            "execute_result",
            "execute_input",
            "error",
            "clear_output",
        }
    ),
    "shell": frozenset({"execute_reply"}),
    "stdin": frozenset({"input_request"}),
    ARTIFACT_CHANNEL: frozenset({"artifact"}),
}
"""The messages that a supervisor may send, by channel; others are acknowledged and dropped."""

_MAX_JSON_DEPTH = 64
_MAX_JSON_VALUES = 100_000
_MAX_ID_CHARACTERS = 256
_MAX_CACHED_BYTES = 2048
_REPLACED = ("version", "date")
_BEGINS_LIKE_A_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T")


@dataclass(frozen=True, slots=True)
class Message:
    """One message from a kernel. `content` is a JSON object of which nothing more has been checked.

    `dropped_bytes` is the size of a content that was too costly to decode; otherwise 0.
    """

    channel: str
    msg_type: str
    parent_id: str
    content: Mapping[str, Any]
    buffers: tuple[bytes, ...]
    dropped_bytes: int = 0


class RequestBuilder:
    """Builds the requests to one kernel."""

    def __init__(self) -> None:
        self._header = {"username": "cellblock", "session": uuid4().hex}

    def execute(
        self,
        msg_id: str,
        code: str,
        *,
        silent: bool = False,
        allow_stdin: bool = False,
        metadata: Mapping[str, Any] | None = None,
        jupyter: JupyterRequest | None = None,
    ) -> bytes:
        """The frame of an execute_request. A supervisor forwards only one request with the same `msg_id`.

        `jupyter`: the client's own request, whose fields replace `silent` and `allow_stdin`.
        """
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": {},
            "allow_stdin": allow_stdin,
            "stop_on_error": False,  # requests queue at the gateway, which knows whose they are
        }
        if jupyter is None:
            return self._frame("shell", "execute_request", msg_id, content, metadata)
        content = {**content, **jupyter.content, "code": code, "stop_on_error": False}
        metadata = {**jupyter.metadata, **(metadata or {})}
        return self._frame("shell", "execute_request", msg_id, content, metadata, like=jupyter.header)

    def input_reply(self, msg_id: str, value: str, question: Mapping[str, str]) -> bytes:
        """The frame of an answer to an input_request; `question` is the field of the header that says which one."""
        content = {"status": "ok", "value": value}
        return self._frame("stdin", "input_reply", msg_id, content, beside=question)

    def _frame(
        self,
        channel: str,
        msg_type: str,
        msg_id: str,
        content: Any,
        metadata: Mapping[str, Any] | None = None,
        *,
        like: Mapping[str, Any] | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> bytes:
        header = {**self._header, **for_kernel(like or {}, msg_id), **(beside or {}), "msg_type": msg_type}
        # ASCII, so that lone surrogates in code and variables pass as escapes; and NaN as what Python makes of it.
        metadata_and_content = (json.dumps(part).encode() for part in (metadata or {}, content))
        return encode_message(channel, [quick_json.dump(header), b"{}", *metadata_and_content])


def for_kernel(header: Mapping[str, Any], msg_id: str) -> dict[str, Any]:
    """A client's header under a msg_id of ours, with the client's beside it.

    It lacks the fields that could make a kernel fail, and never answer: ipykernel keys streams by the whole header;
    jupyter_client parses versions, and whatever looks like a date.
    """
    kept = {
        name: value
        for name, value in header.items()
        if name not in _REPLACED and isinstance(value, str | int | float) and _is_sound(value)
    }
    theirs = kept.pop("msg_id", None)
    beside = {CLIENT_ID: theirs} if theirs is not None else {}
    kept.pop(CLIENT_ID, None)
    return {**kept, **beside, "msg_id": msg_id, "version": PROTOCOL_VERSION, "date": datetime.now(UTC).isoformat()}


def _is_sound(value: Any) -> bool:
    if not isinstance(value, str) or _BEGINS_LIKE_A_DATE.match(value) is None:
        return True
    # A tenth of a second of imports, for what hardly any client sends.
    from jupyter_client.jsonutil import extract_dates  # noqa: PLC0415

    try:
        extract_dates(value)
    except (ValueError, OverflowError):
        return False
    return True


def decode(frame: bytes | memoryview) -> Message | None:
    """Decode one frame. None for a message of an unexpected type, or that cannot be read.

    The supervisor forwards the kernel's messages unread: malformed ones are the user's doing, and are only dropped. A
    frame with the wrong layout is the supervisor's fault: raises ProtocolViolation.
    """
    try:
        channel, parts = decode_message(frame)
    except FrameError as error:
        raise ProtocolViolation(f"A supervisor sent a frame that cannot be decoded: {error}.") from error
    try:
        msg_type = decode_object(parts[0]).get("msg_type")
        if not isinstance(msg_type, str) or msg_type not in ACCEPTED.get(channel, ()):
            return None
        parent = parts[1]
        parent_id = _id_in(parent) if len(parent) <= _MAX_CACHED_BYTES else decode_object(parent).get("msg_id")
        if not isinstance(parent_id, str) or len(parent_id) > _MAX_ID_CHARACTERS:
            return None
        content = parts[3].decode("utf-8", "replace")
        if _is_too_costly(content):
            return Message(channel, msg_type, parent_id, {}, (), dropped_bytes=len(parts[3]))
        return Message(channel, msg_type, parent_id, _decode_affordable(content), tuple(parts[4:]))
    except ProtocolViolation:
        return None


@lru_cache(maxsize=64)
def _id_in(header: bytes) -> Any:
    """The msg_id; all messages of a run have the same parent, to the byte. Raises ProtocolViolation."""
    return decode_object(header).get("msg_id")


def decode_object(data: bytes | str) -> dict[str, Any]:
    """Decode a JSON object of bounded size and depth, with invalid UTF-8 replaced. Raises ProtocolViolation.

    Recursion and integer size are bounded by Python itself; both of its errors are caught here.
    """
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    if _is_too_costly(text):
        raise ProtocolViolation("A supervisor sent JSON with too many values in it.")
    return _decode_affordable(text)


def _decode_affordable(text: str) -> dict[str, Any]:
    """What is left of it once the cost is known: judging that takes longer than decoding where there are many escapes.

    A thread would not spare the event loop: the decoder holds the interpreter's lock to the end.
    """
    try:
        value = quick_json.load(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation("A supervisor sent text that is no JSON.") from error
    may_be_deep = text.count("{") + text.count("[") > _MAX_JSON_DEPTH
    if not isinstance(value, dict) or (may_be_deep and is_deeper(value, _MAX_JSON_DEPTH)):
        raise ProtocolViolation("A supervisor sent JSON that is no object, or nested too deeply.")
    return value


def _is_too_costly(text: str) -> bool:
    return has_too_many_values(text, max_values=_MAX_JSON_VALUES, max_containers=_MAX_JSON_VALUES)
