"""Where kernels come from and go to, with an engine in memory whose supervisors do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog
from doubles import MemoryEngine, until

from gateway.host.clock import SystemClock
from kernel_image import protocol
from sessions.environment import Environment
from sessions.errors import Draining, EngineUnavailable, NoKernelInTime, TooManyRequests
from sessions.kernels.kernel import Kernel
from sessions.kernels.kernel_pool import KernelPool
from sessions.model import GatewayId, KernelId
from sessions.ports import Fate
from sessions.settings import Limits, PoolSettings, Timeouts
from sessions.testing.memory_store import MemoryStore

NAME = "python3"


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


Make = Callable[..., Awaitable[KernelPool]]


@pytest.fixture
async def make(engine: MemoryEngine, timeouts: Timeouts) -> AsyncIterator[Make]:
    supplies: list[KernelPool] = []

    async def make(size: int = 2, most: int = 4, queue: int = 8, **options: Any) -> KernelPool:
        environment = Environment(
            provisioner=engine,
            switchboard=engine,
            store=MemoryStore(),
            gateway_id=GatewayId("g"),
            limits=Limits(queue=queue),
            preload=("numpy",),
            credential_of=lambda kernel_id: f"secret of {kernel_id}",
            clock=SystemClock(),
            timeouts=replace(timeouts, refill_pause_s=0.0),
        )
        kernel_names = options.pop("kernel_names", {NAME: size})
        kernel_pool = KernelPool(environment, PoolSettings(size, most), kernel_names)
        supplies.append(kernel_pool)
        await kernel_pool.recover({})
        kernel_pool.start()
        return kernel_pool

    yield make
    engine.is_reachable = True
    for kernel_pool in supplies:
        await kernel_pool.close()
    assert engine.sandboxes == {}
    assert engine.ports == {}


def in_queue(kernel_pool: KernelPool) -> int:
    return len(kernel_pool._waiters[NAME])


async def claim(kernel_pool: KernelPool, timeout_s: float = 5.0) -> Kernel:
    return await kernel_pool.claim(NAME, timeout_s)


async def test_kernels_are_warm_before_anybody_asks(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=2)
    assert kernel_pool.reasons_not_ready() == ["The first sandbox is still being started."]
    await until(lambda: kernel_pool.warm() == 2)
    assert kernel_pool.reasons_not_ready() == []
    assert len(engine.sandboxes) == 2
    spec = next(iter(engine.specs.values()))
    assert (spec.gateway_id, spec.kernel_name, spec.preload) == ("g", NAME, ("numpy",))
    assert len({spec.credential for spec in engine.specs.values()}) == 2


async def test_every_kernel_is_handed_out_once_and_replaced(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=2, most=4)
    used = set()
    for _ in range(10):
        kernel = await claim(kernel_pool)
        assert kernel.is_ready()
        used.add(kernel.kernel_id)
        kernel_pool.discard(kernel)
    assert len(used) == 10
    await until(lambda: kernel_pool.warm() == 2 and len(engine.sandboxes) == 2)
    assert kernel_pool.working() == 0
    assert not used & set(engine.sandboxes)
    assert engine.most_at_once <= 4


async def test_retiring_twice_is_retiring_once(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1)
    kernel = await claim(kernel_pool)
    kernel_pool.discard(kernel)
    kernel_pool.discard(kernel)
    await until(lambda: kernel_pool.warm() == 1 and len(engine.sandboxes) == 1)


async def test_claims_wait_in_order_for_what_comes_up(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=0, most=1)
    order: list[int] = []

    async def work(number: int) -> None:
        kernel = await claim(kernel_pool)
        order.append(number)
        kernel_pool.discard(kernel)

    tasks = []
    for number in range(5):
        tasks.append(asyncio.ensure_future(work(number)))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert engine.most_at_once == 1


async def test_a_claim_does_not_overtake_those_who_wait(engine: MemoryEngine, make: Make) -> None:
    engine.comes_up = False
    kernel_pool = await make(size=1, most=1)
    first = asyncio.ensure_future(claim(kernel_pool))
    await until(lambda: len(engine.specs) == 1)
    engine.come_up(next(iter(engine.specs)))
    second = asyncio.ensure_future(claim(kernel_pool))
    kernel = await first
    assert not second.done()
    kernel_pool.release(kernel)
    assert await second is kernel
    kernel_pool.discard(kernel)


async def test_a_full_queue_turns_claims_away_at_once(engine: MemoryEngine, make: Make) -> None:
    engine.comes_up = False
    kernel_pool = await make(size=0, queue=2)
    waiting = [asyncio.ensure_future(claim(kernel_pool)) for _ in range(2)]
    await until(lambda: in_queue(kernel_pool) == 2)
    with pytest.raises(TooManyRequests):
        await claim(kernel_pool)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert in_queue(kernel_pool) == 0


async def test_a_claim_that_is_not_served_in_time_leaves_the_queue(engine: MemoryEngine, make: Make) -> None:
    engine.comes_up = False
    kernel_pool = await make(size=0)
    with pytest.raises(NoKernelInTime):
        await claim(kernel_pool, 0.02)
    assert in_queue(kernel_pool) == 0
    await until(lambda: len(engine.specs) == 1)
    engine.come_up(next(iter(engine.specs)))
    await until(lambda: kernel_pool.warm() == 1)
    assert kernel_pool.working() == 0


async def test_a_claim_cancelled_after_it_was_served_gives_the_kernel_back(make: Make) -> None:
    kernel_pool = await make(size=1, most=1)
    held = await claim(kernel_pool)
    task = asyncio.ensure_future(claim(kernel_pool))
    await until(lambda: in_queue(kernel_pool) == 1)
    kernel_pool.release(held)  # serves the waiting claim, whose task has not run since
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (kernel_pool.warm(), kernel_pool.working()) == (1, 0)


async def test_a_warm_kernel_that_dies_is_replaced_before_anybody_meets_it(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1)
    await until(lambda: kernel_pool.warm() == 1)
    dead = next(iter(engine.sandboxes))
    engine.say(dead, "died", cause="signal", signal=9)
    assert kernel_pool.warm() == 0
    kernel = await claim(kernel_pool)
    assert kernel.kernel_id != dead
    kernel_pool.discard(kernel)
    await until(lambda: dead not in engine.sandboxes)


async def test_a_warm_kernel_without_a_supervisor_is_never_handed_out(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1)
    await until(lambda: kernel_pool.warm() == 1)
    cut_off = next(iter(engine.sandboxes))
    engine.disconnect(cut_off)
    kernel = await claim(kernel_pool)
    assert kernel.kernel_id != cut_off
    kernel_pool.discard(kernel)


async def test_a_kernel_given_back_dead_is_replaced(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1)
    kernel = await claim(kernel_pool)
    engine.disconnect(kernel.kernel_id)
    kernel_pool.release(kernel)
    await until(lambda: kernel_pool.warm() == 1)
    assert kernel.kernel_id not in engine.sandboxes
    assert kernel_pool.working() == 0


async def test_launches_that_fail_are_told_and_tried_again(engine: MemoryEngine, make: Make) -> None:
    engine.launches_fail = 3
    with structlog.testing.capture_logs() as logs:
        kernel_pool = await make(size=1)
        await until(lambda: kernel_pool.last_failure is not None)
        await until(lambda: kernel_pool.warm() == 1)
    assert [entry["cause"] for entry in logs if entry["event"] == "launch_failed"] == ["the engine's words"] * 3
    assert kernel_pool.last_failure is None
    assert len(engine.sandboxes) == 1


async def test_while_no_launch_works_claims_fail_at_once_and_say_why(engine: MemoryEngine, make: Make) -> None:
    engine.launches_fail = 10**6
    kernel_pool = await make(size=1)
    with pytest.raises(EngineUnavailable, match="told to fail"):
        await claim(kernel_pool)
    assert kernel_pool.reasons_not_ready() == ["No sandbox can be started: This launch was told to fail."]
    with pytest.raises(EngineUnavailable, match="told to fail"):
        await claim(kernel_pool)
    engine.launches_fail = 0
    await until(lambda: kernel_pool.warm() == 1)
    kernel_pool.discard(await claim(kernel_pool))


@pytest.mark.timeouts(ready_timeout_s=0.02)
async def test_a_kernel_that_never_answers_is_a_failed_launch(engine: MemoryEngine, make: Make) -> None:
    engine.comes_up = False
    kernel_pool = await make(size=1)
    await until(lambda: kernel_pool.last_failure is not None)
    engine.comes_up = True
    await until(lambda: kernel_pool.warm() == 1)
    await until(lambda: len(engine.sandboxes) == 1)


async def test_what_an_earlier_gateway_left_is_removed_first(engine: MemoryEngine, make: Make) -> None:
    old = KernelId("old")
    engine.sandboxes[old] = None
    kernel_pool = await make(size=1)
    assert old not in engine.sandboxes
    assert engine.leftovers_removed
    await until(lambda: kernel_pool.warm() == 1)


async def test_the_bound_holds_over_all_languages_together(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=2, most=3, kernel_names={NAME: 2, "bash": 0})
    await until(lambda: kernel_pool.warm() == 2)
    claims = [asyncio.ensure_future(kernel_pool.claim("bash", 5.0)) for _ in range(2)]
    done, _ = await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED)
    kernel_pool.discard(done.pop().result())
    await asyncio.wait(claims)
    for task in claims:
        kernel_pool.discard(task.result())
    assert engine.most_at_once == 3


async def test_closing_turns_waiting_claims_away_and_removes_everything(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1, most=1)
    held = await claim(kernel_pool)
    waiting = asyncio.ensure_future(claim(kernel_pool))
    await until(lambda: in_queue(kernel_pool) == 1)
    await kernel_pool.close()
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await claim(kernel_pool)
    assert not held.is_ready()
    assert engine.sandboxes == {}
    assert len(kernel_pool._tasks) == 0


async def test_draining_turns_waiting_claims_away_and_lets_running_code_be(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1, most=1)
    held = await claim(kernel_pool)
    waiting = asyncio.ensure_future(claim(kernel_pool))
    await until(lambda: in_queue(kernel_pool) == 1)
    kernel_pool.stop_refilling()
    with pytest.raises(Draining):
        await waiting
    assert held.is_ready()
    kernel_pool.discard(held)
    await until(lambda: engine.sandboxes == {})
    await asyncio.sleep(0.02)
    assert kernel_pool.warm() == 0


async def test_a_removal_that_fails_is_tried_again(
    engine: MemoryEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_pool = await make(size=0)
    kernel = await claim(kernel_pool)
    failures = iter([True, False])
    kill = engine.kill

    async def unreliable(kernel_id: KernelId) -> None:
        if next(failures, False):
            raise EngineUnavailable
        await kill(kernel_id)

    monkeypatch.setattr(engine, "kill", unreliable)
    with structlog.testing.capture_logs() as logs:
        kernel_pool.discard(kernel)
        await until(lambda: engine.sandboxes == {})
    assert [entry["attempt"] for entry in logs if entry["event"] == "removal_failed"] == [1]


async def test_a_removal_that_an_error_of_ours_ends_takes_no_room_for_good(
    engine: MemoryEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_pool = await make(size=0, most=1)
    kernel = await claim(kernel_pool)

    async def broken(_: KernelId) -> None:
        raise OSError("not empty")

    with monkeypatch.context() as broken_engine, structlog.testing.capture_logs() as logs:
        broken_engine.setattr(engine, "kill", broken)
        kernel_pool.discard(kernel)
        assert await claim(kernel_pool) is not kernel
    assert [entry["kernel_id"] for entry in logs if entry["event"] == "sandbox_not_removed"] == [kernel.kernel_id]


@pytest.mark.timeouts(fate_poll_s=0.01)
async def test_a_fate_is_asked_for_until_the_engine_knows_it(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1)
    kernel = await claim(kernel_pool)
    asking = asyncio.ensure_future(kernel_pool.fate(kernel))
    await asyncio.sleep(0.03)
    assert not asking.done()
    engine.fates[kernel.kernel_id] = Fate(137, oom=True)
    assert await asking == Fate(137, oom=True)
    kernel_pool.discard(kernel)


async def test_an_engine_that_does_not_answer_knows_no_fate(
    engine: MemoryEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_pool = await make(size=1)
    kernel = await claim(kernel_pool)

    async def unreachable(_kernel_id: KernelId) -> None:
        raise EngineUnavailable

    monkeypatch.setattr(engine, "fate", unreachable)
    assert await kernel_pool.fate(kernel) is None
    kernel_pool.discard(kernel)


@pytest.mark.timeouts(fate_timeout_s=0.05)
async def test_a_fate_is_waited_for_within_one_bound_however_slow_the_engine_is(
    engine: MemoryEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_pool = await make(size=1)
    kernel = await claim(kernel_pool)

    async def slow(_kernel_id: KernelId) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(engine, "fate", slow)
    async with asyncio.timeout(5):
        assert await kernel_pool.fate(kernel) is None
    kernel_pool.discard(kernel)


@pytest.mark.timeouts(engine_check_pause_s=0.01)
async def test_without_warm_kernels_the_engine_decides_whether_code_can_run(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=0)
    assert kernel_pool.reasons_not_ready() == []
    engine.is_reachable = False
    await until(lambda: len(kernel_pool.reasons_not_ready()) == 1)
    engine.is_reachable = True
    await until(lambda: kernel_pool.reasons_not_ready() == [])


async def test_without_warm_kernels_launches_that_fail_are_tried_again_by_later_claims(
    engine: MemoryEngine, make: Make
) -> None:
    engine.launches_fail = 3
    kernel_pool = await make(size=0)
    with pytest.raises(EngineUnavailable, match="told to fail"):
        await claim(kernel_pool)
    assert kernel_pool.reasons_not_ready() == ["No sandbox can be started: This launch was told to fail."]
    await until(lambda: kernel_pool.reasons_not_ready() == [])
    with pytest.raises(EngineUnavailable, match="told to fail"):
        await claim(kernel_pool)
    await until(lambda: kernel_pool.reasons_not_ready() == [])
    kernel_pool.discard(await claim(kernel_pool))


async def test_warm_kernels_make_room_for_a_language_that_somebody_waits_for(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=2, most=2, kernel_names={NAME: 2, "bash": 0})
    await until(lambda: kernel_pool.warm() == 2)
    kernel = await kernel_pool.claim("bash", 5.0)
    assert kernel.kernel_name == "bash"
    assert kernel_pool.warm() == 1
    kernel_pool.discard(kernel)
    await until(lambda: kernel_pool.warm() == 2)
    assert engine.most_at_once == 2


async def test_a_language_that_does_not_start_leaves_the_others_ready(engine: MemoryEngine, make: Make) -> None:
    kernel_pool = await make(size=1, kernel_names={NAME: 1, "bash": 0})
    await until(lambda: kernel_pool.warm() == 1)
    engine.launches_fail = 2
    with pytest.raises(EngineUnavailable, match="told to fail"):
        await kernel_pool.claim("bash", 5.0)
    assert kernel_pool.reasons_not_ready() == []


async def test_preloads_that_fail_are_logged_once(engine: MemoryEngine, make: Make) -> None:
    engine.comes_up = False
    with structlog.testing.capture_logs() as logs:
        kernel_pool = await make(size=1)
        for count in (1, 2):
            await until(lambda count=count: len(engine.specs) == count)  # type: ignore[misc]
            newest = [*engine.specs][-1]
            engine.dial(newest, failed_preloads={"torch": "ModuleNotFoundError: no torch"})
            engine.say(newest, protocol.STATE, state="idle")
            kernel_pool.discard(await claim(kernel_pool))
    warnings = [entry["reasons"] for entry in logs if entry["event"] == "preloads_failed"]
    assert warnings == [{"torch": "ModuleNotFoundError: no torch"}]


async def test_under_a_storm_of_claims_every_kernel_has_one_user_and_the_bound_holds(
    engine: MemoryEngine, make: Make
) -> None:
    kernel_pool = await make(size=2, most=5, queue=1000)
    in_use: set[KernelId] = set()
    outcomes = {"used": 0, "given back": 0, "too late": 0}

    async def work(number: int) -> None:
        try:
            kernel = await kernel_pool.claim(NAME, 0.001 * (number % 7) if number % 5 == 0 else 10.0)
        except NoKernelInTime:
            outcomes["too late"] += 1
            return
        assert kernel.kernel_id not in in_use
        in_use.add(kernel.kernel_id)
        try:
            await asyncio.sleep(0.0005 * (number % 3))
        finally:
            in_use.remove(kernel.kernel_id)
            if number % 4 == 0:
                kernel_pool.release(kernel)
                outcomes["given back"] += 1
            else:
                kernel_pool.discard(kernel)
                outcomes["used"] += 1

    tasks = [asyncio.ensure_future(work(number)) for number in range(200)]
    for number in range(0, 200, 9):
        await asyncio.sleep(0.001)
        tasks[number].cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
    assert engine.most_at_once <= 5
    assert min(outcomes["used"], outcomes["given back"]) > 10
    assert (kernel_pool.working(), in_queue(kernel_pool)) == (0, 0)
    await until(lambda: kernel_pool.warm() >= 2)


async def test_the_limits_of_the_first_sandbox_of_each_kernelspec_are_compared_and_told(
    engine: MemoryEngine, make: Make
) -> None:
    engine.comes_up = False
    with structlog.testing.capture_logs() as logs:
        kernel_pool = await make(kernel_names={NAME: 1, "ir": 1})
        await until(lambda: len(engine.specs) == 2)
        assert kernel_pool.warnings() == []
        for kernel_id, spec in list(engine.specs.items()):
            missing = ["the CPU limit is not applied"] if spec.kernel_name == "ir" else []
            engine.dial(kernel_id, limits={"missing": missing, "pids": 5, "other": "x"})
            engine.say(kernel_id, protocol.STATE, state="idle", generation=1)
        await until(lambda: kernel_pool.warm() == 2)
        await kernel_pool.claim(NAME)
        await until(lambda: len(engine.specs) == 3)
        newest = [*engine.specs][-1]
        engine.dial(newest, limits={"missing": ["the memory limit is not applied"]})
        engine.say(newest, protocol.STATE, state="idle", generation=1)
        await until(lambda: kernel_pool.warm() == 2)
    assert kernel_pool.warnings() == ["In sandboxes the CPU limit is not applied: see `cellblock doctor`."]
    told = [entry for entry in logs if entry["event"] == "limits_not_applied"]
    assert [(entry["kernel_name"], entry["seen"]) for entry in told] == [("ir", {"pids": 5})]
    assert kernel_pool.reasons_not_ready() == []
