"""Numbers of a supervisor's frames: which comes next, which may be acknowledged, and when that is due. Pure."""

from __future__ import annotations

from sessions.errors import ProtocolViolation

_ACK_FRAMES = 64
_ACK_BYTES = 1 << 20


class FrameNumbers:
    """The mutable state: the last frame handled, the last one acknowledged, and the bytes between the two."""

    def __init__(self) -> None:
        self.taken_seq = 0
        self.acknowledged_seq = 0
        self._unacknowledged_bytes = 0

    def __repr__(self) -> str:
        return f"<FrameNumbers {self.taken_seq} taken, {self.acknowledged_seq} acknowledged>"

    def begin_after(self, seq: int) -> None:
        """Begin after this frame: an earlier gateway has the ones before."""
        self.taken_seq = self.acknowledged_seq = seq

    def is_new(self, seq: int, size_bytes: int) -> bool:
        """Whether this frame is the next one; a repeated one is none. Raises ProtocolViolation for a skipped one."""
        if seq <= self.taken_seq:
            return False
        if seq != self.taken_seq + 1:
            raise ProtocolViolation(f"A supervisor sent frame {seq} after {self.taken_seq}.")
        self.taken_seq = seq
        self._unacknowledged_bytes += size_bytes
        return True

    def is_due(self) -> bool:
        """Whether enough frames were handled since the last acknowledgement."""
        return self.taken_seq - self.acknowledged_seq >= _ACK_FRAMES or self._unacknowledged_bytes >= _ACK_BYTES

    def acknowledge(self, uncommitted_seq: int | None) -> int | None:
        """The number to acknowledge now, before the first that is not committed; None where that says nothing new."""
        seq = self.taken_seq if uncommitted_seq is None else uncommitted_seq - 1
        if seq <= self.acknowledged_seq:
            return None
        self.acknowledged_seq = seq
        self._unacknowledged_bytes = 0
        return seq
