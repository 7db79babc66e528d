"""The committed events of one live run, for its followers. A follower that falls behind must read from the store.

Only committed events get here, so a follower never sees an event that a crash could undo.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sessions.model import Event

_KEPT_BYTES = 1 << 20


class Feed:
    """One writer, any number of followers.

    The mutable state: the number of the last committed event, the newest events (up to a bound, and only while somebody
    follows), the number of followers, and whether the run is over.
    """

    def __init__(self, last_seq: int = 0) -> None:
        self.last_seq = last_seq
        self.is_closed = False
        self.followed = asyncio.Event()
        self.on_followed: Callable[[], None] = lambda: None
        self._followers = 0
        self._kept: deque[tuple[Event, int]] = deque()
        self._kept_bytes = 0
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<Feed {state}, last {self.last_seq}, {len(self._kept)} kept, {self._followers} followers>"

    @contextmanager
    def following(self) -> Iterator[None]:
        """Count as a follower for the length of the block: events are committed soon, and kept."""
        self._followers += 1
        self.followed.set()
        self.on_followed()
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self.followed.clear()
                self._kept.clear()
                self._kept_bytes = 0

    def publish(self, events: Sequence[Event]) -> None:
        """These events have been committed; some of them may have been before."""
        for event in events:
            if event.seq <= self.last_seq:
                continue
            self.last_seq = event.seq
            if self._followers:
                size_bytes = _size_of(event.fields)
                self._kept.append((event, size_bytes))
                self._kept_bytes += size_bytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popleft()[1]
        self._wake()

    def close(self) -> None:
        """No more events will come."""
        self.is_closed = True
        self._wake()

    def after(self, seq: int) -> list[Event] | None:
        """The events above `seq`, or None when some of them are not kept any more."""
        if seq >= self.last_seq:
            return []
        if not self._kept or self._kept[0][0].seq > seq + 1:
            return None
        return [event for event, _ in self._kept if event.seq > seq]

    async def wait(self, seq: int) -> None:
        """Return once there is an event above `seq`, or the feed is closed."""
        while self.last_seq <= seq and not self.is_closed:
            await self._changed.wait()

    def _wake(self) -> None:
        # A new Event for each change wakes all waiters, and nobody has to clear it.
        self._changed.set()
        self._changed = asyncio.Event()


def _size_of(value: Any) -> int:
    """About how many bytes of memory a JSON value takes. Its depth is bounded already."""
    if isinstance(value, str):
        return sys.getsizeof(value)
    if isinstance(value, dict | Mapping):
        return sum((_size_of(name) + _size_of(item) for name, item in value.items()), 64)
    if isinstance(value, list | tuple):
        return sum(map(_size_of, value), 64)
    return 32
