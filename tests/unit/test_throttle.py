"""How long one who has used more than a fair share of the gateway's time has to wait."""

from __future__ import annotations

import asyncio
import time

import pytest
from doubles import ManualClock, until

from gateway.host.clock import SystemClock
from sessions.kernels.throttle import SharedTime, Throttle


@pytest.mark.parametrize(("share", "pause_s"), [(0.25, 4.0), (0.5, 2.0), (1.0, 0.0)])
def test_long_work_makes_the_next_wait_unless_all_the_time_is_its_own(share: float, pause_s: float) -> None:
    clock = ManualClock()

    def work() -> None:
        clock.at_s += 2

    assert Throttle(clock, share).metered(work) == pause_s


def test_the_share_that_was_not_used_adds_up_to_a_second() -> None:
    clock = ManualClock()
    throttle = Throttle(clock)
    clock.at_s += 60

    def work() -> None:
        clock.at_s += 0.5

    assert [throttle.metered(work) for _ in range(3)] == [0, 0, 1]


SMALL, LARGE = 1_000, 1_000_000


class Flood:
    """Sandboxes that always have another piece of work, and how long each of them has been served."""

    def __init__(self, clock: ManualClock, shared: SharedTime, pieces_s: list[float]) -> None:
        self._clock = clock
        self._shared = shared
        self.pieces_s = pieces_s
        self.throttles = [Throttle(clock, together=shared) for _ in pieces_s]
        self.served_s = [0.0] * len(pieces_s)
        self._ready: list[int] = []
        self._pauses_until_s = [0.0] * len(pieces_s)
        self._is_waiting = [False] * len(pieces_s)

    def piece(self, index: int) -> None:
        def work() -> None:
            self._clock.at_s += self.pieces_s[index]

        self.served_s[index] += self.pieces_s[index]
        pause_s = self.throttles[index].metered(work)
        self._pauses_until_s[index] = self._clock.at_s + pause_s

    def run(self, seconds: float) -> None:
        end_s = self._clock.at_s + seconds
        while self._clock.at_s < end_s:
            self.step()

    def step(self) -> None:
        """One piece, or a wait of a millisecond at least."""
        for index, throttle in enumerate(self.throttles):
            if not self._is_waiting[index] and self._pauses_until_s[index] <= self._clock.at_s:
                self._is_waiting[index] = True
                start_s = self._shared.begin(throttle._ended_s)
                self._shared.enqueue(start_s, lambda index=index: self._ready.append(index))  # type: ignore[misc]
        wait_s = self._shared.next_turn()
        if self._ready:
            index = self._ready.pop()
            self._is_waiting[index] = False
            self.piece(index)
            self._shared.end_turn()
        else:
            self._clock.at_s += max(0.001, wait_s or 0.0)


@pytest.mark.parametrize("number", [2, 8, 24])
def test_all_together_have_half_of_the_time_in_equal_shares(number: int) -> None:
    clock = ManualClock()
    flood = Flood(clock, SharedTime(clock), [0.02] * number)
    flood.run(60)
    assert 28 < sum(flood.served_s) < 32
    assert max(flood.served_s) - min(flood.served_s) <= 0.05


def test_one_alone_has_a_quarter() -> None:
    clock = ManualClock()
    flood = Flood(clock, SharedTime(clock), [0.02])
    flood.run(60)
    assert 15 <= sum(flood.served_s) < 17


def test_shares_are_of_time_and_not_of_pieces() -> None:
    clock = ManualClock()
    flood = Flood(clock, SharedTime(clock), [0.1, 0.1, 0.001, 0.001])
    flood.run(60)
    assert max(flood.served_s) - min(flood.served_s) <= 0.3


def test_who_says_little_goes_before_those_who_flood() -> None:
    clock = ManualClock()
    shared = SharedTime(clock)
    flood = Flood(clock, shared, [0.05] * 8)
    flood.run(30)
    quiet = Throttle(clock, together=shared)
    began_s = clock.at_s
    for _ in range(8):
        came: list[bool] = []
        shared.enqueue(shared.begin(quiet._ended_s), lambda came=came: came.append(True))  # type: ignore[misc]
        while not came:
            clock.at_s += shared.next_turn() or 0.0
        quiet.metered(lambda: None)
        shared.end_turn()
    assert clock.at_s - began_s <= 0.1


class QuietRun:
    """A sandbox whose next message comes a millisecond after the one before it was handled; `handled` counts them."""

    def __init__(self, clock: ManualClock, flood: Flood, shared: SharedTime, size_bytes: int) -> None:
        self._clock, self._flood, self._shared, self._size_bytes = clock, flood, shared, size_bytes
        self._throttle = Throttle(clock, together=shared)

    def run(self, messages: int) -> float:
        """How long so many messages take amid the flood."""
        began_s = self._clock.at_s
        for _ in range(messages):
            next_at_s = self._clock.at_s + 0.001
            while self._clock.at_s < next_at_s:
                self._flood.step()
            came: list[bool] = []
            if not self._throttle.is_free(self._size_bytes):
                self._shared.enqueue(self._shared.begin(self._throttle._ended_s), lambda came=came: came.append(True))  # type: ignore[misc]
                while not came:
                    self._flood.step()
            self._throttle.metered(self._work)
            if came:
                self._shared.end_turn()
        return self._clock.at_s - began_s

    def _work(self) -> None:
        self._clock.at_s += 0.001


def test_a_run_of_many_small_messages_waits_for_few_of_a_flood() -> None:
    clock = ManualClock()
    shared = SharedTime(clock)
    flood = Flood(clock, shared, [0.3] * 8)
    flood.run(30)
    assert QuietRun(clock, flood, shared, SMALL).run(12) < 1.0
    assert QuietRun(clock, flood, shared, LARGE).run(12) > 3.0


def test_small_messages_wait_too_when_far_too_much_is_used() -> None:
    clock = ManualClock()
    shared = SharedTime(clock)
    flood, quiet = Throttle(clock, together=shared), Throttle(clock, together=shared)
    flood.metered(lambda: setattr(clock, "at_s", clock.at_s + 10))
    assert not quiet.is_free(SMALL)
    clock.at_s += 18
    assert not shared.is_free()
    assert quiet.is_free(SMALL)
    assert not quiet.is_free(LARGE)
    assert not flood.is_free(SMALL)


async def test_turns_come_one_at_a_time_and_a_cancelled_one_is_passed_on() -> None:
    clock = SystemClock()
    shared = SharedTime(clock, burst_s=0.0)
    throttles = [Throttle(clock, together=shared) for _ in range(3)]
    throttles[0].metered(time.sleep, 0.01)
    assert not shared.is_free()
    tasks = [asyncio.ensure_future(throttle.metered_in_turn(LARGE, lambda: None)) for throttle in throttles]
    await asyncio.sleep(0)
    tasks[1].cancel()
    async with asyncio.timeout(30):
        await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [False, True, False]
    await until(shared.is_free)
