"""One client's requests on one channel: so many are with the kernel at once, the others wait here. Pure.

Whoever floods a kernel with requests so waits for its own answers, and nobody else does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sessions.errors import TooManyRequests

MAX_UNANSWERED = 64
MAX_WAITING = 1024
MAX_WAITING_BYTES = 8 << 20


class RequestWindow:
    """The state: the msg_ids of the unanswered requests, and those that wait, with their sizes."""

    def __init__(self) -> None:
        self._unanswered: set[str] = set()
        self._waiting: deque[tuple[str, int, Callable[[], None]]] = deque()
        self._waiting_bytes = 0

    def __repr__(self) -> str:
        return f"<RequestWindow {len(self._unanswered)} unanswered, {len(self._waiting)} wait>"

    def add(self, msg_id: str, size_bytes: int, go: Callable[[], None]) -> None:
        """Have a request go when its turn has come. Raises TooManyRequests."""
        if self._waiting and (
            len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES
        ):
            raise TooManyRequests("Too many requests of this client wait for the kernel.")
        self._waiting.append((msg_id, size_bytes, go))
        self._waiting_bytes += size_bytes
        self._go_on()

    def answered(self, msg_id: str) -> None:
        """A request has been dealt with."""
        self._unanswered.discard(msg_id)
        self._go_on()

    def forget(self) -> None:
        """The kernel has gone: nothing that is with it will be answered, and what waits was meant for it."""
        self._unanswered.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _go_on(self) -> None:
        while self._waiting and len(self._unanswered) < MAX_UNANSWERED:
            msg_id, size_bytes, go = self._waiting.popleft()
            self._waiting_bytes -= size_bytes
            self._unanswered.add(msg_id)
            go()
