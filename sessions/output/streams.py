"""What a run has written to stdout and stderr, cut at a common limit. Pure.

The mutable state is the text so far, how many bytes may still come, and how many were dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sessions.model import EventType
from sessions.sanitize import cut_utf8, well_formed


class OutputStreams:
    """Both streams of one run, by the type of their events. `limit_bytes`, and what is left of it, count in UTF-8."""

    def __init__(self, limit_bytes: int) -> None:
        self.dropped_bytes = 0
        self.left_bytes = limit_bytes
        self._text: dict[EventType, list[str]] = {EventType.STDOUT: [], EventType.STDERR: []}

    def text(self, stream: EventType) -> str:
        """All of one stream."""
        return "".join(self._text[stream])

    def write(self, stream: EventType, text: str) -> str:
        """Add what the code has written; returns the part that is kept, as well-formed text."""
        text = well_formed(text)
        size_bytes = len(text.encode())
        kept = text if size_bytes <= self.left_bytes else cut_utf8(text, self.left_bytes)
        kept_bytes = size_bytes if kept is text else len(kept.encode())
        self.left_bytes -= kept_bytes
        if kept_bytes < size_bytes:
            self.dropped_bytes += size_bytes - kept_bytes
            self.left_bytes = 0
        if kept:
            self._text[stream].append(kept)
        return kept

    def add(self, stream: EventType, text: str) -> None:
        """Add text that does not count: our own notices, and output that an earlier gateway has counted."""
        self._text[stream].append(text)

    def state(self) -> dict[str, Any]:
        """What the text does not tell, JSON-ready."""
        return {"left_bytes": self.left_bytes, "dropped_bytes": self.dropped_bytes}

    def resume(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`. Without any, only the text counts."""
        spent_bytes = sum(len(part.encode()) for parts in self._text.values() for part in parts)
        self.left_bytes = state.get("left_bytes", max(0, self.left_bytes - spent_bytes))
        self.dropped_bytes = state.get("dropped_bytes", 0)
