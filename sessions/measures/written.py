"""How large what is written is: its texts and its bytes, roughly, without what a database adds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sessions.model import Batch, Result


@dataclass(frozen=True, slots=True)
class WrittenBytes:
    """By kind. The sum of several is one, too."""

    answers: int = 0
    artifacts: int = 0
    events: int = 0

    def __add__(self, other: WrittenBytes) -> WrittenBytes:
        return WrittenBytes(self.answers + other.answers, self.artifacts + other.artifacts, self.events + other.events)

    @property
    def total(self) -> int:
        """All of it."""
        return self.answers + self.artifacts + self.events


def bytes_of(batch: Batch, result: Result | None = None) -> WrittenBytes:
    """What a batch has, and the answer that is written with it."""
    return WrittenBytes(
        answers=0 if result is None else len(result.output) + len(result.stderr) + sum(map(text_bytes, result.results)),
        artifacts=sum(len(artifact.data) for artifact in batch.artifacts),
        events=sum(text_bytes(event.fields) for event in batch.events),
    )


def text_bytes(fields: Mapping[str, Any]) -> int:
    """The texts in a row or an event, or in what it has of MIME types."""
    return sum(
        len(value) if isinstance(value, str | bytes) else text_bytes(value) if isinstance(value, Mapping) else 0
        for value in fields.values()
    )
