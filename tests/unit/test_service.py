"""One run from claim to committed answer, with an engine and a store in memory whose faults the test chooses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from doubles import until
from workbench import HURRIED, Bench, held

from kernel_image import protocol
from sessions.errors import Draining, EndNotStored, InvalidRequest, SandboxLost, StoreUnavailable, UnsupportedLanguage
from sessions.model import Batch, EventType, Result, Run, RunRecord, RunStatus, Session
from sessions.ports import Fate
from sessions.settings import Timeouts
from sessions.testing.memory_store import MemoryStore


class RefusingStore(MemoryStore):
    """A store that does not take an end with events, as a database does whose rules some event breaks."""

    async def finish_run(
        self, result: Result, batch: Batch, finished_at: datetime, session: Session | None = None
    ) -> None:
        if batch.events:
            raise ValueError("a value that no column takes")
        await super().finish_run(result, batch, finished_at, session)


@pytest.fixture
async def bench(timeouts: Timeouts) -> AsyncIterator[Bench]:
    bench = await Bench(timeouts=timeouts).start()
    yield bench
    await bench.stop()
    assert bench.engine.sandboxes == {}


async def test_what_a_run_has_said_is_acknowledged_once_its_end_is_committed(bench: Bench) -> None:
    running = bench.begin(session_id="s")
    kernel = await bench.sent()
    kernel.end("1\n")
    assert kernel.link.sent(protocol.ACK) == []
    await running
    await until(lambda: bool(kernel.link.sent(protocol.ACK)))
    assert kernel.link.sent(protocol.ACK)[-1]["seq"] == kernel.supervisor.last_seq


async def test_an_answer_is_committed_before_it_is_given_and_the_kernel_is_used_once(bench: Bench) -> None:
    # However slow the machine: a pause that is over before the answer would let the next one start.
    for pool in bench.service._kernel_pool._pools.values():
        pool.timeouts = replace(pool.timeouts, refill_pause_s=60.0)
    running = bench.begin()
    kernel = await bench.sent()
    assert bench.stored().status is RunStatus.RUNNING
    assert bench.stored().run.kernel_id == kernel.kernel_id
    kernel.print("1\n")
    kernel.end()
    result = await running
    assert (result.status, result.output) == (RunStatus.OK, "1\n")
    assert bench.stored().result == result
    assert [event.type for event in bench.stored().events.values()] == [
        EventType.STARTED,
        EventType.STDOUT,
        EventType.END,
    ]
    assert kernel.kernel_id in bench.engine.sandboxes  # removing it, and starting the next, do not delay the answer
    assert len(bench.engine.specs) == 1
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


async def test_beside_a_long_run_the_pool_is_filled_again(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    assert bench.service.readiness().warm == 0
    await until(lambda: bench.service.readiness().warm == 1)
    assert not running.done()
    kernel.end()
    await running


async def test_variables_travel_as_metadata_of_a_silent_request_before_the_code(bench: Bench) -> None:
    running = bench.begin("x", variables={"x": "'; import os"})
    setting = await bench.sent()
    assert setting.link.request_ids() == [setting.msg_id]  # the code waits until they are set
    setting.end()
    kernel = await bench.sent("x")
    requests = [protocol.decode_message(frame)[1] for frame in kernel.link.binary]
    first, second = (
        {"metadata": json.loads(parts[2]), "content": json.loads(parts[3])} for parts in (requests[0], requests[1])
    )
    assert first["content"]["silent"]
    assert "import os" not in first["content"]["code"]
    assert first["metadata"]["cellblock"]["variables"] == {"x": "'; import os"}
    assert (second["content"]["code"], second["content"]["silent"]) == ("x", False)
    kernel.end()
    assert (await running).status is RunStatus.OK


@pytest.mark.timeouts(files_timeout_s=10.0)
async def test_code_that_ended_in_time_is_no_timeout_however_long_its_files_take(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.2)
    kernel = await bench.sent()
    kernel.reply()
    kernel.idle()
    await asyncio.sleep(0.3)
    assert not kernel.link.sent(protocol.INTERRUPT)
    kernel.done()
    assert (await running).status is RunStatus.OK


async def test_files_that_never_come_are_left_out_and_said(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    kernel.print("1\n")
    kernel.reply()
    kernel.idle()
    result = await running
    assert (result.status, result.output, result.truncated) == (RunStatus.OK, "1\n", True)
    assert "[cellblock]" in result.stderr


@pytest.mark.timeouts(files_timeout_s=10.0)
async def test_a_death_in_time_is_no_timeout_however_long_its_files_take(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.2)
    kernel = await bench.sent()
    kernel.file("made.txt", b"x")  # the supervisor sends files only once the code has ended
    await asyncio.sleep(0.3)
    assert not kernel.link.sent(protocol.INTERRUPT)
    kernel.died("oom", signal=9)
    result = await running
    assert (result.status, set(result.files)) == (RunStatus.OOM, {"made.txt"})


async def test_files_that_a_run_past_its_limit_might_have_made_are_left_out_and_said(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.05)
    kernel = await bench.sent()
    await until(lambda: bool(kernel.link.sent(protocol.INTERRUPT)))
    kernel.reply("error", ename="KeyboardInterrupt", evalue="", traceback=["KeyboardInterrupt"])
    kernel.idle()
    result = await running
    assert (result.status, result.truncated) == (RunStatus.TIMEOUT, True)
    assert "did not come in time" in result.stderr


async def test_a_run_whose_reply_is_missing_is_not_taken_for_a_success(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    kernel.idle()
    kernel.done()
    result = await running
    assert result.status is RunStatus.ERROR
    assert "whether the code raised is unknown" in str(result.error)


async def test_code_that_a_kernel_has_not_taken_is_run_by_another_one_once(bench: Bench) -> None:
    running = bench.begin("x = 1")
    first = await bench.sent("x = 1")
    first.reject()
    second = await bench.sent("x = 1")
    assert second.kernel_id != first.kernel_id
    assert bench.stored().run.kernel_id == second.kernel_id
    assert first.msg_id.partition(".")[0] == second.msg_id.partition(".")[0] == bench.stored().run.run_id
    assert first.msg_id != second.msg_id
    second.end("once")
    assert (await running).output == "once"
    await until(lambda: first.kernel_id not in bench.engine.sandboxes)


async def test_code_that_three_kernels_have_not_taken_has_not_been_run_and_is_forgotten(bench: Bench) -> None:
    running = bench.begin()
    for _ in range(3):
        (await bench.sent()).reject()
    with pytest.raises(SandboxLost, match="nothing was run"):
        await running
    await until(lambda: bench.store.runs == {})
    assert bench.times_sent("print(1)") == 3


async def test_code_whose_kernel_died_before_its_turn_is_run_by_another_one(bench: Bench) -> None:
    running = bench.begin()
    first = await bench.sent()
    first.engine.say(first.kernel_id, protocol.DIED, msg_id=None, never_run=[first.msg_id], cause="signal", signal=9)
    first.supervisor.outstanding.clear()
    (await bench.sent()).end("1")
    assert (await running).output == "1"


async def test_a_kernel_that_dies_while_it_is_given_variables_has_run_nothing(bench: Bench) -> None:
    running = bench.begin("x", variables={"x": 1})
    (await bench.sent()).died("signal", signal=9)
    setting = await bench.sent()
    assert bench.times_sent("x") == 0
    setting.end()
    (await bench.sent("x")).end()
    assert (await running).status is RunStatus.OK
    assert bench.times_sent("x") == 1


async def test_a_kernel_that_dies_before_the_code_is_sent_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernel_id,) = bench.engine.sandboxes
    add_run = bench.store.add_run

    async def add_run_meanwhile(run: Run) -> RunRecord | None:
        bench.engine.say(kernel_id, protocol.DIED, cause="signal", signal=9)
        return await add_run(run)

    monkeypatch.setattr(bench.store, "add_run", add_run_meanwhile)
    running = bench.begin()
    kernel = await bench.sent()
    assert kernel.kernel_id != kernel_id
    kernel.end()
    assert (await running).status is RunStatus.OK


async def test_past_its_limit_a_run_is_interrupted_and_keeps_what_it_said(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.05)
    kernel = await bench.sent()
    kernel.print("so far")
    await until(lambda: bool(kernel.link.sent(protocol.INTERRUPT)))
    assert kernel.link.sent(protocol.INTERRUPT)[0]["msg_id"] == kernel.msg_id
    kernel.reply("error", ename="KeyboardInterrupt", evalue="", traceback=["KeyboardInterrupt"])
    kernel.idle()
    kernel.done()
    result = await running
    assert (result.status, result.output) == (RunStatus.TIMEOUT, "so far")
    assert result.error is not None
    assert "time limit of 0.05 s" in result.error
    assert bench.stored().result == result


async def test_a_sandbox_that_answers_nothing_is_ended(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.05)
    kernel = await bench.sent()
    result = await running
    assert result.status is RunStatus.TIMEOUT
    assert kernel.link.sent(protocol.SHUTDOWN)
    assert kernel.link.closed is not None
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


@pytest.mark.parametrize(
    ("cause", "fields", "status", "words"),
    [
        ("signal", {"signal": 9, "exit_code": None}, RunStatus.KERNEL_DIED, "signal 9 (SIGKILL)"),
        ("signal", {"signal": 250, "exit_code": None}, RunStatus.KERNEL_DIED, "signal 250 (unknown)"),
        ("exited", {"signal": None, "exit_code": 3}, RunStatus.KERNEL_DIED, "exit code 3"),
        ("oom", {"signal": 9, "exit_code": None}, RunStatus.OOM, "memory"),
    ],
)
async def test_deaths_are_told_apart(
    bench: Bench, cause: str, fields: dict[str, Any], status: RunStatus, words: str
) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    kernel.print("last words")
    kernel.died(cause, **fields)
    result = await running
    assert (result.status, result.output) == (status, "last words")
    assert words in str(result.error)


@pytest.mark.parametrize(("oom", "status"), [(True, RunStatus.OOM), (False, RunStatus.KERNEL_DIED)])
@pytest.mark.timeouts(reconnect_timeout_s=0.01)
async def test_of_a_sandbox_that_is_gone_the_engine_knows_why(bench: Bench, *, oom: bool, status: RunStatus) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    bench.engine.fates[kernel.kernel_id] = Fate(137, oom)
    bench.engine.disconnect(kernel.kernel_id)
    assert (await running).status is status


async def test_an_error_of_our_own_still_gives_the_run_its_one_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sessions.output.fold.RunFold.add_skipped", broken)
    running = bench.begin()
    (await bench.sent()).end("1\n")
    result = await running
    assert (result.status, result.output) == (RunStatus.LOST, "1\n")
    assert "inside the gateway" in str(result.error)
    assert bench.stored().status is RunStatus.LOST
    events = [event async for batch in bench.service.follow(result.run_id, 0) for event in batch]
    assert [event.type for event in events] == [EventType.STARTED, EventType.STDOUT, EventType.END]
    assert events[-1].fields["status"] == "lost"


async def test_an_error_of_our_own_that_leaves_no_end_is_answered_and_takes_the_kernel_along(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    for name in ("finish", "finish_internal_error"):
        monkeypatch.setattr(f"sessions.output.fold.RunFold.{name}", broken)
    running = bench.begin()
    kernel = await bench.sent()
    kernel.end()
    async with asyncio.timeout(30):
        with pytest.raises(EndNotStored, match="Do not run it again"):
            await running
    await bench.service.drain(30.0)
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


async def test_without_a_database_nothing_is_run_and_nobody_else_gets_the_kernel(bench: Bench) -> None:
    (kernel_id,) = bench.engine.sandboxes
    link = bench.engine.link(kernel_id)
    bench.store.is_reachable = False
    with pytest.raises(StoreUnavailable):
        await bench.begin()
    assert link.binary == []
    bench.store.is_reachable = True
    running = bench.begin()
    kernel = await bench.sent()
    assert kernel.kernel_id != kernel_id  # whose that is, a later gateway might read otherwise
    kernel.end()
    assert (await running).status is RunStatus.OK


class HangingStore(MemoryStore):
    """A store that takes a run in only after it was given up, as a database does that was stopped and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Run] = []
        self.hangs = True

    async def add_run(self, run: Run) -> RunRecord | None:
        if self.hangs:
            self.late.append(run)
            raise StoreUnavailable
        return await super().add_run(run)

    async def go_on(self) -> None:
        self.hangs = False
        for run in self.late:
            await super().add_run(run)


