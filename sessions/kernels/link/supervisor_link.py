"""What is said to one supervisor, over one link after the other: what a broken link has swallowed is said again.

What the supervisor says is kernel.py's business. Frames of execute_requests are kept in pending_requests.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from itertools import count
from typing import Any

import structlog

from kernel_image import protocol
from sessions.errors import Unavailable
from sessions.kernels.link.forwarded_frames import ForwardedFrames
from sessions.model import KernelId
from sessions.ports import Link

_UNSENT = 8
_MOST_BARREN_LINKS = 32
_BARREN_S = 30.0

log = structlog.get_logger()


class SupervisorLink:
    """The current link to a supervisor, if there is one.

    The mutable state beside it: what was forwarded and may not have arrived, the control messages that wait for a link,
    whether the supervisor tells what was forwarded to it, the number of what was sent last, when the link came up and
    which frame was the last then, and how many links in succession have brought nothing new.
    """

    def __init__(self, kernel_id: KernelId) -> None:
        self._kernel_id = kernel_id
        self._link: Link | None = None
        self._forwarded = ForwardedFrames()
        self._names_forwarded = False
        self._unsent: deque[tuple[int, str]] = deque(maxlen=_UNSENT)
        self._order = count()
        self._up_at: tuple[float, int] = (0.0, 0)
        self._barren_links = 0

    def is_up(self) -> bool:
        """Whether the supervisor is connected."""
        return self._link is not None

    def is_current(self, link: Link) -> bool:
        """Whether this is the link that is used now."""
        return self._link is link

    def current(self) -> Link:
        """The current link. Raises Unavailable."""
        if self._link is None:
            raise Unavailable("The sandbox is out of reach: try again in a moment.")
        return self._link

    def replace(self, link: Link, taken_seq: int) -> Link | None:
        """Use this link from now on; returns the one before. `taken_seq` is the last frame that was new."""
        previous, self._link = self._link, link
        self._up_at = asyncio.get_running_loop().time(), taken_seq
        return previous

    def lose(self, taken_seq: int) -> bool:
        """The link has broken. Returns whether that is of no use: again and again no new frame has come over it.

        Something in the frames is poison to one end then.
        """
        self._link = None
        up_at_s, taken_before = self._up_at
        lasted_s = asyncio.get_running_loop().time() - up_at_s
        is_barren = taken_seq == taken_before and lasted_s < _BARREN_S
        self._barren_links = self._barren_links + 1 if is_barren else 0
        log.info("link_broke", kernel_id=self._kernel_id, lasted_s=round(lasted_s, 3), barren=self._barren_links)
        return self._barren_links >= _MOST_BARREN_LINKS

    def close(self, reason: str) -> None:
        """Close the link for good: what waits for another one is dropped, and nothing waits any more."""
        self._names_forwarded = False
        self._forwarded.clear()
        self._unsent.clear()
        link, self._link = self._link, None
        if link is not None:
            link.close(reason)

    # --- sending ------------------------------------------------------------------------------------------------------

    def send_request(self, frame: bytes) -> int:
        """Send an execute_request; returns its number. Raises Unavailable."""
        self.current().send_binary(frame)
        return next(self._order)

    def can_forward(self) -> bool:
        """Whether `forward` takes a message, now or when the supervisor has dialled again."""
        return self._link is not None or self._names_forwarded

    def forward(self, msg_id: str, frame: bytes, generation: int) -> None:
        """Send a message that is no execute_request; again when the link breaks before it has arrived.

        It is for this kernel process. Raises Unavailable when there is no link, and it cannot wait.
        """
        if self._link is None and not (self._names_forwarded and self._forwarded.has_room(len(frame))):
            self.current()
        if self._names_forwarded:
            self._forwarded.add(msg_id, next(self._order), generation, frame)
        if self._link is not None:
            self._link.send_binary(frame)

    def note_arrived(self, msg_id: str) -> None:
        """The kernel answers this message that was forwarded."""
        self._forwarded.note_arrived(msg_id)

    def send_control(self, op: str, **fields: Any) -> None:
        """Send a control message; without a link it is of no use any more."""
        if self._link is not None:
            self._link.send_text(protocol.encode_control(op, **fields))

    def send_control_later(self, op: str, generation: int, **fields: Any) -> None:
        """Send it now, or when the supervisor has dialled again, if it has this kernel process then; 0 is any."""
        control = protocol.encode_control(op, **fields)
        if self._link is not None:
            self._link.send_text(control)
        elif (generation, control) not in self._unsent:
            self._unsent.append((generation, control))

    def send_again(self, hello: Mapping[str, Any], generation: int, requests: list[tuple[int, bytes]]) -> None:
        """Send in order what a link that broke has swallowed, and what has waited for this one.

        `requests` are those of execute_requests, with their numbers. What was meant for a kernel process that is gone
        goes with it. An older supervisor does not say what has been forwarded to it.
        """
        link = self.current()
        self._names_forwarded = "forwarded" in hello
        left = requests
        if self._names_forwarded:
            last = hello["forwarded"]
            left = [*requests, *self._forwarded.left(last if isinstance(last, str) else None, generation)]
        for _, frame in sorted(left, key=lambda one: one[0]):
            link.send_binary(frame)
        while self._unsent:
            meant_for, text = self._unsent.popleft()
            if meant_for in (0, generation) or not generation:
                link.send_text(text)
