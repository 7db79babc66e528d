"""The runs of a batch: their order, how many at once, whose turn it is, and what is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from doubles import ManualClock, until

from sessions.errors import (
    Conflict,
    Draining,
    EndNotStored,
    EngineUnavailable,
    NoKernelInTime,
    NotFound,
    StoreUnavailable,
    TooManyRequests,
)
from sessions.model import Result, RunId, RunStatus, SessionId, TenantId
from sessions.runs.batch import Batch, Batches, ItemOrder

ALICE, BOB = TenantId("alice"), TenantId("bob")
PATIENCE_S = 90.0
Outcome = Result | Exception


class House:
    """A gateway's batches, with a clock that moves when somebody sleeps. It keeps what was begun and answered."""

    def __init__(self, pool_max: int = 12) -> None:
        self.clock = ManualClock()
        self.pauses: list[float] = []
        self.begun: list[str] = []
        self.answered: dict[str, Outcome] = {}
        self.beginning: set[str] = set()
        self.most_claims = 0
        self.batches = Batches(pool_max, PATIENCE_S, self.clock.monotonic, self._sleep)

    async def _sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.clock.at_s += pause_s
        await asyncio.sleep(0)

    def items(self, *names: str) -> list[MemoryItem]:
        """An item a name; what stands before a colon is its session."""
        return [MemoryItem(self, name) for name in names]

    @asynccontextmanager
    async def performing(self, items: Sequence[MemoryItem], tenant: TenantId = ALICE) -> AsyncIterator[Batch]:
        batch = Batch(self.batches, tenant)
        task = asyncio.ensure_future(batch.perform(items))
        try:
            yield batch
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def perform(self, items: Sequence[MemoryItem], tenant: TenantId = ALICE) -> None:
        async with asyncio.timeout(30):
            await Batch(self.batches, tenant).perform(items)


class MemoryItem:
    """An item whose run ends when the test says so, or at once; `refusals` are what its attempts meet first."""

    def __init__(self, house: House, name: str) -> None:
        self.name = name
        self.session_id = SessionId(name.partition(":")[0]) if ":" in name else None
        self.refusals: list[Exception] = []
        self.results: list[Exception] = []
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.may_be_taken = asyncio.Event()
        self.may_be_taken.set()
        self.is_taken: Callable[[], None] = lambda: None
        self.begins = 0
        self.refuses_after_s = 0.0
        self._house = house

    def claims_kernel(self) -> bool:
        return self.session_id is None

    async def begin(self) -> RunId:
        self.begins += 1
        self._house.beginning.add(self.name)
        self._house.most_claims = max(self._house.most_claims, sum(":" not in name for name in self._house.beginning))
        try:
            await self.may_begin.wait()
            await asyncio.sleep(0)
        finally:
            self._house.beginning.discard(self.name)
        if self.refusals:
            self._house.clock.at_s += self.refuses_after_s
            raise self.refusals.pop(0)
        self._house.begun.append(self.name)
        return RunId(f"{self.name}-{self.begins}")

    async def result(self, run_id: RunId) -> Result:
        await self.may_end.wait()
        if self.results:
            raise self.results.pop(0)
        return Result(run_id, RunStatus.OK, self.name)

    async def answer(self, outcome: Outcome) -> None:
        await self.may_be_taken.wait()
        self.is_taken()
        self._house.answered[self.name] = outcome


async def settle() -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(50):
        await asyncio.sleep(0)


# --- order ------------------------------------------------------------------------------------------------------------


def test_items_of_one_session_begin_one_after_the_other_and_others_go_past_them() -> None:
    order = ItemOrder([SessionId("a"), SessionId("a"), None, SessionId("b"), SessionId("a")])
    assert [order.begin_next() for _ in range(4)] == [0, 2, 3, None]
    order.end(3)
    assert order.begin_next() is None
    order.end(0)
    assert [order.begin_next(), order.begin_next()] == [1, None]
    order.end(1)
    assert [order.begin_next(), order.begin_next()] == [4, None]


