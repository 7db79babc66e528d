"""How long one who has used more than a fair share of the gateway's time has to wait."""

from __future__ import annotations

import pytest
from doubles import ManualClock

from sessions.kernels.throttle import Throttle


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
