"""A session through the service: the order of its runs, its end, whose it is, and its renewal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from doubles import until
from workbench import Bench, S, held, news, unavailable

from kernel_image import protocol
from sessions.errors import Conflict, NotFound, TooManyRequests
from sessions.model import ANONYMOUS, EventType, RunStatus, Session, SessionId, SessionState, TenantId, Usage
from sessions.settings import SessionLimits

STRANGER = TenantId("stranger")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = await Bench(session_limits=SessionLimits(max_per_tenant=3)).start()
    yield bench
    await bench.stop()


# --- the order of its runs --------------------------------------------------------------------------------------------


async def test_runs_of_a_session_run_one_at_a_time_in_the_order_in_which_they_came(bench: Bench) -> None:
    codes = [f"run {number}" for number in range(5)]
    running = []
    for number, code in enumerate(codes):
        running.append(bench.begin(code, session_id=S))
        await until(lambda number=number: len(bench.store.runs) == number + 1)  # type: ignore[misc]
    assert [stored.status for stored in bench.store.runs.values()] == [RunStatus.RUNNING] + [RunStatus.QUEUED] * 4
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.BUSY
    for code in codes:
        kernel = await bench.sent(code)
        assert kernel.supervisor.outstanding == [kernel.msg_id]
        kernel.end(code)
    assert [(await one).output for one in running] == codes
    assert [news(await one)[0] for one in running] == [True, False, False, False, False]


async def test_a_run_that_comes_while_the_end_of_the_last_one_is_committed_is_recorded_with_its_kernel(
    bench: Bench,
) -> None:
    first = bench.begin("first", session_id=S)
    kernel = await bench.sent("first")
    with unavailable(bench.store, "start_run"):
        with held(bench.store, "finish_run") as finishing:
            kernel.end()
            await until(lambda: finishing.count == 1)
            second = bench.begin("second", session_id=S)
            await until(lambda: len(bench.store.runs) == 2)
            third = await bench.record("third", session_id=S)
            assert [stored.run.kernel_id for stored in bench.store.runs.values()] == [kernel.kernel_id] * 2 + [None]
            assert bench.times_sent("second") == 0
        (await bench.sent("second")).end("2")
        assert (await second).output == "2"
        assert (await first).session_created
    (await bench.sent("third")).end("3")
    assert (await bench.service.result(third)).output == "3"


async def test_sessions_do_not_wait_for_one_another(bench: Bench) -> None:
    one = bench.begin("one", session_id=S)
    other = bench.begin("other", session_id=SessionId("t"))
    kernels = {(await bench.sent("one")).kernel_id, (await bench.sent("other")).kernel_id}
    assert len(kernels) == 2
    (await bench.sent("other")).end()
    await other
    (await bench.sent("one")).end()
    await one


async def test_a_full_queue_turns_a_run_away_at_once_and_records_nothing() -> None:
    bench = await Bench(queue=2).start()
    running = [bench.begin(str(number), session_id=S) for number in range(3)]
    await until(lambda: len(bench.store.runs) == 3)
    with pytest.raises(TooManyRequests, match="queue is full"):
        await bench.begin("4", session_id=S)
    assert len(bench.store.runs) == 3
    for number in range(3):
        (await bench.sent(str(number))).end()
    await asyncio.gather(*running)
    await bench.stop()


async def test_a_run_that_waits_is_cancelled_at_once_and_never_sent(bench: Bench) -> None:
    running = bench.begin("first", session_id=S)
    kernel = await bench.sent("first")
    waiting = await bench.record("second", session_id=S)
    last = bench.begin("third", session_id=S)
    await until(lambda: len(bench.store.runs) == 3)
    await bench.service.cancel(ANONYMOUS, waiting)
    result = await bench.service.result(waiting)
    assert (result.status, result.error) == (RunStatus.CANCELLED, "The run was cancelled.")
    assert not running.done()
    kernel.end()
    (await bench.sent("third")).end()
    await last
    assert bench.times_sent("second") == 0
    await bench.service.cancel(ANONYMOUS, waiting)  # has ended: nothing changes
    assert (await bench.service.result(waiting)).status is RunStatus.CANCELLED


async def test_a_run_that_runs_is_cancelled_by_an_interrupt_and_variables_live_on(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    kernel.print("so far")
    await bench.service.cancel(ANONYMOUS, bench.stored().run.run_id)
    await until(lambda: kernel.interrupts() == [kernel.msg_id])
    kernel.interrupted()
    result = await running
    assert (result.status, result.output, result.session_lost) == (RunStatus.CANCELLED, "so far", False)
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_code_that_ends_well_although_it_was_to_be_cancelled_has_ended_well(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    await bench.service.cancel(ANONYMOUS, bench.stored().run.run_id)
    await until(lambda: bool(kernel.interrupts()))
    kernel.end()
    assert (await running).status is RunStatus.OK


async def test_code_that_does_not_heed_a_cancellation_is_ended_with_its_kernel(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    await bench.service.cancel(ANONYMOUS, bench.stored().run.run_id)
    result = await running
    assert (result.status, result.session_lost) == (RunStatus.CANCELLED, True)
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)
    assert news(await bench.serve("x", session_id=S)) == (True, False)


async def test_an_interrupt_ends_the_code_as_an_error_of_its_own(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    waiting = await bench.record("later", session_id=S)
    with pytest.raises(Conflict):
        await bench.service.interrupt(ANONYMOUS, waiting)
    await bench.service.interrupt_session(ANONYMOUS, S)
    assert kernel.interrupts() == [kernel.msg_id]
    kernel.interrupted()
    result = await running
    assert (result.status, result.exception.name) == (RunStatus.ERROR, "KeyboardInterrupt")  # type: ignore[union-attr]
    (await bench.sent("later")).end()
    await bench.service.result(waiting)
    await bench.service.interrupt_session(ANONYMOUS, S)  # nothing runs: nothing happens
    assert kernel.interrupts() == [kernel.msg_id]
    with pytest.raises(Conflict):
        await bench.service.interrupt(ANONYMOUS, result.run_id)


async def test_an_answer_reaches_the_code_that_waits_for_input(bench: Bench) -> None:
    running = bench.begin("input()", session_id=S, allow_stdin=True)
    kernel = await bench.sent("input()")
    run_id = bench.stored().run.run_id
    with pytest.raises(Conflict, match="does not wait for input"):
        await bench.service.answer_input(ANONYMOUS, run_id, "early")
    kernel.publish("input_request", {"prompt": "? ", "password": False}, channel="stdin")
    await bench.service.answer_input(ANONYMOUS, run_id, "42")
    with pytest.raises(Conflict, match="does not wait for input"):
        await bench.service.answer_input(ANONYMOUS, run_id, "twice")
    channel, parts = protocol.decode_message(kernel.link.binary[-1])
    assert (channel, b'"42"' in parts[3]) == ("stdin", True)
    kernel.end()
    assert (await running).status is RunStatus.OK


# --- its end ----------------------------------------------------------------------------------------------------------


async def test_deleting_a_session_ends_what_runs_and_what_waits_and_its_sandbox(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    waiting = bench.begin("later", session_id=S)
    await until(lambda: len(bench.store.runs) == 2)
    deleting = asyncio.ensure_future(bench.service.delete_session(ANONYMOUS, S))
    await until(lambda: bool(kernel.interrupts()))
    assert bench.service.list_sessions(ANONYMOUS) == []
    kernel.interrupted()
    await deleting
    for result in (await running, await waiting):
        assert result.status is RunStatus.CANCELLED
        assert "The session was deleted" in str(result.error)
    assert (bench.times_sent("later"), bench.store.sessions) == (0, {})
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)
    with pytest.raises(NotFound):
        await bench.service.delete_session(ANONYMOUS, S)


async def test_a_name_is_free_again_once_its_session_is_deleted(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    before = bench.kernel_of().kernel_id
    await bench.service.delete_session(ANONYMOUS, S)
    assert news(await bench.serve("x", session_id=S)) == (True, False)
    assert bench.kernel_of().kernel_id != before


async def test_a_run_that_comes_while_its_session_is_being_deleted_begins_a_new_one(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    deleting = asyncio.ensure_future(bench.service.delete_session(ANONYMOUS, S))
    await until(lambda: bool(kernel.interrupts()))
    fresh = bench.begin("fresh", session_id=S)
    kernel.interrupted()
    await asyncio.gather(deleting, running)
    (await bench.sent("fresh")).end()
    assert news(await fresh) == (True, False)


async def test_what_runs_of_a_session_add_up_to_is_kept_with_it(bench: Bench) -> None:
    for cpu_ms, memory_bytes in ((10, 7), (20, 5)):
        running = bench.begin("x", session_id=S)
        (await bench.sent("x")).end(wall_ms=100, cpu_ms=cpu_ms, memory_peak_bytes=memory_bytes)
        await running
    session = bench.session()
    assert (session.runs, session.usage) == (2, Usage(200.0, 30.0, 7))
    assert bench.service.get_session(ANONYMOUS, S).session == session
    told = await bench.service.session_runs(ANONYMOUS, S, 5)
    assert [summary.number for summary in told] == [1, 2]
    assert [summary.number for summary in await bench.service.session_runs(ANONYMOUS, S, 1)] == [2]
    record, events = await bench.service.get_events(ANONYMOUS, told[0].run_id)
    assert (record.run.code, events[-1].type) == ("x", EventType.END)


# --- whose it is ------------------------------------------------------------------------------------------------------


async def test_another_tenant_finds_nothing_of_it(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    run_id = bench.stored().run.run_id
    service = bench.service
    assert service.list_sessions(STRANGER) == []
    for ask in (
        lambda: service.delete_session(STRANGER, S),
        lambda: service.interrupt_session(STRANGER, S),
        lambda: service.restart_session(STRANGER, S),
        lambda: service.renew_session(STRANGER, S, idle_timeout_s=1.0, max_lifetime_s=None),
        lambda: service.session_files(STRANGER, S),
        lambda: service.get_run(STRANGER, run_id),
        lambda: service.cancel(STRANGER, run_id),
        lambda: service.interrupt(STRANGER, run_id),
        lambda: service.answer_input(STRANGER, run_id, ""),
    ):
        with pytest.raises(NotFound):
            await ask()
    assert kernel.interrupts() == []
    kernel.end()
    await running


async def test_two_tenants_may_use_one_name_for_two_sessions(bench: Bench) -> None:
    await bench.serve("mine", session_id=S)
    await bench.serve("theirs", session_id=S, tenant=STRANGER)
    assert bench.kernel_of().kernel_id != bench.kernel_of(tenant=STRANGER).kernel_id


async def test_a_session_keeps_its_language(bench: Bench) -> None:
    await bench.serve("x", session_id=S)
    with pytest.raises(Conflict, match="runs python"):
        await bench.begin("x", session_id=S, language="other")
    with pytest.raises(Conflict, match="session with this id"):
        await bench.create()


async def test_a_session_takes_runs_of_all_languages_of_its_kernel() -> None:
    bench = await Bench(languages={"javascript": "deno", "typescript": "deno", "python": "python3"}).start()
    await bench.serve("x", session_id=S, language="javascript")
    await bench.serve("y", session_id=S, language="typescript")
    with pytest.raises(Conflict, match="runs javascript"):
        await bench.begin("x", session_id=S)
    await bench.stop()


async def test_a_tenant_has_no_more_sessions_than_allowed(bench: Bench) -> None:
    for number in range(3):
        await bench.create(SessionId(str(number)))
    with pytest.raises(TooManyRequests, match="3 sessions already"):
        await bench.create()
    with pytest.raises(TooManyRequests):
        await bench.begin("x", session_id=S)
    assert bench.store.runs == {}
    await bench.create(tenant=STRANGER)
    await bench.service.delete_session(ANONYMOUS, SessionId("1"))
    await bench.create()
    names = [view.session.session_id for view in bench.service.list_sessions(ANONYMOUS)]
    assert names == ["0", "2", S]


async def test_sessions_that_are_asked_for_at_once_are_counted_all_the_same(bench: Bench) -> None:
    made = await asyncio.gather(*(bench.create(SessionId(str(number))) for number in range(5)), return_exceptions=True)
    assert sum(isinstance(one, TooManyRequests) for one in made) == 2
    assert len(bench.store.sessions) == 3


async def test_a_session_of_another_gateway_is_a_conflict_and_stays_as_it_is(bench: Bench) -> None:
    now = bench.clock.now()
    theirs = Session(ANONYMOUS, S, "h", "python", 100.0, 1000.0, now, now)  # type: ignore[arg-type]
    bench.store.sessions[ANONYMOUS, S] = theirs
    with pytest.raises(Conflict, match="another gateway"):
        await bench.begin("x", session_id=S)
    assert bench.store.sessions == {(ANONYMOUS, S): theirs}
    assert bench.service.list_sessions(ANONYMOUS) == []


# --- renewal ----------------------------------------------------------------------------------------------------------


async def test_times_are_changed_where_given_and_kept_where_not(bench: Bench) -> None:
    await bench.create()
    view = await bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=7.0, max_lifetime_s=None)
    assert (view.session.idle_timeout_s, view.session.max_lifetime_s) == (7.0, 1000.0)
    view = await bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=None, max_lifetime_s=70.0)
    assert (view.session.idle_timeout_s, view.session.max_lifetime_s) == (7.0, 70.0)
    assert bench.session() == view.session
    await bench.serve("x", session_id=S)
    assert bench.session().idle_timeout_s == 7.0


async def test_a_renewal_while_the_kernel_is_being_replaced_is_not_undone_by_that(bench: Bench) -> None:
    await bench.create()
    bench.engine.end_sandbox(bench.session().kernel_id or "")  # type: ignore[arg-type]
    await until(lambda: bench.session().kernel_id is None)
    update_session, meanwhile = bench.store.update_session, asyncio.Event()

    async def slow(session: Session) -> None:
        if session.kernel_id is not None and not meanwhile.is_set():
            meanwhile.set()
            await asyncio.sleep(0.02)
        await update_session(replace(session, idle_timeout_s=bench.session().idle_timeout_s))

    bench.store.update_session = slow  # type: ignore[method-assign]
    running = bench.begin("x", session_id=S)
    await meanwhile.wait()
    bench.store.update_session = update_session  # type: ignore[method-assign]
    await bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=7.0, max_lifetime_s=None)
    (await bench.sent("x")).end()
    await running
    assert bench.service.get_session(ANONYMOUS, S).session.idle_timeout_s == 7.0