def test_what_has_waited_for_its_session_comes_before_later_items() -> None:
    order = ItemOrder([SessionId("a"), SessionId("a"), None, None])
    assert order.begin_next() == 0
    order.end(0)
    assert [order.begin_next() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(("pool_max", "at_once"), [(1, 1), (3, 1), (4, 1), (8, 2), (24, 6)])
def test_a_quarter_of_the_sandboxes_is_for_batches(pool_max: int, at_once: int) -> None:
    assert House(pool_max).batches.at_once == at_once


async def test_every_item_is_answered_once_and_those_of_a_session_run_in_order() -> None:
    house = House()
    names = [f"{'abcd'[place % 4]}:{place}" if place % 5 else str(place) for place in range(200)]
    await house.perform(house.items(*names))
    assert sorted(house.answered) == sorted(names)
    for session in "abcd":
        expected = [name for name in names if name.startswith(session)]
        assert [name for name in house.begun if name.startswith(session)] == expected


async def test_a_thousand_items_of_one_session_run_one_at_a_time() -> None:
    house = House()
    items = house.items(*(f"s:{place}" for place in range(1000)))
    items[1].may_end.clear()
    async with house.performing(items):
        await until(lambda: house.begun == ["s:0", "s:1"])
        await settle()
        assert house.begun == ["s:0", "s:1"]
        items[1].may_end.set()
        await until(lambda: len(house.answered) == 1000)
    assert house.begun == [item.name for item in items]


# --- how many at once -------------------------------------------------------------------------------------------------


async def test_the_next_item_begins_when_one_has_ended() -> None:
    house = House(pool_max=12)
    items = house.items(*"abcdef")
    for item in items:
        item.may_end.clear()
    async with house.performing(items):
        await until(lambda: len(house.begun) == 3)
        await settle()
        assert house.begun == ["a", "b", "c"]
        items[1].may_end.set()
        await until(lambda: len(house.begun) == 4)
        await settle()
        assert house.begun == ["a", "b", "c", "d"]
        assert list(house.answered) == ["b"]


async def test_all_batches_of_a_tenant_share_their_places_and_other_tenants_have_their_own() -> None:
    house = House(pool_max=8)
    first, second, other = house.items("a1", "a2", "a3"), house.items("b1", "b2"), house.items("c1", "c2", "c3")
    for item in (*first, *second, *other):
        item.may_end.clear()
    async with house.performing(first), house.performing(second), house.performing(other, BOB):
        await until(lambda: len(house.begun) == 4)
        await settle()
        assert sorted(house.begun) == ["a1", "a2", "c1", "c2"]
        first[0].may_end.set()
        await until(lambda: "b1" in house.begun)  # each batch has its turn
    await settle()
    assert repr(house.batches) == "<Batches of 0 tenants>"


async def test_one_item_of_a_tenant_at_a_time_waits_for_a_kernel() -> None:
    house = House(pool_max=24)
    items = house.items(*"abcdefgh", "s:1", "t:1")
    items[0].may_begin.clear()
    async with house.performing(items):
        await until(lambda: house.beginning == {"a"})
        await settle()
        assert house.beginning == {"a"}
        items[0].may_begin.set()
        await until(lambda: len(house.answered) == len(items))
    assert house.most_claims == 1


async def test_who_needs_no_kernel_does_not_wait_for_who_does() -> None:
    house = House(pool_max=24)
    items = house.items("a", "s:1", "s:2")
    items[0].may_begin.clear()
    async with house.performing(items):
        await until(lambda: list(house.answered) == ["s:1", "s:2"])


# --- the client -------------------------------------------------------------------------------------------------------


async def test_nothing_begins_while_the_answers_are_not_taken() -> None:
    house = House(pool_max=8)
    items = house.items(*"abcdef")
    for item in items:
        item.may_be_taken.clear()
    async with house.performing(items):
        await until(lambda: len(house.begun) == 2)
        await settle()
        assert house.begun == ["a", "b"]
        items[0].may_be_taken.set()
        await until(lambda: len(house.begun) == 3)


async def test_unread_answers_of_one_batch_do_not_hold_up_another() -> None:
    house = House(pool_max=4)
    unread, read = house.items("a", "b"), house.items("c", "d")
    unread[0].may_be_taken.clear()
    async with house.performing(unread), house.performing(read):
        await until(lambda: list(house.answered) == ["c", "d"])
    assert house.begun == ["a", "c", "d"]


async def test_when_the_client_is_gone_nothing_begins_any_more() -> None:
    house = House(pool_max=8)
    items = house.items(*"abcdef")

    def hang_up() -> None:
        raise ConnectionError

    items[1].is_taken = hang_up
    items[0].may_end.clear()
    with pytest.raises(ConnectionError):
        await house.perform(items)
    await settle()
    assert house.begun == ["a", "b"]
    assert house.answered == {}


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Conflict("x"), RuntimeError("a bug"), Draining(), EndNotStored("x"), NotFound("x")])
async def test_an_item_that_fails_fails_alone(error: Exception) -> None:
    house = House(pool_max=4)
    items = house.items("a", "b", "c")
    items[1].refusals.append(error)
    await house.perform(items)
    assert house.answered["b"] is error
    assert house.begun == ["a", "c"]
    assert house.pauses == []


