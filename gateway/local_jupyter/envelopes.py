"""The envelope of a message, which is what routing needs: its id, its type, and what it answers. Pure.

Hostile code writes a kernel's messages: one is passed on only if a client can decode all of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sessions.errors import ProtocolViolation
from sessions.kernels.messages import decode_object
from sessions.sanitize import has_too_many_values, is_deeper

_MAX_DEPTH = 100
_MAX_VALUES = 4_000_000
_MAX_CONTAINERS = 400_000
_MAX_NAME_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Envelope:
    """`header` is the message's own; `parent_id` is empty where it answers nothing."""

    header: dict[str, Any]
    msg_id: str
    msg_type: str
    parent_id: str


def of_client(parts: Sequence[bytes]) -> Envelope | None:
    """The envelope of a client's message; None when it has none."""
    try:
        return _envelope(json.loads(parts[0]), {})
    except (ValueError, RecursionError):
        return None


def of_kernel(parts: Sequence[bytes]) -> Envelope | None:
    """The envelope of a kernel's message; None when no client should see the message."""
    try:
        envelope = _envelope(decode_object(parts[0]), decode_object(parts[1]))
    except ProtocolViolation:
        return None
    return envelope if all(map(_is_bounded_object, parts[2:4])) else None


def _envelope(header: Any, parent: dict[str, Any]) -> Envelope | None:
    if not isinstance(header, dict):
        return None
    names = (header.get("msg_id"), header.get("msg_type"), parent.get("msg_id", ""))
    if not all(isinstance(name, str) and len(name) <= _MAX_NAME_CHARACTERS for name in names):
        return None
    return Envelope(header, *map(str, names))


def _is_bounded_object(part: bytes) -> bool:
    """The bounds are wider than the gateway's: a plot for one client may be a list of a million numbers."""
    text = part.decode("utf-8", "replace")
    if has_too_many_values(text, max_values=_MAX_VALUES, max_containers=_MAX_CONTAINERS):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not is_deeper(value, _MAX_DEPTH)
