"""The messages that were forwarded and may not have arrived: sent again when the supervisor dials anew. Pure.

They are in order, bounded in number and bytes, and each is for one kernel process. What is no execute_request is kept
here; the others are pending_requests.py's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MOST = 1024
MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Forwarded:
    """`number` is its place among everything that was sent to the kernel."""

    number: int
    generation: int
    frame: bytes


class ForwardedFrames:
    """The state: the frames by msg_id, oldest first, and their size."""

    def __init__(self) -> None:
        self._frames: OrderedDict[str, _Forwarded] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def has_room(self, size_bytes: int) -> bool:
        """Whether a frame of this size can be kept beside all others."""
        return len(self._frames) < MOST and self._bytes + size_bytes <= MOST_BYTES

    def add(self, msg_id: str, number: int, generation: int, frame: bytes) -> None:
        """Keep a frame, instead of the oldest ones when there is no room; of one that is too large its place alone."""
        self._forget(msg_id)
        if len(frame) > MOST_BYTES:
            frame = b""
        while not self.has_room(len(frame)):
            self._forget(next(iter(self._frames)))
        self._frames[msg_id] = _Forwarded(number, generation, frame)
        self._bytes += len(frame)

    def note_arrived(self, msg_id: str) -> None:
        """The supervisor has this one, and with it all that was sent before."""
        while msg_id in self._frames:
            self._forget(next(iter(self._frames)))

    def clear(self) -> None:
        """None of these will be sent again."""
        self._frames.clear()
        self._bytes = 0

    def left(self, last: str | None, generation: int) -> list[tuple[int, bytes]]:
        """Number and frame of those behind the `last` that arrived which are for this kernel process; drops the others.

        A `last` that is not here was sent before all that are.
        """
        if last is not None:
            self.note_arrived(last)
        for msg_id in [msg_id for msg_id, one in self._frames.items() if one.generation != generation]:
            self._forget(msg_id)
        return [(one.number, one.frame) for one in self._frames.values() if one.frame]

    def _forget(self, msg_id: str) -> None:
        if (gone := self._frames.pop(msg_id, None)) is not None:
            self._bytes -= len(gone.frame)
