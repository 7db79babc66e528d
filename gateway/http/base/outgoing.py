"""Large answers in memory: counted over all connections, and taken away from clients that do not read them.

What is small, at most 64 KiB, is neither counted nor kept waiting. What an answer says is not known here.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import sys
import termios
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tornado.iostream import IOStream

from gateway.http.base.limits import HttpBounds
from sessions.errors import Unavailable

SMALL_BYTES = 64 << 10

_COPIES = 4
"""How often a value is in memory while it becomes an answer: itself, its parts as JSON, the whole, and that encoded."""

_DEPTH = 5
_LOOKS = 8


class AnswerRoom:
    """Counts the bytes of large answers, from before they are made until the client has them.

    Its state: the count, and who waits, in order. An answer that is larger than all the room is made alone.
    """

    def __init__(self, bounds: HttpBounds) -> None:
        self._bounds = bounds
        self.size_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"<AnswerRoom {self.size_bytes}{f', {len(self._waiting)} wait' if self._waiting else ''}>"

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._waiting)

    def place(self) -> Place:
        """The place of one answer, or of several, one after the other. It is empty at first."""
        return Place(self, self._bounds)

    async def reserve(self, size_bytes: int, wait_s: float) -> None:
        """Count these bytes once there is room for them. Raises Unavailable when there is none in time."""
        if not self._waiting and self._fits(size_bytes):
            self.size_bytes += size_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            async with asyncio.timeout(wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.size_bytes -= size_bytes  # it came in the same moment
            with suppress(ValueError):
                self._waiting.remove((size_bytes, turn))
            self._admit()
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    "Too many large answers are on their way; nothing was run: try again in a moment."
                ) from None
            raise

    def change(self, by_bytes: int) -> None:
        """Count that an answer has turned out larger or smaller, or is gone."""
        self.size_bytes += by_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            if not turn.done():
                self.size_bytes += size_bytes
                turn.set_result(None)

    def _fits(self, size_bytes: int) -> bool:
        return self.size_bytes == 0 or self.size_bytes + size_bytes <= self._bounds.answers_bytes


class Place:
    """What one answer takes of the room. Its state is how much that is, and whether it waits long for it."""

    def __init__(self, room: AnswerRoom, bounds: HttpBounds) -> None:
        self.waits_long = False
        self._room = room
        self._bounds = bounds
        self._size_bytes = 0

    async def make(self, value_bytes: int) -> None:
        """Take what it takes to make an answer of a value of this size."""
        await self.take(_COPIES * value_bytes if value_bytes > SMALL_BYTES else 0)

    async def take(self, size_bytes: int) -> None:
        """Take this much from now on. Waits, and raises Unavailable, only while it is empty."""
        if size_bytes <= SMALL_BYTES:
            self.leave()
        elif self._size_bytes:
            self._room.change(size_bytes - self._size_bytes)
            self._size_bytes = size_bytes
        else:
            bounds = self._bounds
            await self._room.reserve(size_bytes, bounds.send_timeout_s if self.waits_long else bounds.answer_wait_s)
            self._size_bytes = size_bytes

    def leave(self) -> None:
        """Take nothing any more."""
        if self._size_bytes:
            self._room.change(-self._size_bytes)
            self._size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def bytes_of(value: Any, depth: int = _DEPTH) -> int:
    """About how much memory a value takes that becomes JSON. What is nested deeper is left out."""
    if isinstance(value, str):
        return sys.getsizeof(value)
    if not depth or value is None or isinstance(value, (bool, int, float)):
        return 32
    if isinstance(value, (dict, Mapping)):
        return sum(bytes_of(name) + bytes_of(item, depth - 1) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return sum(bytes_of(item, depth - 1) for item in value)
    return 32


class Patience:
    """How long a client may take over an answer.

    Its state is whether the client `may_pause`, that is, take nothing for a while unless others want the room; and
    within how many seconds it has to take all of what was written.
    """

    def __init__(self, bounds: HttpBounds, room: AnswerRoom) -> None:
        self.may_pause = False
        self.timeout_s = bounds.send_timeout_s
        self._stall_s = bounds.stall_s
        self._room = room

    async def wait_for(self, writing: asyncio.Future[None], stream: IOStream | None) -> None:
        """Return once the client has taken what was written.

        Raises TimeoutError when it takes nothing for `stall_s`, or not all of it within `timeout_s`.
        """
        stall_s, timeout_s = self._stall_s, self.timeout_s
        now_s = asyncio.get_running_loop().time
        begun_s = moved_s = now_s()
        unread_bytes = -1
        # It is the stream's own, which fails it when it closes, and does not expect others to cancel it.
        while not writing.done():
            await asyncio.wait([writing], timeout=min(stall_s, timeout_s) / _LOOKS)
            if (left_bytes := _unread_bytes(stream)) != unread_bytes:
                unread_bytes, moved_s = left_bytes, now_s()
            is_stalled = now_s() - moved_s >= stall_s and (self._room.is_wanted or not self.may_pause)
            if not writing.done() and (is_stalled or now_s() - begun_s >= timeout_s):
                raise TimeoutError
        writing.result()


def is_taken(stream: IOStream | None) -> bool:
    """Whether the socket has taken all that was written: nothing is to be waited for then."""
    return stream is not None and not stream.closed() and not stream.writing()


def _unread_bytes(stream: IOStream | None) -> int:
    """What the other end has not acknowledged. That falls as it reads; the buffer takes more in large steps only."""
    if stream is None or stream.socket is None:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(stream.socket, termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):
        return 0  # it is closed