@pytest.mark.parametrize("error", [TooManyRequests(), NoKernelInTime(), EngineUnavailable("x"), StoreUnavailable()])
async def test_what_the_load_refuses_is_tried_again_after_a_pause(error: TooManyRequests) -> None:
    house = House()
    items = house.items("a")
    items[0].refusals += [error] * 4
    await house.perform(items)
    assert items[0].begins == 5
    assert house.begun == ["a"]
    assert house.pauses == [max(pause_s, error.retry_after_s or 0) for pause_s in (0.5, 1.0, 2.0, 4.0)]


async def test_an_item_is_given_up_after_a_while() -> None:
    house = House(pool_max=8)
    items = house.items("a", *(f"b{place}" for place in range(200)))
    items[0].refusals += [TooManyRequests(f"no {count}") for count in range(100)]
    for item in items[1:]:
        item.is_taken = lambda: setattr(house.clock, "at_s", house.clock.at_s + 1)
    began_s = house.clock.at_s
    await house.perform(items)
    assert isinstance(house.answered["a"], TooManyRequests)
    assert sum(house.pauses) <= PATIENCE_S + 4.0
    assert house.clock.at_s - began_s >= PATIENCE_S
    assert len(house.begun) == 200


async def test_when_nothing_at_all_begins_not_each_item_is_waited_for() -> None:
    house = House(pool_max=8)
    items = house.items(*(str(place) for place in range(500)))
    for item in items:
        item.refusals += [EngineUnavailable("gone") for _ in range(100)]
    began_s = house.clock.at_s
    await house.perform(items)
    assert all(isinstance(outcome, EngineUnavailable) for outcome in house.answered.values())
    assert len(house.answered) == 500
    assert PATIENCE_S <= house.clock.at_s - began_s <= PATIENCE_S + 20
    assert items[-1].begins == 0


async def test_a_full_queue_is_asked_once_for_each_item_that_is_left() -> None:
    house = House(pool_max=8)
    items = house.items(*(str(place) for place in range(100)))
    for item in items[:-1]:
        item.refusals += [TooManyRequests() for _ in range(100)]
    await house.perform(items)
    assert house.begun == ["99"]
    assert items[50].begins == 1


async def test_where_no_sandbox_becomes_free_not_each_item_waits_for_one() -> None:
    house = House(pool_max=24)
    alone, in_session = [str(place) for place in range(500)], [f"s:{place}" for place in range(500)]
    items = house.items(*(name for pair in zip(alone, in_session, strict=True) for name in pair))
    for item in items:
        if item.session_id is None:
            item.refusals += [NoKernelInTime() for _ in range(100)]
            item.refuses_after_s = 30.0
    began_s = house.clock.at_s
    await house.perform(items)
    assert house.begun == in_session
    assert all(isinstance(house.answered[name], NoKernelInTime) for name in alone)
    assert PATIENCE_S <= house.clock.at_s - began_s <= 3 * PATIENCE_S


async def test_a_batch_that_goes_on_has_its_patience_anew() -> None:
    house = House(pool_max=4)
    items = house.items("a", "b", "c")
    for item in items:
        item.refusals += [NoKernelInTime() for _ in range(20)]
    await house.perform(items)
    assert house.begun == ["a", "b", "c"]
    assert sum(house.pauses) > PATIENCE_S


async def test_a_run_that_no_kernel_took_is_begun_again() -> None:
    house = House()
    items = house.items("a")
    items[0].results.append(NoKernelInTime())
    await house.perform(items)
    assert house.begun == ["a", "a"]
    assert house.answered["a"] == Result(RunId("a-2"), RunStatus.OK, "a")


async def test_a_run_is_not_begun_again_because_the_database_did_not_say_how_it_ended() -> None:
    house = House()
    items = house.items("a")
    items[0].results += [StoreUnavailable(), StoreUnavailable()]
    await house.perform(items)
    assert house.begun == ["a"]
    assert house.answered["a"] == Result(RunId("a-1"), RunStatus.OK, "a")


async def test_a_run_whose_end_stays_unknown_is_not_said_to_have_been_refused() -> None:
    house = House()
    items = house.items("a")
    items[0].results += [StoreUnavailable() for _ in range(100)]
    await house.perform(items)
    assert house.begun == ["a"]
    assert isinstance(house.answered["a"], EndNotStored)
    assert "GET /runs/a-1" in str(house.answered["a"])


async def test_a_run_that_was_withdrawn_meanwhile_is_begun_again() -> None:
    house = House()
    items = house.items("a")
    items[0].results += [StoreUnavailable(), NotFound("withdrawn")]
    await house.perform(items)
    assert house.begun == ["a", "a"]
    assert house.answered["a"] == Result(RunId("a-2"), RunStatus.OK, "a")
