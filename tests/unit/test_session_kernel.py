"""A session's kernel is nobody else's and none is left over, whatever is deleted, lost, or written late meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from doubles import until
from workbench import HURRIED, Bench, Benches, S, answers_lost, come_back, crash, ended, held, late, unavailable

from kernel_image import protocol
from sessions.errors import NotFound, StoreUnavailable, Unavailable
from sessions.model import ANONYMOUS, Result, RunStatus, SessionState, TenantId
from sessions.ports import Fate
from sessions.settings import PoolSettings


@pytest.fixture
async def cold() -> AsyncIterator[Bench]:
    """A gateway that starts a kernel only when somebody asks for one."""
    bench = await Bench(pool=PoolSettings(0, 4), timeouts=replace(HURRIED, refill_pause_s=0.0)).start()
    yield bench
    await bench.stop()


def state(bench: Bench) -> SessionState:
    return bench.service.get_session(ANONYMOUS, S).state


def news(result: Result) -> tuple[bool, bool]:
    return result.session_created, result.session_lost


async def test_while_a_session_is_being_made_it_is_starting(cold: Bench) -> None:
    cold.engine.comes_up = False
    creating = asyncio.ensure_future(cold.create())
    await until(lambda: len(cold.engine.sandboxes) == 1)
    assert state(cold) is SessionState.STARTING
    cold.engine.come_up(next(iter(cold.engine.sandboxes)))
    assert (await creating).state is SessionState.IDLE


# --- deleted meanwhile ------------------------------------------------------------------------------------------------


async def lose_kernel(bench: Bench) -> None:
    """The session's sandbox ends while it is idle."""
    bench.engine.end_sandbox(bench.session().kernel_id or "")  # type: ignore[arg-type]
    await until(lambda: bench.session().kernel_id is None)
    assert state(bench) is SessionState.DEAD


async def test_a_session_that_is_deleted_while_a_kernel_is_started_for_it_takes_none(cold: Bench) -> None:
    await cold.create()
    await lose_kernel(cold)
    cold.engine.comes_up = False
    looking = asyncio.ensure_future(cold.service.session_files(ANONYMOUS, S))
    await until(lambda: len(cold.engine.supervisors) == 2)
    assert state(cold) is SessionState.STARTING
    await cold.service.delete_session(ANONYMOUS, S)
    cold.engine.come_up([*cold.engine.supervisors][-1])
    with pytest.raises(NotFound):
        await looking
    await until(lambda: cold.engine.sandboxes == {})


async def test_a_session_that_is_deleted_while_its_kernel_is_being_recorded_takes_none(cold: Bench) -> None:
    await cold.create()
    await lose_kernel(cold)
    with held(cold.store, "update_session") as writing:
        looking = asyncio.ensure_future(cold.service.session_files(ANONYMOUS, S))
        await until(lambda: writing.count == 1)
        await cold.service.delete_session(ANONYMOUS, S)
    with pytest.raises(NotFound):
        await looking
    await until(lambda: cold.engine.sandboxes == {})


async def test_a_restart_while_a_kernel_starts_speaks_of_no_run() -> None:
    timeouts = replace(HURRIED, refill_pause_s=0.0, restart_timeout_s=0.05)
    cold = await Bench(pool=PoolSettings(0, 4), timeouts=timeouts).start()
    await cold.create()
    await lose_kernel(cold)
    cold.engine.comes_up = False
    looking = asyncio.ensure_future(cold.service.session_files(ANONYMOUS, S))
    await until(lambda: len(cold.engine.supervisors) == 2)
    with pytest.raises(Unavailable, match="kernel is being started already"):
        await cold.service.restart_session(ANONYMOUS, S)
    cold.engine.come_up([*cold.engine.supervisors][-1])
    await looking
    await cold.stop()


async def test_a_session_that_is_deleted_while_it_restarts_takes_no_other_kernel(cold: Bench) -> None:
    await cold.create()
    (kernel_id,) = cold.engine.sandboxes
    link = cold.engine.link(kernel_id)
    restarting = asyncio.ensure_future(cold.service.restart_session(ANONYMOUS, S))
    await until(lambda: bool(link.sent(protocol.RESTART)))
    await cold.service.delete_session(ANONYMOUS, S)
    with pytest.raises(NotFound):
        await restarting
    await until(lambda: cold.engine.sandboxes == {})


