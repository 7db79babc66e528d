"""The events of a run: numbered without gaps, with output merged, and drained in batches. Pure.

The mutable state is the next batch, the next number, and how many events were left out because there are too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sessions.model import Artifact, Batch, Event, EventType

_MERGED_TEXT_CHARACTERS = 32_768
_MANY_EVENTS = 10_000
_OPTIONAL_EVENTS = frozenset(
    {EventType.RESULT, EventType.UPDATE, EventType.CLEAR, EventType.ERROR, EventType.INPUT_REQUEST}
)
_TEXT_EVENTS = frozenset({EventType.STDOUT, EventType.STDERR})


class EventLog:
    """One run's. `next_seq` counts from 1."""

    def __init__(self) -> None:
        self.next_seq = 1
        self.dropped = 0
        self._events: list[Event] = []
        self._artifacts: list[Artifact] = []

    def __repr__(self) -> str:
        return f"<EventLog {self.next_seq - 1} events, {len(self._events)} pending>"

    def drain(self) -> Batch:
        """The events and artifacts since the last call."""
        batch = Batch(tuple(self._events), tuple(self._artifacts))
        self._events, self._artifacts = [], []
        return batch

    def has_pending(self) -> bool:
        """Whether `drain` would return anything."""
        return bool(self._events)

    def add(self, type_: EventType, **fields: Any) -> bool:
        """Add an event; False when it was left out because there are too many."""
        if self.next_seq > _MANY_EVENTS and type_ in _OPTIONAL_EVENTS:
            self.dropped += 1
            return False
        self._events.append(Event(self.next_seq, type_, fields))
        self.next_seq += 1
        return True

    def add_text(self, stream: EventType, text: str) -> None:
        """Add output, to the last event if it has room: output comes in many small pieces.

        After very many events the order between the two streams is not kept, so that pieces can still be merged.
        """
        for index in (-1, -2) if self.next_seq > _MANY_EVENTS else (-1,):
            last = self._events[index] if len(self._events) >= -index else None
            if last is None or last.type not in _TEXT_EVENTS:
                break
            if last.type is stream and len(last.fields["text"]) + len(text) <= _MERGED_TEXT_CHARACTERS:
                self._events[index] = Event(last.seq, stream, {"text": last.fields["text"] + text})
                return
        self.add(stream, text=text)

    def add_artifacts(self, artifacts: Sequence[Artifact]) -> None:
        """Add artifacts, each with its event."""
        for artifact in artifacts:
            ref = artifact.ref
            self._artifacts.append(artifact)
            self.add(
                EventType(ref.kind.value),
                name=ref.name,
                artifact_id=ref.id,
                content_type=ref.content_type,
                bytes=ref.size_bytes,
            )
