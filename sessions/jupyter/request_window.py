"""One client's requests on one channel: so many may be unanswered at once, and the others wait here. Pure.

A client that floods a kernel with requests so waits for its own answers, and delays no other client.
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

    def add(self, msg_id: str, size_bytes: int, send: Callable[[], None]) -> None:
        """Call `send` now, or once fewer are unanswered, in order. Raises TooManyRequests."""
        if self._waiting and (
            len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES
        ):
            raise TooManyRequests("Too many requests of this client wait for the kernel.")
        self._waiting.append((msg_id, size_bytes, send))
        self._waiting_bytes += size_bytes
        self._send_next()

    def answered(self, msg_id: str) -> None:
        """The kernel has answered this request."""
        self._unanswered.discard(msg_id)
        self._send_next()

    def withdraw(self, msg_id: str) -> None:
        """This request, whose turn it is, has not been sent."""
        self._unanswered.discard(msg_id)

    def clear(self) -> None:
        """The kernel has gone: it answers nothing more, and what waits was meant for it."""
        self._unanswered.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _send_next(self) -> None:
        while self._waiting and len(self._unanswered) < MAX_UNANSWERED:
            msg_id, size_bytes, send = self._waiting.popleft()
            self._waiting_bytes -= size_bytes
            self._unanswered.add(msg_id)
            send()
