"""The frames that the gateway has not acknowledged yet: numbered, in order, bounded.

Pure bookkeeping: nothing is sent here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

Frame = bytes | str
"""Binary for a Jupyter message, text for a control message, as it goes over the WebSocket."""


class Gap(NamedTuple):
    """What an overflow dropped between two kept frames."""

    frames: int
    size_bytes: int


class Spool:
    """Frames by `seq`, counting from 1. An overflow drops output and leaves a gap; everything else is always kept.

    Its state: the kept frames, and the gap that is growing. `render_gap` makes the control frame that replaces dropped
    output. Memory stays below `limit_bytes` plus the frames that may not be dropped.
    """

    def __init__(self, limit_bytes: int, render_gap: Callable[[int, Gap], Frame]) -> None:
        self._limit_bytes = limit_bytes
        self._render_gap = render_gap
        self._frames: deque[tuple[int, Frame]] = deque()
        self._gap: Gap | None = None
        self.size_bytes = 0
        self.next_seq = 1

    def __repr__(self) -> str:
        return f"<Spool {len(self._frames)} frames, {self.size_bytes} bytes, next {self.next_seq}, {self._gap}>"

    @property
    def oldest_seq(self) -> int:
        """The number of the first kept frame; `next_seq` when there is none."""
        return self._frames[0][0] if self._frames else self.next_seq

    def add(self, render: Callable[[int], Frame], size_bytes: int, *, droppable: bool) -> None:
        """Keep a frame of about `size_bytes`, which `render` makes of its `seq`; a droppable one only if it fits."""
        if droppable and self.size_bytes + size_bytes > self._limit_bytes:
            before = self._gap or Gap(0, 0)
            self._gap = Gap(before.frames + 1, before.size_bytes + size_bytes)
        else:
            self.close_gap()
            self._keep(render)

    def close_gap(self) -> None:
        """Number the growing gap, if there is one, so that it is reported before anything later."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            self._keep(lambda seq: self._render_gap(seq, gap))

    def acknowledge(self, seq: int) -> None:
        """Forget all frames up to and including `seq`."""
        while self._frames and self._frames[0][0] <= seq:
            self.size_bytes -= len(self._frames.popleft()[1])

    def get(self, seq: int) -> Frame | None:
        """The frame with this number; None when it is not kept."""
        index = seq - self.oldest_seq
        return self._frames[index][1] if 0 <= index < len(self._frames) else None

    def _keep(self, render: Callable[[int], Frame]) -> None:
        frame = render(self.next_seq)
        self._frames.append((self.next_seq, frame))
        self.size_bytes += len(frame)
        self.next_seq += 1
