"""A batch over the real service and pool: what others get meanwhile, sessions, a gateway that stops or is killed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable

import pytest
from doubles import until
from workbench import HURRIED, Bench

from sessions.errors import Draining, NotFound
from sessions.model import ANONYMOUS, Result, RunId, RunRequest, RunStatus, SessionId
from sessions.runs.batch import Batch, Batches
from sessions.settings import PoolSettings

FULL = PoolSettings(1, 1)
"""All other sandboxes are taken by sessions, so to speak."""


class ServiceItem:
    """An item whose run is the service's. `outcome` is what it was answered with."""

    def __init__(self, bench: Bench, request: RunRequest) -> None:
        self.session_id = request.session_id
        self.outcome: Result | Exception | None = None
        self._service = bench.service
        self._request = request

    def claims_kernel(self) -> bool:
        if self.session_id is None:
            return True
        try:
            self._service.get_session(ANONYMOUS, self.session_id)
        except NotFound:
            return True
        return False

    async def begin(self) -> RunId:
        return await self._service.begin(self._request)

    async def result(self, run_id: RunId) -> Result:
        return await self._service.result(run_id)

    async def answer(self, outcome: Result | Exception) -> None:
        self.outcome = outcome


def items_of(bench: Bench, codes: Iterable[str]) -> list[ServiceItem]:
    """An item a code, which is its key too; what stands before a colon is its session."""
    return [
        ServiceItem(
            bench,
            bench.request(
                code, idempotency_key=code, session_id=SessionId(code.partition(":")[0]) if ":" in code else None
            ),
        )
        for code in codes
    ]


def perform(items: list[ServiceItem], pool_max: int = 24) -> asyncio.Future[None]:
    return asyncio.ensure_future(Batch(Batches(pool_max, 90.0, time.monotonic), ANONYMOUS).perform(items))


async def settle() -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(200):
        await asyncio.sleep(0)


async def serve(bench: Bench, count: int, served: list[str]) -> None:
    """Let so many runs end, as they come."""
    async with asyncio.timeout(60):
        for _ in range(count):
            kernel = await bench.sent()
            served.append(kernel.code)
            kernel.end(kernel.code)


@pytest.mark.parametrize("pool_max", [1, 24])
async def test_a_single_run_waits_for_one_or_two_of_a_batch_and_not_for_the_batch(pool_max: int) -> None:
    bench = await Bench(pool=FULL).start()
    batch = perform(items_of(bench, map(str, range(20))), pool_max)
    served: list[str] = []
    for _ in range(3):
        await serve(bench, 3, served)
        await bench.sent()
        before = len(served)
        single = bench.begin("single")
        await settle()
        while "single" not in served[before:]:
            await serve(bench, 1, served)
        assert (await single).output == "single"
        assert len(served) - before <= 3
    await serve(bench, 23 - len(served), served)
    await batch
    assert Counter(served) == {**{str(place): 1 for place in range(20)}, "single": 3}
    await bench.stop()


async def test_a_batch_takes_one_place_in_the_queue() -> None:
    bench = await Bench(pool=FULL, queue=2).start()
    items = items_of(bench, map(str, range(12)))
    batch = perform(items)
    served: list[str] = []
    single = bench.begin("single")
    await serve(bench, 13, served)
    await batch
    assert (await single).status is RunStatus.OK
    assert all(isinstance(item.outcome, Result) for item in items)
    await bench.stop()


async def test_a_session_takes_more_items_than_its_queue() -> None:
    bench = await Bench(queue=2).start()
    codes = [f"{'ab'[place % 2]}:{place}" for place in range(40)]
    items = items_of(bench, codes)
    batch = perform(items)
    served: list[str] = []
    await serve(bench, 40, served)
    await batch
    for session in "ab":
        expected = [code for code in codes if code.startswith(session)]
        assert [code for code in served if code.startswith(session)] == expected
    assert [item.outcome.output for item in items if isinstance(item.outcome, Result)] == codes
    await bench.stop()


async def test_a_gateway_that_stops_ends_what_has_begun_and_refuses_the_rest() -> None:
    bench = await Bench(pool=PoolSettings(1, 8)).start()
    items = items_of(bench, ["s:1", "s:2", *map(str, range(10))])
    batch = perform(items, pool_max=8)
    await until(lambda: len(bench.store.runs) == 2)
    draining = asyncio.ensure_future(bench.service.drain(30))
    await settle()
    await serve(bench, 2, [])
    await batch
    await draining
    outcomes = [item.outcome for item in items]
    assert sum(isinstance(outcome, Result) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, Draining) for outcome in outcomes) == 10
    assert len(bench.store.runs) == 2
    await bench.stop()


async def test_a_batch_that_is_sent_again_after_a_crash_runs_nothing_twice() -> None:
    bench = await Bench(pool=PoolSettings(1, 8), timeouts=HURRIED).start()
    codes = [*(f"s:{place}" for place in range(6)), *map(str, range(6))]
    batch = perform(items_of(bench, codes), pool_max=8)
    served: list[str] = []
    await serve(bench, 5, served)
    await until(lambda: sum(run.finished_at is not None for run in bench.store.runs.values()) == 5)
    await until(lambda: len(bench.store.runs) == 7)
    await bench.sent()
    bench.crash()
    batch.cancel()
    successor = await bench.successor()
    for kernel_id in list(bench.engine.sandboxes):
        if kernel_id in bench.engine.ports:
            successor.engine.dial(kernel_id)
    items = items_of(successor, codes)
    batch = perform(items, pool_max=8)
    await serve(successor, 7, served)
    async with asyncio.timeout(30):
        await batch
    assert [item.outcome.output for item in items if isinstance(item.outcome, Result)] == codes
    assert Counter(served) == dict.fromkeys(codes, 1)
    assert {code: successor.times_sent(code) for code in codes} == dict.fromkeys(codes, 1)
    await successor.stop()
