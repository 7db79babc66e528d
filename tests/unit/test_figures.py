"""What the engine tells of itself, and that it counts each thing that happens once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from doubles import ManualClock, until
from workbench import Bench, Benches, come_back, crash, ended, unavailable

from sessions.errors import StoreUnavailable
from sessions.measures.stages import Stage
from sessions.measures.tally import Launch
from sessions.model import RunStatus, SessionId, SessionState
from sessions.settings import PoolSettings


def deaths(bench: Bench) -> dict[str, int]:
    return {str(cause): count for cause, count in bench.service.figures.tally.deaths.items()}


async def test_each_run_is_counted_once_by_its_language_and_status(bench: Bench) -> None:
    await bench.serve("a")
    await bench.serve("b", session_id=SessionId("s"))
    await bench.serve("c", language="other")
    running = bench.begin("d", timeout_s=0.01)
    kernel = await bench.sent("d")
    await until(lambda: bool(kernel.interrupts()))
    kernel.interrupted()
    assert (await running).status is RunStatus.TIMEOUT
    assert bench.service.figures.tally.runs == {("python", "ok"): 2, ("other", "ok"): 1, ("python", "timeout"): 1}
    assert bench.service.figures.stages.histograms[Stage.COMMIT].count == 4
    assert not bench.service.figures.live_runs()


async def test_runs_that_have_not_ended_are_queued_or_running(bench: Bench) -> None:
    async with asyncio.TaskGroup() as group:
        for code in ("first", "second", "third"):
            group.create_task(bench.service.run(bench.request(code, session_id=SessionId("s"))))
            await until(lambda code=code: any(stored.run.code == code for stored in bench.store.runs.values()))  # type: ignore[misc]
        await bench.sent("first")
        live = bench.service.figures.live_runs()
        assert (live[RunStatus.RUNNING], live[RunStatus.QUEUED]) == (1, 2)
        assert bench.service.figures.sessions() == {SessionState.BUSY: 1}
        for code in ("first", "second", "third"):
            (await bench.sent(code)).end()
    await until(lambda: bench.service.figures.sessions() == {SessionState.IDLE: 1})


async def test_a_run_that_an_earlier_gateway_began_is_counted_by_the_one_that_ends_it(benches: Benches) -> None:
    first = benches[0]
    run_id = await first.record()
    kernel = await first.sent()
    second = await crash(benches)
    come_back(second, kernel)
    kernel.end("1\n")
    await ended(second, run_id)
    assert first.service.figures.tally.runs == {}
    assert second.service.figures.tally.runs == {("python", "ok"): 1}
    assert second.service.figures.stages.whole.count == 0


async def test_a_claim_that_waits_is_in_the_figures_with_its_age() -> None:
    clock = ManualClock()
    bench = await Bench(clock=clock, pool=PoolSettings(1, 1)).start()
    await bench.create()
    waiting = bench.begin()
    async with asyncio.timeout(30):
        while not (pool := bench.service.figures.pools()[0]).waiting:
            await asyncio.sleep(0)
    assert (pool.kernel_name, pool.warm, pool.working, pool.waiting, pool.oldest_wait_s) == ("python3", 0, 1, 1, 0)
    assert bench.service.figures.most_sandboxes == 1
    clock.at_s += 3.0
    assert bench.service.figures.pools()[0].oldest_wait_s == 3.0
    waiting.cancel()
    await bench.stop()
    assert bench.service.figures.pools()[0].waiting == 0


async def test_launches_are_counted_by_how_they_ended(bench: Bench) -> None:
    launches = bench.service.figures.tally.launches
    assert launches == {("python3", Launch.OK): 1}
    bench.engine.is_reachable = False
    await bench.serve("a")
    await until(lambda: launches["python3", Launch.FAILED] > 0)
    bench.engine.is_reachable = True
    await until(lambda: launches["python3", Launch.OK] == 2)


@pytest.mark.parametrize("cause", ["oom", "signal", "exited"])
async def test_the_death_of_a_kernel_is_counted_by_its_cause(bench: Bench, cause: str) -> None:
    running = bench.begin(session_id=SessionId("s"))
    (await bench.sent()).died(cause)
    await running
    assert deaths(bench) == {cause: 1}


async def test_a_sandbox_that_ends_is_counted_and_one_that_is_removed_is_not(bench: Bench) -> None:
    await bench.serve("used")
    await until(lambda: bench.service.figures.pools()[0].working == 0)
    assert deaths(bench) == {}
    running = bench.begin("a")
    kernel = await bench.sent("a")
    bench.engine.say(kernel.kernel_id, "state", state="dead")
    assert (await running).status is RunStatus.KERNEL_DIED
    await until(lambda: deaths(bench) == {"gone": 1})


async def test_a_cause_that_a_sandbox_makes_up_is_none_of_its_own(bench: Bench) -> None:
    running = bench.begin()
    (await bench.sent()).died("tenant-17")
    await running
    assert deaths(bench) == {"exited": 1}


@pytest.mark.timeouts(store_check_pause_s=0.01)
async def test_the_database_is_up_while_it_answers(bench: Bench) -> None:
    figures = bench.service.figures
    await until(lambda: figures.database().round_trip_s is not None)
    assert figures.database().is_up
    bench.store.is_reachable = False
    await until(lambda: not figures.database().is_up)
    assert figures.database().round_trip_s is None
    bench.store.is_reachable = True
    await until(lambda: figures.database().is_up)


async def test_the_size_of_the_database_is_asked_for_once_a_minute() -> None:
    clock, asked = ManualClock(), 0
    bench = await Bench(clock=clock).start()

    async def size_bytes() -> int:
        nonlocal asked
        asked += 1
        return 1000 * asked

    bench.store.size_bytes = size_bytes  # type: ignore[method-assign]
    figures = bench.service.figures
    assert [await figures.database_bytes() for _ in range(3)] == [1000] * 3
    clock.at_s += 59.0
    assert await figures.database_bytes() == 1000
    clock.at_s += 2.0
    assert await figures.database_bytes() == 2000
    clock.at_s += 61.0
    with unavailable(bench.store, "size_bytes"):
        assert await figures.database_bytes() is None
    await bench.stop()


async def test_a_database_that_does_not_answer_keeps_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.figures._SIZE_PATIENCE_S", 0.01)

    async def size_bytes(*_: Any) -> int:
        await asyncio.Event().wait()
        raise StoreUnavailable

    monkeypatch.setattr(bench.store, "size_bytes", size_bytes)
    assert await bench.service.figures.database_bytes() is None
    assert await bench.service.figures.database_bytes() is None
