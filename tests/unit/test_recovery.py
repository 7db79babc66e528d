"""A gateway that is gone from one moment to the next, and the one that takes over: nothing lost, nothing run twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from doubles import until
from workbench import Bench, Benches, S, come_back, crash, ended, held, unavailable

from kernel_image import protocol
from sessions.errors import EngineUnavailable, StoreUnavailable
from sessions.model import (
    ANONYMOUS,
    EventType,
    GatewayId,
    KernelId,
    Run,
    RunId,
    RunStatus,
    Session,
    SessionId,
    SessionState,
)


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_run_goes_on_and_its_whole_output_is_there_once(benches: Benches, session_id: SessionId | None) -> None:
    run_id = await benches[0].record("work", session_id=session_id)
    kernel = await benches[0].sent("work")
    kernel.print("one ")
    await until(lambda: benches[0].text(run_id) == "one ")
    kernel.print("two ")  # taken, and not committed
    bench = await crash(benches)
    kernel.print("three ")  # said to nobody
    assert (await bench.service.get_run(ANONYMOUS, run_id)).result.output == "one "  # type: ignore[union-attr]
    come_back(bench, kernel)
    kernel.print("four ")
    kernel.file("made.txt", b"x")
    kernel.end()
    result = await ended(bench, run_id)
    assert (result.status, result.output) == (RunStatus.OK, "one two three four ")
    assert list(result.files) == ["made.txt"]
    assert (result.session_id, result.session_lost) == (session_id, False)
    assert bench.times_sent("work") == 1


@pytest.mark.parametrize("committed", [0, 1, 2, 3])
async def test_wherever_it_stopped_in_the_middle_of_a_file_the_file_is_whole(benches: Benches, committed: int) -> None:
    run_id = await benches[0].record("work")
    kernel = await benches[0].sent("work")

    def first() -> None:
        kernel.print("made ")
        kernel.reply()

    steps = [first, lambda: kernel.piece("f", 6, 0, b"ab"), lambda: kernel.piece("f", 6, 2, b"cd")]
    for step in steps[:committed]:
        step()
    progress = benches[0].stored(run_id)
    taken_seq = kernel.supervisor.last_seq
    if committed:
        await until(lambda: progress.progress is not None and progress.progress.taken_seq == taken_seq)
    for step in steps[committed:]:
        step()
    bench = await crash(benches)
    kernel.piece("f", 6, 4, b"ef")
    kernel.idle()
    kernel.done()
    come_back(bench, kernel)
    assert (await ended(bench, run_id)).output == "made "
    assert [artifact.data for artifact in bench.stored(run_id).artifacts.values()] == [b"abcdef"]


async def test_a_run_that_ended_while_no_gateway_was_there_is_not_sent_again(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    bench = await crash(benches)
    kernel.end("all of it")
    assert kernel.supervisor.finished == [kernel.msg_id]
    come_back(bench, kernel)
    result = await ended(bench, run_id)
    assert (result.status, result.output, result.session_created) == (RunStatus.OK, "all of it", True)
    assert bench.times_sent("work") == 1


async def test_a_supervisor_that_tells_the_end_and_goes_at_once_has_told_it(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    bench = await crash(benches)
    kernel.end("all of it")
    come_back(bench, kernel)
    bench.engine.end_sandbox(kernel.kernel_id)
    result = await ended(bench, run_id)
    assert (result.status, result.output) == (RunStatus.OK, "all of it")


async def test_an_end_that_was_taken_and_not_committed_is_told_again(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    benches[0].store.is_reachable = False
    kernel.end("all of it")
    await asyncio.sleep(0.03)
    benches[0].crash()
    benches[0].store.is_reachable = True
    benches.append(bench := await benches[0].successor())
    come_back(bench, kernel)
    assert (await ended(bench, run_id)).output == "all of it"
    assert bench.session().runs == 1


async def test_a_run_that_dies_with_its_kernel_meanwhile_says_how(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    bench = await crash(benches)
    kernel.print("last words")
    kernel.died("signal", signal=11)
    kernel.next_process()
    come_back(bench, kernel)
    result = await ended(bench, run_id)
    assert (result.status, result.output, result.session_lost) == (RunStatus.KERNEL_DIED, "last words", True)
    after = await bench.serve("x", session_id=S)
    assert (after.session_created, after.session_lost) == (True, False)


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_run_that_is_recorded_and_was_never_sent_is_sent_once(
    benches: Benches, session_id: SessionId | None
) -> None:
    first = benches[0]
    if session_id is not None:
        await first.create()
    kernel_id = first.session().kernel_id if session_id is not None else next(iter(first.engine.sandboxes))
    link = first.engine.link(kernel_id)  # type: ignore[arg-type]
    link.close("a link that swallows what is sent, and nobody has noticed yet")
    run_id = await first.record("work", session_id=session_id)
    await until(lambda: first.stored(run_id).status is RunStatus.RUNNING)
    await asyncio.sleep(0.02)
    bench = await crash(benches)
    assert bench.times_sent("work") == 0
    bench.engine.dial(kernel_id)  # type: ignore[arg-type]
    (await bench.sent("work")).end("1")
    assert (await ended(bench, run_id)).output == "1"
    assert bench.times_sent("work") == 1


async def test_a_run_that_was_never_sent_goes_to_the_kernel_that_was_claimed_for_it(benches: Benches) -> None:
    """Another would have to be claimed first, which may take long or fail, and a crash meanwhile would lose the run."""
    first = benches[0]
    (kernel_id,) = first.engine.sandboxes
    first.engine.link(kernel_id).close("a link that swallows what is sent, and nobody has noticed yet")
    run_id = await first.record("work")
    await asyncio.sleep(0.02)
    bench = await crash(benches)
    bench.engine.dial(kernel_id)
    kernel = await bench.sent("work")
    assert kernel.kernel_id == kernel_id
    kernel.end("1")
    assert (await ended(bench, run_id)).output == "1"


async def test_a_kernel_that_has_not_taken_a_run_is_kept_until_another_is_on_record(benches: Benches) -> None:
    """Until then it is the one that a later gateway asks, and without it the run would have to count as lost."""
    first = benches[0]
    first.engine.comes_up = False
    run_id = await first.record("work")
    kernel = await first.sent("work")
    kernel.reject()
    await asyncio.sleep(0.05)
    assert kernel.kernel_id in first.engine.sandboxes
    first.engine.comes_up = True
    bench = await crash(benches)
    come_back(bench, kernel)
    (await bench.sent("work")).end("1")
    assert (await ended(bench, run_id)).output == "1"
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


async def test_the_runs_that_waited_run_in_order_once(benches: Benches) -> None:
    codes = [f"run {number}" for number in range(4)]
    run_ids = [await benches[0].record(code, session_id=S) for code in codes]
    kernel = await benches[0].sent("run 0")
    bench = await crash(benches)
    come_back(bench, kernel)
    for code in codes:
        await bench.sent(code)
        kernel.msg_id = kernel.supervisor.taken[-1]
        assert kernel.supervisor.outstanding == [kernel.msg_id]
        kernel.end(code)
    results = [await ended(bench, run_id) for run_id in run_ids]
    assert [result.output for result in results] == codes
    assert [result.session_created for result in results] == [True, False, False, False]
    assert [result.session_lost for result in results] == [False] * 4
    assert [kernel.supervisor.codes[msg_id] for msg_id in kernel.supervisor.taken] == codes


async def test_runs_that_waited_run_although_their_sandbox_is_gone(benches: Benches) -> None:
    first = await benches[0].record("first", session_id=S)
    second = await benches[0].record("second", session_id=S)
    kernel = await benches[0].sent("first")
    kernel.print("so far")
    await until(lambda: benches[0].text(first) == "so far")
    del benches[0].engine.sandboxes[kernel.kernel_id]
    bench = await crash(benches)
    lost = await ended(bench, first)
    assert (lost.status, lost.output, lost.session_lost) == (RunStatus.LOST, "so far", True)
    assert "how far it came is not known" in str(lost.error)
    (await bench.sent("second")).end("2")
    result = await ended(bench, second)
    assert (result.output, result.session_created, result.session_lost) == ("2", True, False)
    assert (bench.times_sent("first"), bench.times_sent("second")) == (1, 1)


async def test_a_run_outside_of_a_session_whose_sandbox_is_gone_is_lost_and_not_run_again(benches: Benches) -> None:
    run_id = await benches[0].record("work")
    kernel = await benches[0].sent("work")
    del benches[0].engine.sandboxes[kernel.kernel_id]
    bench = await crash(benches)
    assert (await ended(bench, run_id)).status is RunStatus.LOST
    assert bench.times_sent("work") == 1


@pytest.mark.timeouts(link_timeout_s=0.05)
async def test_a_supervisor_that_does_not_come_back_loses_its_run(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    bench = await crash(benches)
    assert (await ended(bench, run_id)).status is RunStatus.LOST
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.DEAD


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_supervisor_that_has_started_anew_loses_its_run_and_is_not_sent_it_again(
    benches: Benches, session_id: SessionId | None
) -> None:
    run_id = await benches[0].record("work", session_id=session_id)
    kernel = await benches[0].sent("work")
    kernel.print("done")
    await until(lambda: benches[0].text(run_id) == "done")
    bench = await crash(benches)
    kernel.supervisor.start_anew()
    come_back(bench, kernel)
    result = await ended(bench, run_id)
    assert (result.status, result.output) == (RunStatus.LOST, "done")
    assert bench.times_sent("work") == 1


async def test_runs_can_be_followed_and_cancelled_across_a_crash(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    kernel.print("one ")
    await until(lambda: benches[0].text(run_id) == "one ")
    bench = await crash(benches)
    come_back(bench, kernel)
    follower = bench.service.follow(run_id, 2)
    kernel.print("two ")
    events = await anext(follower)
    assert [(event.seq, event.fields) for event in events] == [(3, {"text": "two "})]
    await bench.service.cancel(ANONYMOUS, run_id)
    await until(lambda: kernel.interrupts() == [kernel.msg_id])
    kernel.interrupted()
    assert (await ended(bench, run_id)).status is RunStatus.CANCELLED
    rest = [event async for events in follower for event in events]
    assert rest[-1].type is EventType.END


@pytest.mark.timeouts(resumed_min_s=0.05)
async def test_a_run_past_its_time_limit_is_stopped_by_the_next_gateway(benches: Benches) -> None:
    run_id = await benches[0].record("work", timeout_s=0.2)
    kernel = await benches[0].sent("work")
    bench = await crash(benches)
    await asyncio.sleep(0.2)
    come_back(bench, kernel)
    await until(lambda: kernel.interrupts() == [kernel.msg_id])
    kernel.interrupted()
    assert (await ended(bench, run_id)).status is RunStatus.TIMEOUT


async def test_two_crashes_are_no_worse_than_one(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    for number in range(4):
        kernel.print(f"{number} ")
        if number % 2:
            await until(lambda number=number: f"{number}" in benches[-1].text(run_id))  # type: ignore[misc]
        come_back(await crash(benches), kernel)
    kernel.end()
    result = await ended(benches[-1], run_id)
    assert (result.output, result.session_created) == ("0 1 2 3 ", True)


# --- a planned stop ---------------------------------------------------------------------------------------------------


async def test_what_a_stopping_gateway_leaves_the_next_one_goes_on_with(benches: Benches) -> None:
    alone = await benches[0].record("alone")
    running = await benches[0].record("running", session_id=S)
    waiting = await benches[0].record("waiting", session_id=S)
    kernels = [await benches[0].sent("alone"), await benches[0].sent("running")]
    for kernel in kernels:
        kernel.print("before ")
    await benches[0].service.close()
    assert {*benches[0].engine.sandboxes} == {kernel.kernel_id for kernel in kernels}
    for kernel in kernels:
        kernel.print("after")
    benches.append(bench := await benches[0].successor())
    come_back(bench, *kernels)
    for kernel in kernels:
        kernel.end()
    (await bench.sent("waiting")).end("2")
    assert [(await ended(bench, run_id)).output for run_id in (alone, running, waiting)] == [
        "before after",
        "before after",
        "2",
    ]
    assert [bench.times_sent(code) for code in ("alone", "running", "waiting")] == [1, 1, 1]


# --- what is whose ----------------------------------------------------------------------------------------------------


async def test_what_another_gateway_has_on_the_same_database_is_left_alone(benches: Benches) -> None:
    first, now = benches[0], benches[0].clock.now()
    theirs = replace(
        Session(ANONYMOUS, S, GatewayId("h"), "python", 1.0, 1.0, now - timedelta(hours=1), now - timedelta(hours=1)),
        kernel_id=KernelId("theirs"),
    )
    await first.store.add_session(theirs)
    run = Run(RunId(str(uuid4())), ANONYMOUS, GatewayId("h"), "python", "", {}, 1.0, now, KernelId("theirs"), now, S)
    await first.store.add_run(run)
    bench = await crash(benches)
    await asyncio.sleep(0.03)
    assert bench.session() == theirs
    assert bench.stored(run.run_id).status is RunStatus.RUNNING
    assert bench.service.list_sessions(ANONYMOUS) == []


async def test_sandboxes_that_nothing_needs_are_removed(benches: Benches) -> None:
    await benches[0].create()
    kernel = benches[0].session().kernel_id
    await until(lambda: len(benches[0].engine.sandboxes) == 2)  # and a warm one
    stray = KernelId("stray")
    benches[0].engine.sandboxes[stray] = None
    before = {*benches[0].engine.sandboxes}
    bench = await crash(benches)
    assert before & {*bench.engine.sandboxes} == {kernel}
    assert bench.engine.kept == {kernel}


async def test_an_engine_or_a_database_that_is_away_stops_the_start_and_changes_nothing(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    benches[0].crash()
    for fault, error in ((benches[0].engine, EngineUnavailable), (benches[0].store, StoreUnavailable)):
        fault.is_reachable = False
        with pytest.raises(error):
            await benches[0].successor()
        fault.is_reachable = True
    benches.append(bench := await benches[0].successor())
    come_back(bench, kernel)
    kernel.end("1")
    assert (await ended(bench, run_id)).output == "1"


async def test_a_supervisor_of_another_version_loses_its_run_at_once(benches: Benches) -> None:
    run_id = await benches[0].record("work", session_id=S)
    kernel = await benches[0].sent("work")
    bench = await crash(benches)
    bench.engine.dial(kernel.kernel_id, protocol=protocol.PROTOCOL_VERSION - 1)
    assert (await ended(bench, run_id)).status is RunStatus.LOST


@pytest.mark.parametrize("step", ["sessions_of", "unfinished_runs", "get_events"])
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_start_that_does_not_succeed_leaves_every_sandbox_to_the_next(
    benches: Benches, step: str, how: str
) -> None:
    run_ids = [await benches[0].record("alone"), await benches[0].record("in a session", session_id=S)]
    kernels = [await benches[0].sent("alone"), await benches[0].sent("in a session")]
    benches[0].crash()
    benches.append(unlucky := Bench(benches[0].store, benches[0].engine))
    if how == "fails":
        with unavailable(unlucky.store, step), pytest.raises(StoreUnavailable):
            await unlucky.service.start()
    else:
        with held(unlucky.store, step) as reading:
            starting = asyncio.ensure_future(unlucky.service.start())
            await until(lambda: reading.count == 1)
            starting.cancel()
            await asyncio.wait([starting])
    await unlucky.service.close()
    assert unlucky.engine.sandboxes.keys() >= {kernel.kernel_id for kernel in kernels}
    benches.append(bench := await unlucky.successor())
    come_back(bench, *kernels)
    for kernel in kernels:
        kernel.end("1")
    assert [(await ended(bench, run_id)).output for run_id in run_ids] == ["1", "1"]
