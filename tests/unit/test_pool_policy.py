"""The warm pool's decisions, in a time that the test owns."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sessions.kernels.pool_policy import WarmPool
from sessions.model import KernelId
from sessions.settings import PoolSettings, Timeouts


def pool(size: int = 2, most: int = 4, warm: int = 0) -> WarmPool:
    made = WarmPool(PoolSettings(size, most), Timeouts())
    for number in range(warm):
        made.launch(KernelId(f"k{number}"))
        made.became_warm(KernelId(f"k{number}"))
    return made


def test_an_empty_pool_launches_one_at_a_time_until_the_first_is_warm() -> None:
    cold = pool(size=5, most=9)
    assert cold.launches(0) == 1
    cold.launch(KernelId("a"))
    assert cold.launches(0) == 0
    cold.became_warm(KernelId("a"))
    assert cold.launches(0) == 2


def test_the_kernel_that_has_been_warm_the_longest_is_claimed_first() -> None:
    two = pool(warm=2)
    assert [two.claim(0), two.claim(0), two.claim(0)] == ["k0", "k1", None]
    assert two.working == {"k0", "k1"}


def test_a_kernel_given_back_is_the_next_to_be_claimed() -> None:
    two = pool(warm=2)
    first = two.claim(0)
    assert first is not None
    two.unclaim(first)
    assert two.claim(0) == first


def test_refilling_waits_for_the_run_that_has_just_begun_unless_somebody_waits() -> None:
    two = pool(size=2, warm=2)
    two.claim(10.0)
    assert two.launches(10.1) == 0
    assert two.next_look_s(10.1) == 10.25
    assert two.launches(10.3) == 1
    two.waiting = 1
    assert two.launches(10.1) > 0


def test_while_code_runs_one_launch_at_a_time_is_enough() -> None:
    busy = pool(size=4, most=9, warm=1)
    busy.claim(0)
    assert busy.launches(5) == 1
    busy.launch(KernelId("x"))
    assert busy.launches(5) == 0


def test_waiting_claims_are_launched_for_beyond_the_size() -> None:
    none_kept = pool(size=0, most=4)
    assert none_kept.launches(0) == 0
    none_kept.waiting = 3
    none_kept.ever_warm = True
    assert none_kept.launches(0) == 2


def test_a_container_that_is_being_removed_still_counts() -> None:
    full = pool(size=2, most=2, warm=2)
    used = full.claim(0)
    assert used is not None
    full.remove(used)
    assert full.launches(99) == 0
    full.removed(used)
    assert full.launches(99) == 1


def test_failed_launches_are_tried_again_later_and_later() -> None:
    failing = pool()
    pauses = []
    for _ in range(9):
        failing.launch(KernelId("x"))
        failing.failed(KernelId("x"), 100.0)
        pauses.append(failing.retry_at_s - 100.0)
        assert failing.launches(failing.retry_at_s - 0.01) == 0
        assert failing.next_look_s(100.0) == failing.retry_at_s
        assert failing.launches(failing.retry_at_s) == 1
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_night_of_failures_does_not_end_the_trying() -> None:
    failing = pool()
    for _ in range(5000):
        failing.failed(KernelId("x"), 0.0)
    assert failing.retry_at_s == 30.0
    assert failing.launches(30.0) == 1


def test_one_failure_is_no_reason_to_turn_claims_away_and_a_success_forgets_them() -> None:
    failing = pool()
    failing.failed(KernelId("x"), 0.0)
    assert not failing.is_failing(0)
    failing.failed(KernelId("y"), 0.0)
    assert failing.is_failing(0)
    failing.launch(KernelId("z"))
    failing.became_warm(KernelId("z"))
    assert not failing.is_failing(0)
    assert failing.failures == 0


class PoolAtRandom(RuleBasedStateMachine):
    """Whatever happens in whatever order: bounded, and every kernel in exactly one place."""

    @initialize(size=st.integers(0, 4), most=st.integers(1, 6))
    def begin(self, size: int, most: int) -> None:
        self.pool = pool(size, most)
        self.most = most
        self.now_s = 0.0
        self.known: set[KernelId] = set()
        self.count = 0

    @rule(passed_s=st.sampled_from([0.0, 0.1, 0.5, 40.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(waiting=st.integers(0, 5))
    def claims_wait(self, waiting: int) -> None:
        self.pool.waiting = waiting

    @rule()
    def launch(self) -> None:
        for _ in range(self.pool.launches(self.now_s)):
            self.count += 1
            kernel_id = KernelId(str(self.count))
            self.pool.launch(kernel_id)
            self.known.add(kernel_id)

    @precondition(lambda self: self.pool.launching)
    @rule(succeeds=st.booleans())
    def launch_ends(self, *, succeeds: bool) -> None:
        kernel_id = min(self.pool.launching)
        if succeeds:
            self.pool.became_warm(kernel_id)
        else:
            self.pool.failed(kernel_id, self.now_s)
            self.pool.remove(kernel_id)

    @rule()
    def claim(self) -> None:
        had = len(self.pool.warm)
        claimed = self.pool.claim(self.now_s)
        assert (claimed is None) == (had == 0)

    @precondition(lambda self: self.pool.working)
    @rule(unused=st.booleans())
    def work_ends(self, *, unused: bool) -> None:
        kernel_id = min(self.pool.working)
        if unused:
            self.pool.unclaim(kernel_id)
        else:
            self.pool.remove(kernel_id)

    @precondition(lambda self: self.pool.warm)
    @rule()
    def a_warm_one_dies(self) -> None:
        self.pool.remove(self.pool.warm[-1])

    @precondition(lambda self: self.pool.removing)
    @rule()
    def removal_ends(self) -> None:
        kernel_id = min(self.pool.removing)
        self.pool.removed(kernel_id)
        self.known.discard(kernel_id)

    @invariant()
    def is_bounded(self) -> None:
        assert self.pool.live() <= self.most
        assert self.pool.launches(self.now_s) <= self.most - self.pool.live()

    @invariant()
    def knows_every_kernel_once(self) -> None:
        places = [*self.pool.warm, *self.pool.launching, *self.pool.working, *self.pool.removing]
        assert len(places) == len(set(places))
        assert set(places) == self.known

    @invariant()
    def always_has_something_to_do_or_a_time_to_look_again(self) -> None:
        wanted = self.pool.settings.size + self.pool.waiting - len(self.pool.warm) - len(self.pool.launching)
        idle = not self.pool.launching and not self.pool.removing
        if wanted > 0 and idle and self.pool.live() < self.most:
            assert self.pool.launches(self.now_s) > 0 or self.pool.next_look_s(self.now_s) is not None


TestPoolAtRandom = PoolAtRandom.TestCase
