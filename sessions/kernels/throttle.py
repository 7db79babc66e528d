"""Limits how much of the gateway's time sandboxes may use, each of them and all together, whatever they send."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from sessions.ports import Clock

_SHARE = 0.25
_BURST_S = 1.0
_SHARE_TOGETHER = 0.5
_BURST_TOGETHER_S = 0.2
_HEAD_START_S = 0.1
_SMALL_BYTES = 64 << 10
_SMALL_SHARE = 0.02
_SMALL_BURST_S = 0.1
_SMALL_DEBT_S = 2.0
_ROUNDING_S = 1e-9


class Account:
    """Seconds that are earned at a constant rate up to a bound, and spent. The state: what is left, and since when."""

    def __init__(self, clock: Clock, share: float, burst_s: float) -> None:
        self._clock = clock
        self._share = share
        self._burst_s = burst_s
        self.left_s = burst_s
        self._at_s = clock.monotonic()

    def spend(self, spent_s: float, now_s: float) -> None:
        """Spend them, although that may be more than is left."""
        self._earn(now_s)
        self.left_s -= spent_s

    def debt_s(self) -> float:
        """After how many seconds nothing is owed any more."""
        return self.debt_at(self._clock.monotonic())

    def debt_at(self, now_s: float) -> float:
        """The same, where the time is known already."""
        self._earn(now_s)
        return -self.left_s / self._share if self.left_s < -_ROUNDING_S else 0.0

    def _earn(self, now_s: float) -> None:
        self.left_s = min(self._burst_s, self.left_s + (now_s - self._at_s) * self._share)
        self._at_s = now_s


class SharedTime:
    """What all sandboxes of a gateway may use together: half of its time, in turns. Who has used least is next.

    This is start-time fair queueing: a piece of work begins at the virtual time at which the one before it, of the same
    sandbox, has ended. After a silence a sandbox has a small head start. The state: what is left of the time, the
    virtual time of the piece done last, who waits, and whether somebody has the turn.
    """

    def __init__(self, clock: Clock, share: float = _SHARE_TOGETHER, burst_s: float = _BURST_TOGETHER_S) -> None:
        self._account = Account(clock, share, burst_s)
        self._virtual_s = 0.0
        self._numbers = count()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._is_taken = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<SharedTime {self._account.left_s:.3f} s left, {len(self._waiting)} waiting>"

    def is_free(self) -> bool:
        """Whether a piece of work may be done now."""
        return not self._is_taken and not self._waiting and self._account.debt_s() == 0

    def is_overdrawn(self) -> bool:
        """Whether so much more than half of the time is used that small messages wait for their turn as well."""
        return self._account.debt_s() > _SMALL_DEBT_S

    def begin(self, after_s: float) -> float:
        """The virtual start of work that comes after `after_s`."""
        return max(after_s, self._virtual_s - _HEAD_START_S)

    def spend(self, start_s: float, spent_s: float, now_s: float) -> None:
        """Work that began at the virtual time `start_s` has taken this long, until now."""
        self._virtual_s = max(self._virtual_s, start_s)
        self._account.spend(spent_s, now_s)

    def enqueue(self, start_s: float, go: Callable[[], None]) -> None:
        """Have `go` called when the turn comes."""
        heapq.heappush(self._waiting, (start_s, next(self._numbers), go))

    def next_turn(self) -> float | None:
        """Give the next one its turn; returns the seconds to wait before that can be, and None when nobody waits."""
        if self._is_taken or not self._waiting:
            return None
        wait_s = self._account.debt_s()
        if wait_s == 0:
            self._is_taken = True
            heapq.heappop(self._waiting)[2]()
            return None
        return wait_s

    def end_turn(self) -> None:
        """The piece of work is done: the next one may have the turn."""
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, start_s: float) -> AsyncIterator[None]:
        """Wait for the turn, which ends with the block."""
        came = asyncio.get_running_loop().create_future()
        self.enqueue(start_s, lambda: self._give(came))
        self._schedule()
        try:
            await came
            yield
        finally:
            if came.done() and not came.cancelled():
                self.end_turn()
                self._schedule()

    def _give(self, came: asyncio.Future[None]) -> None:
        if came.cancelled():
            self.end_turn()
        else:
            came.set_result(None)

    def _schedule(self) -> None:
        if self._timer is None and self._waiting and not self._is_taken:
            self._timer = asyncio.get_running_loop().call_later(self._account.debt_s(), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.next_turn()
        self._schedule()


class Throttle:
    """The time of one sandbox or client: a quarter, and its share of what it has together with others.

    A fiftieth of the time is there for small messages without waiting for a turn: a run that says little says it in a
    dozen of them, and would wait for a large one of a flood before each. The mutable state: what is left of its time,
    and of its time for small messages, and the virtual time at which its last piece of work ended.
    """

    def __init__(self, clock: Clock, share: float = _SHARE, together: SharedTime | None = None) -> None:
        self._clock = clock
        self._is_bounded = share < 1
        self._account = Account(clock, share, _BURST_S)
        self._small = Account(clock, _SMALL_SHARE, _SMALL_BURST_S)
        self._together = together
        self._ended_s = 0.0

    def metered(self, handle: Callable[..., None], *args: Any) -> float:
        """Do one piece of work; returns for how many seconds the next one must wait: none with a share of all time."""
        began_s = self._clock.monotonic()
        start_s = self._ended_s if self._together is None else self._together.begin(self._ended_s)
        try:
            handle(*args)
        finally:
            now_s = self._clock.monotonic()
            spent_s = now_s - began_s
            self._ended_s = start_s + spent_s
            self._account.spend(spent_s, now_s)
            self._small.spend(spent_s, now_s)
            if self._together is not None:
                self._together.spend(start_s, spent_s, now_s)
        return self._account.debt_at(now_s) if self._is_bounded else 0.0

    def pause_s(self) -> float:
        """For how many seconds the next piece of work must wait."""
        return self._account.debt_s() if self._is_bounded else 0.0

    def is_free(self, size_bytes: int) -> bool:
        """Whether a message of this size may be handled now, as far as the others are concerned."""
        if self._together is None or self._together.is_free():
            return True
        return size_bytes <= _SMALL_BYTES and self._small.debt_s() == 0 and not self._together.is_overdrawn()

    async def metered_in_turn(self, size_bytes: int, handle: Callable[..., None], *args: Any) -> float:
        """The same, once the turn has come."""
        if self._together is None or self.is_free(size_bytes):
            return self.metered(handle, *args)
        async with self._together.turn(self._together.begin(self._ended_s)):
            return self.metered(handle, *args)
