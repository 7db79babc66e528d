"""Sessions after a gateway that is gone: kernels and variables live on, and what was lost is said once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from doubles import ManualClock, until
from workbench import Bench, Benches, S, answers_lost, come_back, crash, ended, held, late, unavailable

from kernel_image import protocol
from sessions.errors import StoreUnavailable
from sessions.model import ANONYMOUS, RunStatus, SessionId, SessionNews, SessionState
from sessions.settings import Timeouts


async def test_the_variables_of_a_session_live_on(benches: Benches) -> None:
    await benches[0].serve("x = 1", session_id=S)
    kernel = benches[0].kernel_of()
    bench = await crash(benches)
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.STARTING
    come_back(bench, kernel)
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.IDLE
    result = await bench.serve("x", "1", session_id=S)
    assert (result.output, result.session_created, result.session_lost) == ("1", False, False)
    assert bench.kernel_of().kernel_id == kernel.kernel_id
    assert bench.session().runs == 2


async def test_a_session_whose_sandbox_is_gone_says_so_once(benches: Benches) -> None:
    await benches[0].serve("x = 1", session_id=S)
    del benches[0].engine.sandboxes[benches[0].kernel_of().kernel_id]
    bench = await crash(benches)
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.DEAD
    await until(lambda: bench.session().news is SessionNews.LOST)
    bench = await crash(benches)  # and this gateway has never said it
    result = await bench.serve("x", session_id=S)
    assert (result.session_created, result.session_lost) == (True, True)
    result = await bench.serve("x", session_id=S)
    assert (result.session_created, result.session_lost) == (False, False)


async def test_a_process_that_died_while_no_gateway_was_there_is_told_by_the_next_run(benches: Benches) -> None:
    await benches[0].serve("x = 1", session_id=S)
    kernel = benches[0].kernel_of()
    bench = await crash(benches)
    kernel.die_idle()
    come_back(bench, kernel)
    result = await bench.serve("x", session_id=S)
    assert (result.session_created, result.session_lost) == (True, True)
    result = await bench.serve("x", session_id=S)
    assert (result.session_created, result.session_lost) == (False, False)


async def test_a_run_of_which_nothing_was_committed_still_says_that_the_session_is_new(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    bench = await crash(benches)
    assert bench.stored(run_id).progress is None
    come_back(bench, kernel)
    kernel.end("1")
    result = await ended(bench, run_id)
    assert (result.session_created, result.session_lost) == (True, False)
    assert bench.stored(run_id).events[1].fields["session_created"] is True
    result = await bench.serve("x", session_id=S)
    assert (result.session_created, result.session_lost) == (False, False)


async def test_a_run_that_came_while_the_end_of_the_last_one_was_committed_is_sent_once_by_the_next_gateway(
    benches: Benches,
) -> None:
    first = await benches[0].record("first", session_id=S)
    kernel = await benches[0].sent("first")
    with held(benches[0].store, "finish_run") as finishing:
        kernel.end("1")
        await until(lambda: finishing.count == 1)
        second = await benches[0].record("second", session_id=S)
        bench = await crash(benches)
    come_back(bench, kernel)
    result = await ended(bench, first)
    assert (result.output, result.session_created) == ("1", True)
    (await bench.sent("second")).end("2")
    result = await ended(bench, second)
    assert (result.output, result.session_created, result.session_lost) == ("2", False, False)
    assert (bench.times_sent("first"), bench.times_sent("second")) == (1, 1)


@pytest.mark.timeouts(resumed_min_s=0.05)
async def test_the_time_limit_after_a_crash_does_not_count_what_the_commit_before_the_run_took(
    timeouts: Timeouts,
) -> None:
    clock = ManualClock()
    benches = [await Bench(timeouts=timeouts, clock=clock).start()]
    benches[0].begin("first", session_id=S)
    kernel = await benches[0].sent("first")
    with held(benches[0].store, "finish_run") as finishing:
        kernel.end()
        await until(lambda: finishing.count == 1)
        second = await benches[0].record("second", session_id=S, timeout_s=10.0)
        clock.at_s += 60
    kernel = await benches[0].sent("second")
    assert benches[0].stored(second).run.started_at == clock.now()
    bench = await crash(benches)
    come_back(bench, kernel)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await until(lambda: bool(kernel.interrupts()))
    kernel.end("2")
    assert (await ended(bench, second)).output == "2"
    await bench.stop()


async def test_a_run_of_which_something_was_committed_says_what_it_would_have_said(benches: Benches) -> None:
    await benches[0].serve("x = 1", session_id=S)
    benches[0].kernel_of().die_idle()
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    kernel.print("1")
    await until(lambda: benches[0].text(run_id) == "1")
    bench = await crash(benches)
    come_back(bench, kernel)
    kernel.end()
    result = await ended(bench, run_id)
    assert (result.session_created, result.session_lost) == (True, True)
    result = await bench.serve("x", session_id=S)
    assert (result.session_created, result.session_lost) == (False, False)


async def test_a_session_whose_time_ran_out_meanwhile_is_ended() -> None:
    clock = ManualClock()
    first = await Bench(clock=clock).start()
    await first.create(idle_timeout_s=10.0)
    await first.create(SessionId("t"), idle_timeout_s=100.0)
    kernel_id = first.session().kernel_id
    first.crash()
    clock.at_s += 50.0
    bench = await first.successor()
    await until(lambda: [*bench.store.sessions] == [(ANONYMOUS, "t")])
    await until(lambda: kernel_id not in bench.engine.sandboxes)
    await bench.stop()


async def test_a_session_of_a_language_that_is_configured_no_more_is_not_taken_over(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    bench = await crash(benches, languages={"other": "another"})
    assert bench.service.list_sessions(ANONYMOUS) == []
    assert (await ended(bench, run_id)).status is RunStatus.LOST
    assert kernel.kernel_id not in bench.engine.sandboxes


async def test_what_runs_in_a_session_that_was_deleted_ends_by_itself_and_what_waited_is_cancelled(
    benches: Benches,
) -> None:
    first = await benches[0].record("first", session_id=S)
    second = await benches[0].record("second", session_id=S)
    kernel = await benches[0].sent("first")
    await benches[0].store.remove_session(benches[0].session())  # deleted, and then the gateway was gone
    bench = await crash(benches)
    come_back(bench, kernel)
    cancelled = await ended(bench, second)
    assert (cancelled.status, bench.times_sent("second")) == (RunStatus.CANCELLED, 0)
    kernel.end("1")
    assert (await ended(bench, first)).output == "1"
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


async def test_a_run_of_a_deleted_session_does_not_take_the_kernel_from_the_one_before(
    benches: Benches, timeouts: Timeouts
) -> None:
    first = await benches[0].record("first", session_id=S)
    kernel = await benches[0].sent("first")
    second = await benches[0].record("second", session_id=S)
    stored = benches[0].stored(second)
    # As if it had come while the end of the first was committed, of which the supervisor has yet to say all again.
    stored.run = replace(stored.run, kernel_id=kernel.kernel_id)
    await benches[0].store.remove_session(benches[0].session())
    bench = await crash(benches)
    come_back(bench, kernel)
    cancelled = await ended(bench, second)
    assert (cancelled.status, bench.times_sent("second")) == (RunStatus.CANCELLED, 0)
    await asyncio.sleep(10 * timeouts.removal_delay_s)
    kernel.end("1")
    assert (await ended(bench, first)).output == "1"
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


async def test_a_run_of_a_deleted_session_that_was_never_sent_is_sent_to_no_other_kernel(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S, variables={"v": 1})
    kernel = await benches[0].sent()  # it is being given the variables
    await benches[0].store.remove_session(benches[0].session())
    bench = await crash(benches)
    come_back(bench, kernel)
    assert (await ended(bench, run_id)).status is RunStatus.CANCELLED
    others = [supervisor for kernel_id, supervisor in bench.engine.supervisors.items() if kernel_id != kernel.kernel_id]
    assert [supervisor.taken for supervisor in others] == [[]] * len(others)


async def test_a_restart_before_the_supervisor_has_dialled_waits_for_it_and_really_restarts(benches: Benches) -> None:
    await benches[0].serve("x = 1", session_id=S)
    kernel = benches[0].kernel_of()
    bench = await crash(benches)
    restarting = asyncio.ensure_future(bench.service.restart_session(ANONYMOUS, S))
    await asyncio.sleep(0.02)
    come_back(bench, kernel)
    await until(lambda: bool(kernel.link.sent(protocol.RESTART)))
    await asyncio.sleep(0.02)
    assert not restarting.done()
    kernel.died("restart", msg_id=None)
    kernel.next_process()
    assert (await restarting).state is SessionState.IDLE
    assert bench.session().generation == kernel.supervisor.generation == 2
    result = await bench.serve("x", session_id=S)
    assert (result.session_created, result.session_lost) == (False, False)


async def test_what_the_gateway_before_writes_late_takes_no_kernel_away(benches: Benches) -> None:
    first = benches[0]
    await first.serve("x = 1", session_id=S)
    with late(first.store, "update_session") as writes:
        first.engine.end_sandbox(first.kernel_of().kernel_id)
        for count in (2, 3):
            with pytest.raises(StoreUnavailable):
                await first.begin("y", session_id=S)
            await until(lambda count=count: len(writes.calls) == count)  # type: ignore[misc]
        bench = await crash(benches)
    assert (await bench.serve("y", session_id=S)).session_lost
    kernel = bench.kernel_of()
    await writes.arrives()
    assert bench.session().kernel_id == kernel.kernel_id
    bench = await crash(benches)
    come_back(bench, kernel)
    assert not (await bench.serve("y", session_id=S)).session_lost


async def test_a_run_that_may_have_been_sent_is_not_cancelled_while_its_code_goes_on(benches: Benches) -> None:
    first = benches[0]
    with unavailable(first.store, "withdraw_run"):
        with answers_lost(first.store, "add_run"), pytest.raises(StoreUnavailable):
            await first.begin("ghost", session_id=S)  # stays on record before the one that is sent
        run_id = await first.record("work", session_id=S)
        kernel = await first.sent("work")
        bench = await crash(benches)
    await bench.service.cancel(ANONYMOUS, run_id)
    await asyncio.sleep(0.02)
    assert not bench.has_ended(run_id)
    come_back(bench, kernel)
    ghost = await bench.sent("ghost")
    kernel.end("1")
    ghost.end()
    result = await ended(bench, run_id)
    assert (result.status, result.output) == (RunStatus.OK, "1")
    assert bench.times_sent("work") == 1