# --- written late, or nobody knows whether ----------------------------------------------------------------------------


async def test_a_loss_that_is_written_late_takes_no_kernel_away(benches: Benches) -> None:
    (bench,) = benches
    await bench.serve("x = 1", session_id=S)
    with late(bench.store, "update_session") as loss:
        bench.engine.end_sandbox(bench.kernel_of().kernel_id)
        await until(lambda: len(loss.calls) == 1)
    run_id = await bench.record("work", session_id=S)
    kernel = await bench.sent("work")
    kernel.print("one ")
    await until(lambda: bench.text(run_id) == "one ")
    await loss.arrives()
    assert bench.session().kernel_id == kernel.kernel_id
    bench = await crash(benches)
    come_back(bench, kernel)
    kernel.end("two")
    result = await ended(bench, run_id)
    assert (result.status, result.output) == (RunStatus.OK, "one two")
    assert news(await bench.serve("x", session_id=S)) == (False, False)
    assert bench.kernel_of().kernel_id == kernel.kernel_id


async def test_a_loss_and_the_next_kernel_are_written_one_after_the_other(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    await until(lambda: bench.service.readiness().warm == 1)
    old = bench.kernel_of()
    bench.engine.disconnect(old.kernel_id)
    recorder = asyncio.ensure_future(bench.record("work", session_id=S))  # waits for it to come back
    await asyncio.sleep(0.02)
    with held(bench.store, "update_session") as writing:
        bench.engine.fates[old.kernel_id] = Fate(137, oom=False)
        await until(lambda: writing.count == 1)
        await asyncio.sleep(0.02)
        assert (writing.count, recorder.done()) == (1, False)
    run_id = await recorder
    kernel = await bench.sent("work")
    assert kernel.kernel_id == bench.session().kernel_id == bench.stored(run_id).run.kernel_id
    kernel.end()


async def test_a_kernel_that_may_be_on_record_as_a_sessions_is_given_to_nobody_else(benches: Benches) -> None:
    (bench,), alice = benches, TenantId("alice")
    with answers_lost(bench.store, "update_session"), unavailable(bench.store, "remove_session"):  # noqa: SIM117
        with pytest.raises(StoreUnavailable):
            await bench.begin("x", session_id=S, tenant=alice)
    hers = bench.store.sessions[alice, S].kernel_id
    run_id = await bench.record("y", tenant=TenantId("bob"))
    kernel = await bench.sent("y")
    assert hers not in (None, kernel.kernel_id)
    bench = await crash(benches)
    come_back(bench, kernel)
    kernel.end("1")
    assert (await ended(bench, run_id)).output == "1"
    assert bench.service.get_session(alice, S).state is SessionState.DEAD


# --- renewed while a run ends -----------------------------------------------------------------------------------------


async def test_a_renewal_that_is_stored_after_the_end_of_a_run_takes_nothing_of_it_back(benches: Benches) -> None:
    (bench,) = benches
    run_id = await bench.record("x = 1", session_id=S)
    kernel = await bench.sent("x = 1")
    with held(bench.store, "renew_session") as renewing:
        renewal = asyncio.ensure_future(
            bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=7.0, max_lifetime_s=None)
        )
        await until(lambda: renewing.count == 1)
        kernel.end()
        assert (await bench.service.result(run_id)).session_created
    view = await renewal
    assert view.session == bench.session()
    assert (view.session.idle_timeout_s, view.session.runs) == (7.0, 1)
    bench = await crash(benches)
    come_back(bench, kernel)
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_a_renewal_while_the_end_of_a_run_is_being_stored_is_kept(bench: Bench) -> None:
    run_id = await bench.record("x = 1", session_id=S)
    kernel = await bench.sent("x = 1")
    with held(bench.store, "finish_run") as finishing:
        kernel.end()
        await until(lambda: finishing.count == 1)
        await bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=7.0, max_lifetime_s=None)
    await bench.service.result(run_id)
    await until(lambda: bench.service.get_session(ANONYMOUS, S).state is SessionState.IDLE)
    view = bench.service.get_session(ANONYMOUS, S)
    assert view.session == bench.session()
    assert (view.session.idle_timeout_s, view.session.runs) == (7.0, 1)