async def test_a_run_that_the_database_takes_in_too_late_is_withdrawn() -> None:
    store = HangingStore()
    bench = await Bench(store, timeouts=replace(HURRIED, withdrawal_pause_s=0.05)).start()
    with pytest.raises(StoreUnavailable):
        await bench.begin(idempotency_key="k")
    await until(lambda: "1 being withdrawn" in repr(bench.service._admission))
    await store.go_on()  # after the first withdrawal
    await until(lambda: not store.runs)
    await until(lambda: "0 being withdrawn" in repr(bench.service._admission))
    await store.go_on()  # so late that nobody looks any more
    running = bench.begin(idempotency_key="k")
    (await bench.sent()).end()
    assert (await running).status is RunStatus.OK
    await bench.stop()


async def test_an_end_that_cannot_be_stored_is_named_and_stored_once_the_database_is_back(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    bench.store.is_reachable = False
    kernel.print("kept")
    kernel.end()
    with pytest.raises(EndNotStored, match=r"has ended, .* its result is kept"):
        await running
    assert bench.stored().finished_at is None
    bench.store.is_reachable = True
    await until(lambda: bench.stored().finished_at is not None)
    assert bench.stored().result.output == "kept"
    assert [event.seq for event in bench.stored().events.values()] == [1, 2, 3]


async def test_events_that_the_database_refuses_cost_the_run_only_those() -> None:
    bench = await Bench(RefusingStore()).start()
    running = bench.begin()
    kernel = await bench.sent()
    kernel.print("1\n")
    kernel.end()
    result = await running
    assert (result.status, result.output, result.truncated) == (RunStatus.OK, "1\n", True)
    assert bench.stored().result == result
    await bench.stop()


async def test_a_caller_who_leaves_does_not_stop_the_run(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    running.cancel()
    await asyncio.wait([running])
    kernel.print("still here")
    kernel.end()
    await until(lambda: bench.stored().finished_at is not None)
    assert bench.stored().result.output == "still here"


async def test_languages_that_are_not_there_and_variables_that_cannot_be_set_are_said(bench: Bench) -> None:
    with pytest.raises(UnsupportedLanguage, match="other, python"):
        await bench.begin(language="cobol")
    with pytest.raises(InvalidRequest):
        await bench.begin(language="other", variables={"x": 1})
    assert bench.store.runs == {}


async def test_draining_waits_for_what_runs_and_takes_no_more(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    draining = asyncio.ensure_future(bench.service.drain(5.0))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await bench.begin()
    assert not bench.service.readiness().ready
    assert not draining.done()
    kernel.end()
    await draining
    assert (await running).status is RunStatus.OK


async def test_draining_waits_for_the_run_that_was_being_admitted(bench: Bench) -> None:
    with held(bench.store, "add_run") as adding:
        running = bench.begin()
        await until(lambda: adding.count == 1)
        draining = asyncio.ensure_future(bench.service.drain(30.0))
        await asyncio.sleep(0)
    kernel = await bench.sent()
    await asyncio.sleep(0.05)
    assert not draining.done()
    kernel.end()
    await draining
    assert (await running).status is RunStatus.OK


@pytest.mark.timeouts(reconnect_timeout_s=0.01)
async def test_while_draining_a_sandbox_that_ends_is_still_asked_after(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    draining = asyncio.ensure_future(bench.service.drain(5.0))
    await asyncio.sleep(0)
    bench.engine.fates[kernel.kernel_id] = Fate(137, oom=True)
    bench.engine.disconnect(kernel.kernel_id)
    assert (await running).status is RunStatus.OOM
    await draining


async def test_closing_leaves_what_runs_to_a_later_gateway_and_says_so(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    kernel.print("so far")
    link = kernel.link
    await bench.service.close()
    with pytest.raises(EndNotStored, match=rf"goes on in its sandbox.* GET /runs/{bench.stored().run.run_id}"):
        await running
    assert bench.stored().finished_at is None
    assert kernel.kernel_id in bench.engine.sandboxes
    assert not link.sent(protocol.SHUTDOWN)
    assert link.closed is not None
    assert kernel.supervisor.outstanding == [kernel.msg_id]
    bench.engine.sandboxes.clear()


async def test_closing_removes_every_container_that_nothing_runs_in(bench: Bench) -> None:
    await until(lambda: bench.service.readiness().warm == 1)
    await bench.service.close()
    assert bench.engine.sandboxes == {}


@pytest.mark.timeouts(commit_timeout_s=30.0)
async def test_closing_without_a_database_leaves_an_end_that_is_not_stored_to_a_later_gateway(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    bench.store.is_reachable = False
    kernel.end("not stored")
    await asyncio.sleep(0.02)
    await bench.service.close()
    with pytest.raises(EndNotStored, match="Do not run it again"):
        await running
    assert kernel.kernel_id in bench.engine.sandboxes
    assert len(kernel.supervisor.frames) >= 4  # nothing of it has been acknowledged
    bench.engine.sandboxes.clear()


async def test_a_store_that_is_away_is_a_reason_not_to_be_ready() -> None:
    bench = await Bench(timeouts=replace(HURRIED, store_check_pause_s=0.01)).start()
    bench.store.is_reachable = False
    await until(lambda: not bench.service.readiness().ready)
    assert bench.service.readiness().reasons
    bench.store.is_reachable = True
    await until(lambda: bench.service.readiness().ready)
    await bench.stop()
