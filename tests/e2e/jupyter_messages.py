"""Jupyter's messages as they go over a WebSocket, in both framings, and what a notebook makes of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from client_rig import Json

PARTS = ("header", "parent_header", "metadata", "content")


@dataclass
class Message:
    channel: str | None
    header: Json
    parent_header: Json
    metadata: Json
    content: Json
    buffers: list[bytes] = field(default_factory=list)

    @property
    def type(self) -> str:
        return str(self.header["msg_type"])

    @property
    def parent_id(self) -> str | None:
        return self.parent_header.get("msg_id")

    def is_state(self, state: str) -> bool:
        return self.type == "status" and self.content["execution_state"] == state


# --- The two framings, as jupyter_server's documentation has them ---------------------------------------------------


def to_v1(message: Message) -> bytes:
    """Little-endian u64: how many offsets, the offsets; then channel, the four JSON parts, and buffers."""
    parts = [(message.channel or "").encode(), *(json.dumps(getattr(message, name)).encode() for name in PARTS)]
    parts += message.buffers
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


def from_v1(frame: bytes) -> Message:
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    parts = [frame[start:stop] for start, stop in pairwise(offsets)]
    return Message(parts[0].decode(), *(json.loads(part) for part in parts[1:5]), buffers=list(parts[5:]))


def to_legacy(message: Message) -> str | bytes:
    """JSON text; with buffers big-endian u32: how many parts, their offsets; then the JSON and the buffers."""
    body = {name: getattr(message, name) for name in PARTS}
    if message.channel is not None:
        body["channel"] = message.channel
    if not message.buffers:
        return json.dumps(body)
    parts = [json.dumps(body).encode(), *message.buffers]
    offsets = [4 * (len(parts) + 1)]
    for part in parts[:-1]:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"!{len(parts) + 1}I", len(parts), *offsets) + b"".join(parts)


def from_legacy(frame: str | bytes) -> Message:
    buffers: list[bytes] = []
    if isinstance(frame, bytes):
        (count,) = struct.unpack_from("!I", frame)
        offsets = [*struct.unpack_from(f"!{count}I", frame, 4), len(frame)]
        frame, *buffers = (frame[start:stop] for start, stop in pairwise(offsets))
    body = json.loads(frame)
    # Clients read these two beside the header as well.
    assert (body["msg_id"], body["msg_type"]) == (body["header"]["msg_id"], body["header"]["msg_type"])
    return Message(body["channel"], *(body[name] for name in PARTS), buffers=buffers)


# --- What a notebook shows -------------------------------------------------------------------------------------------


def text_of(messages: Iterable[Message], parent_id: str) -> str:
    """The text below a cell: what was written to stdout since the last `clear_output`."""
    text, clear_first = "", False
    for message in messages:
        if message.parent_id != parent_id or message.channel != "iopub":
            continue
        if message.type == "clear_output":
            if message.content["wait"]:
                clear_first = True
            else:
                text, clear_first = "", False
        elif message.type in ("stream", "display_data", "execute_result", "error"):
            if clear_first:
                text, clear_first = "", False
            if message.type == "stream" and message.content["name"] == "stdout":
                text += message.content["text"]
    return text