async def test_a_renewal_is_not_undone_by_one_that_changes_something_else(bench: Bench) -> None:
    await bench.create()
    with held(bench.store, "renew_session") as renewing:
        renewals = [
            asyncio.ensure_future(bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=7.0, max_lifetime_s=None)),
            asyncio.ensure_future(bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=None, max_lifetime_s=70.0)),
            asyncio.ensure_future(bench.service.session_files(ANONYMOUS, S)),
        ]
        await until(lambda: renewing.count >= 1)
        await asyncio.sleep(0.02)
    await asyncio.gather(*renewals)
    session = bench.service.get_session(ANONYMOUS, S).session
    assert session == bench.session()
    assert (session.idle_timeout_s, session.max_lifetime_s) == (7.0, 70.0)


# --- no kernel for a run ----------------------------------------------------------------------------------------------


@pytest.mark.timeouts(queued_patience_s=0.001)
async def test_an_outage_in_which_a_session_needs_a_kernel_ends_no_run_that_waits(bench: Bench) -> None:
    first = await bench.record("first", session_id=S)
    kernel = await bench.sent("first")
    second = await bench.record("second", session_id=S)
    with unavailable(bench.store, "update_session"):
        bench.engine.end_sandbox(kernel.kernel_id)
        assert (await bench.service.result(first)).status is RunStatus.KERNEL_DIED
        await asyncio.sleep(0.05)
        assert not bench.has_ended(second)
    (await bench.sent("second")).end("2")
    assert (await ended(bench, second)).output == "2"


async def test_a_loss_that_a_run_was_to_tell_which_was_not_run_is_told_once_by_the_next(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    running = bench.begin("y", session_id=S, variables={"v": 1})
    for _ in range(3):
        kernel = await bench.sent()
        kernel.died("oom", signal=9)
        kernel.next_process()
    result = await running
    assert (result.status, bench.times_sent("y")) == (RunStatus.KERNEL_DIED, 0)
    assert "was not run" in str(result.error)
    told = [news(result), *[news(await bench.serve("x", session_id=S)) for _ in range(2)]]
    assert told == [(False, False), (True, True), (False, False)]


# --- what it uses between runs ----------------------------------------------------------------------------------------


@pytest.mark.timeouts(renewal_pause_s=0.05)
async def test_what_is_used_between_runs_is_the_sessions_and_is_recorded(bench: Bench) -> None:
    await bench.serve("x", session_id=S)
    kernel = bench.kernel_of()
    before = bench.session()
    bench.engine.say(kernel.kernel_id, protocol.USAGE, msg_id=None, usage=used(300))
    bench.engine.say(kernel.kernel_id, protocol.USAGE, msg_id=None, usage={"cpu_ms": "much"})
    bench.engine.say(kernel.kernel_id, protocol.USAGE, msg_id=None, usage=used(200))
    told = bench.service.get_session(ANONYMOUS, S).session
    assert told.usage == replace(before.usage, cpu_ms=before.usage.cpu_ms + 500, memory_peak_bytes=9)
    assert told.last_used_at == before.last_used_at
    await until(lambda: bench.session().usage == told.usage)
    assert bench.session().last_used_at == before.last_used_at


async def test_what_is_used_between_runs_is_no_runs_and_is_kept_when_the_next_one_ends(bench: Bench) -> None:
    await bench.serve("x", session_id=S)
    kernel = bench.kernel_of()
    bench.engine.say(kernel.kernel_id, protocol.USAGE, msg_id=None, usage=used(300))
    with held(bench.store, "finish_run") as ending:
        running = bench.begin("y", session_id=S)
        (await bench.sent("y")).end(**used(10))
        await until(lambda: ending.count == 1)
        bench.engine.say(kernel.kernel_id, protocol.USAGE, msg_id=None, usage=used(200))
    result = await running
    assert result.usage is not None
    assert result.usage.cpu_ms == 10
    first = bench.service.get_session(ANONYMOUS, S).session.usage.cpu_ms
    running = bench.begin("z", session_id=S)
    (await bench.sent("z")).end(**used(1))
    await running
    assert bench.session().usage.cpu_ms == first + 1
    assert first >= 510
    bench.engine.say(kernel.kernel_id, protocol.USAGE, msg_id=None, usage=used(70))
    await bench.service.close()
    assert bench.session().usage.cpu_ms == first + 71


def used(cpu_ms: float) -> dict[str, float]:
    return {"wall_ms": 0, "cpu_ms": cpu_ms, "memory_peak_bytes": 9}
