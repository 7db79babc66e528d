"""The iopub socket: sends what a kernel publishes to all subscribers, and waits a moment for slow ones.

It waits once for a client that reads nothing. From then on that client misses what does not fit its queue, as with any
Jupyter kernel, and delays nobody until it has caught up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq

_QUEUE_MESSAGES = 32
"""How many messages may wait for one subscriber; a message has at most 16 MB or so, and most are small."""

_PATIENCE_S = 0.5
"""If it were longer, a kernel that prints as fast as it can would fill its supervisor's spool meanwhile."""

_SHORT_PATIENCE_S = 0.005
"""For each message while a client reads nothing: time for the others to receive theirs.

It slows nobody down, since the supervisor joins output within the same time.
"""

_PAUSE_S = 0.001

Frames = Sequence[bytes]


class Publisher:
    """Owns the iopub socket, an XPUB. Its state: messages that wait for room, and whether it waits for slow clients."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self.socket = context.socket(zmq.XPUB)
        self.socket.sndhwm = _QUEUE_MESSAGES
        # Report a second subscription to the same topic too: its owner wants a welcome of its own.
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        # Without this, a message that does not fit is dropped silently.
        self.socket.setsockopt(zmq.XPUB_NODROP, 1)
        self.socket.bind(address)
        self._waiting: deque[Frames] = deque()
        self._patient = True
        self._emptying: asyncio.Task[None] | None = None

    def publish(self, frames: Frames) -> None:
        """Send now, or behind the messages that wait. Callers await `room`, or those pile up in memory."""
        if self._waiting or not self._is_sent(frames):
            self._waiting.append(frames)

    def room(self) -> asyncio.Task[None] | None:
        """What to await before more is published; None when there is room."""
        if not self._waiting:
            return None
        if self._emptying is None or self._emptying.done():
            self._emptying = asyncio.ensure_future(self._empty())
        return self._emptying

    def new_subscriptions(self) -> list[bytes]:
        """The topics that clients have subscribed to since the last call."""
        topics: list[bytes] = []
        while True:
            try:
                subscription = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return topics
            if subscription[:1] == b"\x01":
                topics.append(subscription[1:])

    def close(self, linger_ms: int) -> None:
        """Send the waiting messages to those that have room for them, and close."""
        if self._emptying is not None:
            self._emptying.cancel()
        while self._waiting:
            self._send_where_there_is_room(self._waiting.popleft())
        self.socket.close(linger_ms)

    async def _empty(self) -> None:
        """Send all waiting messages. An XPUB always claims to be writable (dist_t::has_out), so polling is no use."""
        deadline_s = time.monotonic() + (_PATIENCE_S if self._patient else _SHORT_PATIENCE_S)
        while self._waiting:
            if self._is_sent(self._waiting[0]):
                self._waiting.popleft()
            elif time.monotonic() < deadline_s:
                await asyncio.sleep(_PAUSE_S)
            else:
                self._patient = False
                self._send_where_there_is_room(self._waiting.popleft())

    def _is_sent(self, frames: Frames) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._patient = True
        return True

    def _send_where_there_is_room(self, frames: Frames) -> None:
        self.socket.setsockopt(zmq.XPUB_NODROP, 0)
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        finally:
            self.socket.setsockopt(zmq.XPUB_NODROP, 1)
