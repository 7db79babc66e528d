"""Sequence numbers of a supervisor's frames: which one comes next, which to acknowledge, and when. Pure."""

from __future__ import annotations

from sessions.errors import ProtocolViolation

_ACK_FRAMES = 64
_ACK_BYTES = 1 << 20


class FrameNumbers:
    """The mutable state: the last frame received, the last acknowledged, and the bytes between the two."""

    def __init__(self) -> None:
        self.taken_seq = 0
        self.acknowledged_seq = 0
        self._unacknowledged_bytes = 0

    def __repr__(self) -> str:
        return f"<FrameNumbers {self.taken_seq} taken, {self.acknowledged_seq} acknowledged>"

    def begin_after(self, seq: int) -> None:
        """Start after this frame: an earlier gateway has handled all frames up to it."""
        self.taken_seq = self.acknowledged_seq = seq

    def is_new(self, seq: int, size_bytes: int) -> bool:
        """Whether this frame is the next one. False for a repeated one. Raises ProtocolViolation if one is missing."""
        if seq <= self.taken_seq:
            return False
        if seq != self.taken_seq + 1:
            raise ProtocolViolation(f"A supervisor sent frame {seq} after {self.taken_seq}.")
        self.taken_seq = seq
        self._unacknowledged_bytes += size_bytes
        return True

    def is_due(self) -> bool:
        """Whether enough frames or bytes have come to acknowledge them."""
        return self.taken_seq - self.acknowledged_seq >= _ACK_FRAMES or self._unacknowledged_bytes >= _ACK_BYTES

    def acknowledge(self, uncommitted_seq: int | None) -> int | None:
        """The number to acknowledge: the last before `uncommitted_seq`. None when it has been acknowledged already."""
        seq = self.taken_seq if uncommitted_seq is None else uncommitted_seq - 1
        if seq <= self.acknowledged_seq:
            return None
        self.acknowledged_seq = seq
        self._unacknowledged_bytes = 0
        return seq
