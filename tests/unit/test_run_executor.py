"""How runs are stopped, and what is sent to a kernel and what not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from doubles import until
from workbench import Bench, Kernel, S

from kernel_image import protocol
from sessions.errors import Conflict, NotFound, SandboxLost, StoreUnavailable
from sessions.model import ANONYMOUS, EventType, RunId, RunStatus, SessionId, TenantId


def cellblock_metadata(kernel: Kernel) -> list[dict[str, Any]]:
    """What of ours came with each request."""
    return [json.loads(protocol.decode_message(frame)[1][2])["cellblock"] for frame in kernel.link.binary]


async def test_every_request_names_the_process_that_it_is_meant_for(bench: Bench) -> None:
    await bench.create()
    kernel_id = bench.session().kernel_id
    bench.engine.say(kernel_id, protocol.DIED, msg_id=None, cause="signal", signal=9)  # type: ignore[arg-type]
    bench.engine.start_process(kernel_id)  # type: ignore[arg-type]
    running = bench.begin("x", session_id=S, variables={"v": 1})
    (await bench.sent()).end()
    kernel = await bench.sent("x")
    kernel.end()
    await running
    assert cellblock_metadata(kernel) == [
        {"variables": {"v": 1}, "artifacts": False, "generation": 2},
        {"generation": 2},
    ]


async def test_a_run_that_is_cancelled_is_interrupted_and_keeps_what_it_said(bench: Bench) -> None:
    run_id = await bench.record("sleep")
    kernel = await bench.sent("sleep")
    kernel.print("so far")
    with pytest.raises(NotFound):
        await bench.service.cancel(TenantId("t"), run_id)
    await bench.service.cancel(ANONYMOUS, run_id)
    await until(lambda: kernel.interrupts() == [kernel.msg_id])
    kernel.interrupted()
    result = await bench.service.result(run_id)
    assert (result.status, result.output, result.exception.name) == (  # type: ignore[union-attr]
        RunStatus.CANCELLED,
        "so far",
        "KeyboardInterrupt",
    )
    assert str(result.error).startswith("The run was cancelled.")


async def test_who_cancels_first_says_why(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    await bench.service.cancel(ANONYMOUS, bench.stored().run.run_id)
    deleting = asyncio.ensure_future(bench.service.delete_session(ANONYMOUS, S))
    await until(lambda: bool(kernel.interrupts()))
    kernel.interrupted()
    await deleting
    assert str((await running).error).startswith("The run was cancelled.")


async def test_a_run_that_the_sandbox_cannot_handle_ends_with_a_clear_error_and_the_session_goes_on(
    bench: Bench,
) -> None:
    await bench.serve("x = 1", session_id=S)
    running = bench.begin("poison", session_id=S)
    kernel = await bench.sent("poison")
    bench.engine.say(kernel.kernel_id, protocol.FAILED, msg_id=kernel.msg_id, why="KeyError: 'shell'")
    result = await running
    assert (result.status, result.session_lost) == (RunStatus.ERROR, False)
    assert "could not take this run in" in str(result.error)
    assert (await bench.serve("x", "1", session_id=S)).output == "1"
    assert bench.kernel_of().kernel_id == kernel.kernel_id
    assert bench.times_sent("poison") == 1


async def test_an_interrupt_reaches_the_run_it_names(bench: Bench) -> None:
    run_id = await bench.record("sleep")
    kernel = await bench.sent("sleep")
    await bench.service.interrupt(ANONYMOUS, run_id)
    assert kernel.interrupts() == [kernel.msg_id]
    kernel.interrupted()
    assert (await bench.service.result(run_id)).status is RunStatus.ERROR
    with pytest.raises(Conflict):
        await bench.service.interrupt(ANONYMOUS, run_id)


@pytest.mark.parametrize("session_id", [None, S])
async def test_code_that_is_cancelled_before_a_kernel_takes_it_is_sent_to_no_other(
    bench: Bench, session_id: SessionId | None
) -> None:
    run_id = await bench.record("work", session_id=session_id)
    kernel = await bench.sent("work")
    await bench.service.cancel(ANONYMOUS, run_id)
    kernel.reject()
    result = await bench.service.result(run_id)
    assert (result.status, result.error) == (RunStatus.CANCELLED, "The run was cancelled.")
    assert bench.times_sent("work") == 1
    assert [event.type for event in bench.stored(run_id).events.values()] == [EventType.STARTED, EventType.END]


async def test_code_that_is_cancelled_while_its_variables_are_set_is_not_sent(bench: Bench) -> None:
    run_id = await bench.record("work", session_id=S, variables={"v": 1})
    setting = await bench.sent()
    await bench.service.cancel(ANONYMOUS, run_id)
    setting.end()
    assert (await bench.service.result(run_id)).status is RunStatus.CANCELLED
    after = await bench.serve("x", session_id=S)
    assert (bench.times_sent("work"), after.session_lost) == (0, False)


async def test_code_that_is_cancelled_while_a_session_waits_for_its_kernel_is_not_sent(bench: Bench) -> None:
    await bench.create()
    first = bench.begin("first", session_id=S)
    kernel = await bench.sent("first")
    second = await bench.record("second", session_id=S)
    await until(lambda: bench.service.readiness().warm == 1)
    bench.engine.comes_up = False
    for kernel_id in list(bench.engine.sandboxes):
        bench.engine.end_sandbox(kernel_id)
    await first
    await until(lambda: bench.engine.supervisors[[*bench.engine.supervisors][-1]].generation == 0)
    await bench.service.cancel(ANONYMOUS, second)
    bench.engine.comes_up = True
    for kernel_id, supervisor in bench.engine.supervisors.items():
        if supervisor.generation == 0 and kernel_id in bench.engine.sandboxes:
            bench.engine.come_up(kernel_id)
    del kernel
    result = await bench.service.result(second)
    assert (result.status, bench.times_sent("second")) == (RunStatus.CANCELLED, 0)


@pytest.mark.parametrize("variables", [{}, {"v": 1}])
async def test_a_gateway_that_stops_before_the_code_is_sent_leaves_a_run_that_is_sent_once(
    variables: dict[str, int],
) -> None:
    bench = await Bench().start()
    run_id = await bench.record("work", variables=variables)
    kernel_id = bench.stored(run_id).run.kernel_id
    await bench.service.close()
    assert kernel_id in bench.engine.sandboxes
    successor = await bench.successor()
    bench.engine.dial(kernel_id)  # type: ignore[arg-type]
    while (kernel := await bench.sent()).code != "work":
        kernel.end()  # the variables are set
    kernel.end("1")
    assert (await successor.service.result(run_id)).output == "1"
    assert bench.times_sent("work") == 1
    await successor.stop()


async def test_a_run_that_no_kernel_took_is_withdrawn_once_the_database_is_back(bench: Bench) -> None:
    running = bench.begin("work")
    withdraw_run, tried = bench.store.withdraw_run, []

    async def unavailable(run_id: RunId) -> None:
        tried.append(run_id)
        raise StoreUnavailable

    bench.store.withdraw_run = unavailable  # type: ignore[method-assign]
    for _ in range(3):
        (await bench.sent("work")).reject()
    with pytest.raises(SandboxLost):
        await running
    await until(lambda: len(tried) > 1)
    bench.store.withdraw_run = withdraw_run  # type: ignore[method-assign]
    await until(lambda: bench.store.runs == {})


async def test_code_is_not_sent_to_another_kernel_before_that_is_recorded(bench: Bench) -> None:
    running = bench.begin("work")
    first = await bench.sent("work")
    start_run = bench.store.start_run

    async def unavailable(*_: object) -> None:
        raise StoreUnavailable

    bench.store.start_run = unavailable  # type: ignore[method-assign]
    first.reject()
    with pytest.raises(StoreUnavailable, match="nothing was run"):
        await running
    bench.store.start_run = start_run  # type: ignore[method-assign]
    assert bench.times_sent("work") == 1
    await until(lambda: bench.store.runs == {})


async def test_setting_variables_counts_against_the_time_limit_and_can_be_stopped(bench: Bench) -> None:
    assert (await bench.begin("work", variables={"v": 1}, timeout_s=0.02)).status is RunStatus.TIMEOUT
    run_id = await bench.record("work", variables={"v": 1})
    await bench.service.cancel(ANONYMOUS, run_id)
    assert (await bench.service.result(run_id)).status is RunStatus.CANCELLED
    assert bench.times_sent("work") == 0


# --- while the supervisor is away -------------------------------------------------------------------------------------


async def cancelled_while_away(bench: Bench) -> tuple[RunId, Kernel]:
    """A run that was cancelled while the link was broken."""
    run_id = await bench.record("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    bench.engine.disconnect(kernel.kernel_id)
    await bench.service.cancel(ANONYMOUS, run_id)
    await asyncio.sleep(0.15)  # longer than code may take to heed an interrupt, and its supervisor to say so
    return run_id, kernel


async def test_an_interrupt_waits_for_the_link_and_the_session_is_kept(bench: Bench) -> None:
    run_id, kernel = await cancelled_while_away(bench)
    bench.engine.dial(kernel.kernel_id)
    assert kernel.interrupts() == [kernel.msg_id]
    await asyncio.sleep(0.08)  # it has all of the time that it would have had before
    kernel.interrupted()
    result = await bench.service.result(run_id)
    assert (result.status, result.session_lost) == (RunStatus.CANCELLED, False)
    assert not (await bench.serve("x", session_id=S)).session_lost


@pytest.mark.timeouts(kill_grace_s=0.15)
async def test_a_link_that_breaks_again_and_again_costs_no_session(bench: Bench) -> None:
    run_id = await bench.record("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    await bench.service.cancel(ANONYMOUS, run_id)
    await until(lambda: kernel.interrupts() == [kernel.msg_id])
    for _ in range(2):
        bench.engine.disconnect(kernel.kernel_id)
        await asyncio.sleep(0.25)  # longer than its supervisor may take to say that the code has ended
        assert not bench.has_ended(run_id)
        bench.engine.dial(kernel.kernel_id)
        for _ in range(5):
            await asyncio.sleep(0)  # whoever waits for the link sees it
    kernel.interrupted()
    assert (await bench.service.result(run_id)).status is RunStatus.CANCELLED
    assert not (await bench.serve("x", session_id=S)).session_lost


async def test_a_supervisor_that_is_back_and_still_does_not_end_the_code_is_given_up(bench: Bench) -> None:
    run_id, kernel = await cancelled_while_away(bench)
    assert not bench.has_ended(run_id)
    bench.engine.dial(kernel.kernel_id)
    result = await bench.service.result(run_id)
    assert (result.status, result.session_lost) == (RunStatus.CANCELLED, True)
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


# --- one budget for all that a run does -------------------------------------------------------------------------------


async def test_what_the_variables_took_is_part_of_the_time_limit(bench: Bench) -> None:
    running = bench.begin("work", variables={"v": 1}, timeout_s=0.6)
    setting = await bench.sent()
    await asyncio.sleep(0.5)
    setting.end()
    kernel = await bench.sent("work")
    began_s = asyncio.get_running_loop().time()
    await until(lambda: bool(kernel.link.sent(protocol.INTERRUPT)))
    assert asyncio.get_running_loop().time() - began_s < 0.4
    kernel.interrupted()
    assert (await running).status is RunStatus.TIMEOUT


async def test_files_past_their_time_are_stopped_and_the_end_has_come_with_the_usage(bench: Bench) -> None:
    running = bench.begin("work")
    kernel = await bench.sent("work")
    kernel.reply()
    kernel.idle()
    await until(lambda: bool(kernel.link.sent(protocol.STOP_FILES)))
    assert [frame["msg_id"] for frame in kernel.link.sent(protocol.STOP_FILES)] == [kernel.msg_id]
    skipped = [{"path": "b", "bytes": 3, "why": "time"}]
    kernel.done(usage={"wall_ms": 1.0, "cpu_ms": 2.0, "memory_peak_bytes": 3}, skipped=skipped)
    result = await running
    assert (result.status, result.truncated) == (RunStatus.OK, True)
    assert "b was dropped: it did not come in time" in result.stderr
    assert result.usage is not None
    assert result.usage.cpu_ms == 2.0


async def test_a_sandbox_that_goes_before_the_files_have_come_has_told_what_was_used(bench: Bench) -> None:
    running = bench.begin("work")
    kernel = await bench.sent("work")
    usage = {"wall_ms": 1.0, "cpu_ms": 2.0, "memory_peak_bytes": 3}
    bench.engine.say(kernel.kernel_id, protocol.USAGE, msg_id=kernel.msg_id, usage=usage)
    kernel.reply()
    kernel.idle()
    result = await running  # nothing more comes, and the sandbox is given up
    assert result.usage is not None
    assert (result.usage.cpu_ms, result.usage.memory_peak_bytes) == (2.0, 3)


@pytest.mark.parametrize("end", ["gone", "cancelled", "never sent"])
async def test_every_end_has_a_usage(bench: Bench, end: str) -> None:
    run_id = await bench.record("work", session_id=S)
    kernel = await bench.sent("work")
    if end == "never sent":
        waiting = await bench.record("next", session_id=S)
        await bench.service.cancel(ANONYMOUS, waiting)
        assert (await bench.service.result(waiting)).usage is not None
        kernel.end()
    elif end == "gone":
        bench.engine.end_sandbox(kernel.kernel_id)
    else:
        await bench.service.cancel(ANONYMOUS, run_id)
    assert (await bench.service.result(run_id)).usage is not None
