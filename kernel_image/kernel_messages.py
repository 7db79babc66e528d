"""What the supervisor reads in a kernel's messages, and how it shortens them. Pure.

User code can write these messages itself: malformed fields count as absent.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from kernel_image.output_ring import SENT_METADATA, STREAMS

JSON_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
"""Everything that decoding a message of hostile code can raise."""

_OUTCOME_CHARACTERS = 4096
_OUTCOME_LINES = 20


def silent_execution(code: str) -> dict[str, Any]:
    """The content of an `execute_request` that leaves no trace."""
    return {"code": code, "silent": True, "store_history": False, "user_expressions": {}, "allow_stdin": False}


def note_sent(metadata: bytes, sent_bytes_by_stream: dict[str, int]) -> None:
    """Note what the metadata of a `stream` says of how much has been sent."""
    with suppress(*JSON_ERRORS):
        stream, sent_bytes = json.loads(metadata)[SENT_METADATA]
        if stream in STREAMS:
            sent_bytes_by_stream[stream] = max(0, int(sent_bytes))


def is_idle(content: bytes) -> bool:
    """Whether the content of a `status` is `idle`."""
    with suppress(*JSON_ERRORS):
        return bool(json.loads(content)["execution_state"] == "idle")
    return False


def is_outcome(channel: str, msg_type: str) -> bool:
    """Whether a message of this type tells if the code raised."""
    return (channel, msg_type) in {("shell", "execute_reply"), ("iopub", "error")}


def asks_exit(content: bytes) -> bool:
    """Whether the content of an `execute_reply` says that the kernel ends now, as it does after `exit()`.

    It looks for the deprecated payload that ipykernel still sends, in ZMQInteractiveShell.ask_exit.
    """
    if b"ask_exit" not in content:
        return False
    with suppress(*JSON_ERRORS):
        payloads = json.loads(content)["payload"]
        return any(item["source"] == "ask_exit" and item.get("keepkernel") is not True for item in payloads)
    return False


def shorten_outcome(parts: list[bytes]) -> list[bytes]:
    """An `execute_reply` or `error` cut to the name and the ends of the traceback: about a megabyte at most."""
    try:
        content = json.loads(parts[3])
        lines = [str(line)[:_OUTCOME_CHARACTERS] for line in content.get("traceback", [])[-_OUTCOME_LINES:]]
        texts = {name: str(content.get(name, ""))[:_OUTCOME_CHARACTERS] for name in ("status", "ename", "evalue")}
        short = {**texts, "traceback": lines, "execution_count": int(content.get("execution_count", 0))}
    except JSON_ERRORS:
        return parts
    return [parts[0], parts[1], b"{}", json.dumps(short).encode()]


def cut_stream(parts: list[bytes], limit_bytes: int) -> list[bytes]:
    """A `stream` message cut to about `limit_bytes` of text."""
    try:
        content = json.loads(parts[3])
        content["text"] = content["text"][:limit_bytes]
        return [*parts[:3], json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")]
    except JSON_ERRORS:
        return [*parts[:3], json.dumps({"name": "stdout", "text": ""}).encode()]


def msg_id_of(parts: list[bytes]) -> str | None:
    """The msg_id in the header, if there is one."""
    try:
        msg_id = json.loads(parts[0])["msg_id"]
    except (*JSON_ERRORS, IndexError):
        return None
    return msg_id if isinstance(msg_id, str) else None
