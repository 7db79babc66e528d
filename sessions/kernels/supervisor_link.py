"""What is said to one supervisor, over one link after the other: what a broken link has swallowed is said again.

What the supervisor says is kernel.py's business. Frames of execute_requests are kept in pending_requests.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import count
from typing import Any

from kernel_image import protocol
from sessions.errors import Unavailable
from sessions.kernels.forwarded_frames import ForwardedFrames
from sessions.ports import Link

_UNSENT = 8


class SupervisorLink:
    """The current link to a supervisor, if there is one.

    The mutable state beside it: what was forwarded and may not have arrived, the control messages that wait for a link,
    whether the supervisor tells what was forwarded to it, and the number of what was sent last.
    """

    def __init__(self) -> None:
        self._link: Link | None = None
        self._forwarded = ForwardedFrames()
        self._names_forwarded = False
        self._unsent: deque[tuple[int, str]] = deque(maxlen=_UNSENT)
        self._order = count()

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

    def replace(self, link: Link | None) -> Link | None:
        """Use this link from now on; returns the one before."""
        previous, self._link = self._link, link
        return previous

    def close(self, reason: str) -> None:
        """Close the link for good: what waits for another one is dropped, and nothing waits any more."""
        self._names_forwarded = False
        self._forwarded.clear()
        self._unsent.clear()
        if (link := self.replace(None)) is not None:
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
        if self._link is None:
            self._unsent.append((generation, protocol.encode_control(op, **fields)))
        else:
            self.send_control(op, **fields)

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
