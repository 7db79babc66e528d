"""Jupyter messages as WebSocket messages, in the two framings that clients use. Pure.

https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gateway.http.parse.body import parse_json_object
from kernel_image.protocol import SUBPROTOCOL, FrameError, decode_message
from sessions import quick_json
from sessions.errors import CellblockError, InvalidRequest
from sessions.jupyter.messages import ClientMessage

_CHANNELS = frozenset({"shell", "control", "stdin", "iopub"})
_MAX_HEADER_CHARACTERS = 16 << 10
_MAX_BUFFERS = 56
_U32_BYTES = 4
_OPTIONAL: tuple[Any, ...] = (None, "", [], {})


class Framed:
    """`v1.kernel.websocket.jupyter.org`: binary, and the parts of a message stay as they are."""

    def encode(self, message: ClientMessage) -> str | bytes:
        return message.frame()

    def decode(self, message: str | bytes) -> ClientMessage:
        if isinstance(message, str):
            raise InvalidRequest("Messages are binary in this sub-protocol.")
        try:
            channel, (header, parent_header, metadata, content, *buffers) = decode_message(message)
        except FrameError as error:
            raise InvalidRequest(f"This message does not have the layout of its sub-protocol: {error}.") from error
        return ClientMessage(
            _channel(channel),
            _header(_object(header)),
            _object(parent_header),
            _checked(metadata),
            _checked(content),
            tuple(buffers),
        )


class Plain:
    """The older framing: one JSON object, and with buffers a binary message that begins with their offsets."""

    def encode(self, message: ClientMessage) -> str | bytes:
        fields: dict[str, Any] = {
            "channel": message.channel,
            "msg_id": message.header.get("msg_id"),
            "msg_type": message.header.get("msg_type"),
            "header": dict(message.header),
            "parent_header": dict(message.parent_header),
            "buffers": [],
        }
        # These two are JSON already, and may be large.
        text = quick_json.dump(fields)[:-1]
        body = b"".join([text, b', "metadata": ', message.metadata, b', "content": ', message.content, b"}"])
        if not message.buffers:
            return body.decode("utf-8", "replace")
        parts = [body, *message.buffers]
        offset = _U32_BYTES * (len(parts) + 1)
        offsets = []
        for part in parts:
            offsets.append(offset)
            offset += len(part)
        return b"".join([struct.pack(f"!{len(parts) + 1}I", len(parts), *offsets), *parts])

    def decode(self, message: str | bytes) -> ClientMessage:
        """What has no channel is shell's; only the header must be there."""
        text, buffers = (message.encode("utf-8", "replace"), ()) if isinstance(message, str) else _split(message)
        fields = _object(text)
        return ClientMessage(
            _channel(fields.get("channel") or "shell"),
            _header(fields.get("header")),
            _optional(fields, "parent_header"),
            json.dumps(_optional(fields, "metadata")).encode(),
            json.dumps(_optional(fields, "content")).encode(),
            buffers,
        )


Framing = Framed | Plain


def framing_of(subprotocol: str | None) -> Framing:
    """The framing of a connection, by the sub-protocol that was agreed on."""
    return Framed() if subprotocol == SUBPROTOCOL else Plain()


def _split(message: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """JSON and buffers of a binary message. Raises InvalidRequest, before copying any of it."""
    malformed = InvalidRequest("A binary message begins with the number and the offsets of its parts.")
    if len(message) < _U32_BYTES:
        raise malformed
    (count,) = struct.unpack_from("!I", message)
    if not 1 <= count <= _MAX_BUFFERS + 1 or len(message) < _U32_BYTES * (count + 1):
        raise malformed
    offsets = [*struct.unpack_from(f"!{count}I", message, _U32_BYTES), len(message)]
    if offsets[0] < _U32_BYTES * (count + 1) or offsets != sorted(offsets):
        raise malformed
    text, *buffers = (message[start:end] for start, end in pairwise(offsets))
    return text, tuple(buffers)


def _object(text: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(text or b"{}")
    except CellblockError as error:
        raise InvalidRequest(str(error).replace("The body", "A message", 1)) from error


def _checked(part: bytes) -> bytes:
    """The part unchanged, if it is a JSON object: a kernel drops anything else, and its client would wait for ever."""
    _object(part)
    return part or b"{}"


def _channel(channel: Any) -> str:
    if not isinstance(channel, str) or channel not in _CHANNELS:
        raise InvalidRequest("A message's channel is shell, control or stdin.")
    return channel


def _header(header: Any) -> Mapping[str, Any]:
    """A client's header, with any further fields. It is stored with the request, so its size is bounded."""
    if not isinstance(header, dict) or not all(isinstance(header.get(name), str) for name in ("msg_id", "msg_type")):
        raise InvalidRequest("A message has a header, with a `msg_id` and a `msg_type`.")
    if len(json.dumps(header)) > _MAX_HEADER_CHARACTERS:
        raise InvalidRequest("A message's header is too long.")
    return header


def _optional(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part that may be missing; clients have various ways to leave it empty."""
    value = fields.get(name)
    if isinstance(value, dict):
        return value
    if value in _OPTIONAL:
        return {}
    raise InvalidRequest(f"A message's {name} is a JSON object.")
