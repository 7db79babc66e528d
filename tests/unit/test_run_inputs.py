"""Files, paths and an environment that a run is given: when they reach the sandbox, and what becomes of failures."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from doubles import until
from workbench import HURRIED, Bench, Benches, Kernel, S, come_back, crash, ended

from kernel_image import protocol
from sessions.errors import Conflict, InvalidRequest, TooLarge, TooManyRequests
from sessions.inputs import RunInputs
from sessions.model import ANONYMOUS, EventType, KernelId, RunStatus, SessionId

FILES = {"a.csv": b"1,2\n", "d/empty": b"", "d/large": b"x" * (protocol.FILE_PIECE_BYTES + 1)}
GIVEN = RunInputs(FILES, ("out",), {"KEY": "s3cret"})
ONE = RunInputs({"a": b"1"})
WHERE = [None, S]


def metadata(kernel: Kernel) -> Any:
    return kernel.supervisor.metadata[kernel.msg_id]["cellblock"]


async def in_use(bench: Bench) -> KernelId:
    """The kernel of a session that is there before a run with files begins."""
    await bench.create()
    return bench.kernel_of().kernel_id


@pytest.mark.parametrize("session_id", WHERE)
async def test_files_are_there_before_the_code_and_the_rest_comes_with_it(
    bench: Bench, session_id: SessionId | None
) -> None:
    running = bench.begin("x", session_id=session_id, inputs=GIVEN)
    kernel = await bench.sent("x")
    assert kernel.supervisor.files == FILES
    assert metadata(kernel) == {"generation": 1, "fetch": ["out"], "env": {"KEY": "s3cret"}}
    assert bench.stored().run.inputs == GIVEN
    kernel.end("1")
    assert (await running).output == "1"
    assert bench.stored().run.inputs is None


async def test_a_plain_run_asks_for_nothing_of_it(bench: Bench) -> None:
    running = bench.begin("x")
    kernel = await bench.sent("x")
    kernel.end()
    await running
    assert metadata(kernel) == {"generation": 1}
    assert kernel.supervisor.files_asked == 0


async def test_files_come_before_variables(bench: Bench) -> None:
    running = bench.begin("x", variables={"v": 1}, inputs=GIVEN)
    setting = await bench.sent()
    assert setting.supervisor.files == FILES
    assert {"fetch", "env"}.isdisjoint(metadata(setting))
    setting.end()
    (await bench.sent("x")).end()
    assert (await running).status is RunStatus.OK


REFUSALS = {
    "link": "symbolic link",
    "not_a_file": "no regular file",
    "no_space": "no room",
    "denied": "taken away the permission",
    "changed": "changed this file",
    "io": "could not read or write",
}


@pytest.mark.parametrize(("why", "said"), REFUSALS.items())
async def test_a_file_that_cannot_be_written_ends_the_run_and_not_the_session(
    bench: Bench, why: str, said: str
) -> None:
    kernel_id = await in_use(bench)
    bench.engine.supervisors[kernel_id].refused["d/empty"] = why
    result = await bench.begin("x", session_id=S, inputs=GIVEN)
    assert (result.status, result.session_lost, bench.times_sent("x")) == (RunStatus.ERROR, False, 0)
    assert str(result.error).startswith("The file d/empty could not be written. ")
    assert said in str(result.error)
    assert str(result.error).endswith("The code was not run.")
    events = [event.type for event in bench.stored(result.run_id).events.values()]
    assert (events[-1], events.count(EventType.END)) == (EventType.END, 1)
    assert (await bench.serve("y", "1", session_id=S)).output == "1"
    assert bench.kernel_of().kernel_id == kernel_id


async def test_a_lost_link_while_files_are_written_is_tried_again(bench: Bench) -> None:
    kernel_id = await in_use(bench)
    supervisor = bench.engine.supervisors[kernel_id]
    supervisor.answers_files = False
    running = bench.begin("x", session_id=S, inputs=ONE)
    await until(lambda: supervisor.files_asked > 0)
    supervisor.answers_files = True
    bench.engine.disconnect(kernel_id)
    bench.engine.dial(kernel_id)
    (await bench.sent("x")).end("1")
    assert (await running).output == "1"
    assert (supervisor.files, bench.times_sent("x")) == (ONE.files, 1)


async def test_a_kernel_that_dies_while_files_are_written_is_a_loss_that_this_run_tells(bench: Bench) -> None:
    kernel_id = await in_use(bench)
    await bench.serve("v = 1", session_id=S)
    files = await bench.service.session_files(ANONYMOUS, S)
    writers = [await files.create(f"theirs{number}", 1) for number in range(8)]
    running = bench.begin("x", session_id=S, inputs=ONE)
    await until(lambda: any(live.is_preparing for live in bench.service._runs))
    bench.engine.start_process(kernel_id)
    writers[0].close()
    (await bench.sent("x")).end("1")
    result = await running
    assert (result.status, result.session_created, result.session_lost) == (RunStatus.OK, True, True)
    after = await bench.serve("y", session_id=S)
    assert (after.session_created, after.session_lost) == (False, False)


async def test_a_sandbox_that_goes_while_files_are_written_is_replaced(bench: Bench) -> None:
    supervisors = bench.engine.supervisors
    (first,) = supervisors
    supervisors[first].answers_files = False
    running = bench.begin("x", inputs=ONE)
    await until(lambda: supervisors[first].files_asked > 0)
    bench.engine.disconnect(first)
    kernel = await bench.sent("x")
    assert (kernel.kernel_id != first, kernel.supervisor.files) == (True, ONE.files)
    kernel.end("1")
    assert (await running).output == "1"


@pytest.mark.parametrize("how", ["cancel", "interrupt", "time limit"])
async def test_a_run_is_stopped_while_its_files_are_written(bench: Bench, how: str) -> None:
    kernel_id = await in_use(bench)
    supervisor = bench.engine.supervisors[kernel_id]
    supervisor.answers_files = False
    timeout_s = 0.05 if how == "time limit" else 30.0
    run_id = await bench.record("x", session_id=S, inputs=ONE, timeout_s=timeout_s)
    await until(lambda: supervisor.files_asked > 0)
    if how == "cancel":
        await bench.service.cancel(ANONYMOUS, run_id)
    elif how == "interrupt":
        await bench.service.interrupt(ANONYMOUS, run_id)
    result = await ended(bench, run_id)
    expected = {"cancel": RunStatus.CANCELLED, "interrupt": RunStatus.ERROR, "time limit": RunStatus.TIMEOUT}
    assert (result.status, bench.times_sent("x")) == (expected[how], 0)
    if how == "interrupt":
        assert str(result.error).startswith("KeyboardInterrupt")
    supervisor.answers_files = True
    assert (await bench.serve("y", "1", session_id=S)).output == "1"


async def test_files_wait_while_clients_of_the_session_have_all_transfers(bench: Bench) -> None:
    kernel_id = await in_use(bench)
    files = await bench.service.session_files(ANONYMOUS, S)
    writers = [await files.create(f"theirs{number}", 1) for number in range(8)]
    with pytest.raises(TooManyRequests):
        await files.create("one more", 1)
    running = bench.begin("x", session_id=S, inputs=ONE)
    await asyncio.sleep(0.05)
    assert bench.times_sent("x") == 0
    writers[0].close()
    (await bench.sent("x")).end()
    assert (await running).status is RunStatus.OK
    assert bench.engine.supervisors[kernel_id].files == ONE.files


async def test_what_waits_in_the_queue_of_a_session_is_run_by_the_next_gateway_with_its_inputs(
    benches: Benches,
) -> None:
    await benches[0].record("first", session_id=S)
    kernel = await benches[0].sent("first")
    waiting = await benches[0].record("second", session_id=S, inputs=GIVEN)
    bench = await crash(benches)
    come_back(bench, kernel)
    Kernel(bench.engine, kernel.kernel_id).end()
    second = await bench.sent("second")
    assert second.supervisor.files == FILES
    assert metadata(second)["env"] == {"KEY": "s3cret"}
    second.end("2")
    assert (await ended(bench, waiting)).output == "2"
    assert bench.times_sent("second") == 1


@pytest.mark.parametrize("session_id", WHERE)
async def test_a_gateway_that_is_killed_while_it_writes_files_leaves_the_rest_to_the_next_one(
    benches: Benches, session_id: SessionId | None
) -> None:
    kernel_id = next(iter(benches[0].engine.supervisors))
    supervisor = benches[0].engine.supervisors[kernel_id]
    supervisor.answers_files = False
    run_id = await benches[0].record("x", session_id=session_id, inputs=GIVEN)
    await until(lambda: supervisor.files_asked > 0)
    bench = await crash(benches)
    supervisor.answers_files = True
    bench.engine.dial(kernel_id)
    kernel = await bench.sent("x")
    assert (kernel.kernel_id, supervisor.files) == (kernel_id, FILES)
    kernel.end("1")
    assert (await ended(bench, run_id)).output == "1"
    assert bench.times_sent("x") == 1


@pytest.mark.parametrize("crashes", [False, True])
async def test_what_was_not_there_to_be_fetched_is_a_line_each_and_said_once(
    benches: Benches,
    crashes: bool,  # noqa: FBT001
) -> None:
    bench = benches[0]
    run_id = await bench.record("x", inputs=RunInputs(fetch=("a", "b")))
    kernel = await bench.sent("x")
    kernel.print("1")
    kernel.reply()
    kernel.idle()
    if crashes:
        bench = await crash(benches)
        come_back(bench, kernel)
    skipped = [{"path": path, "bytes": 0, "why": "missing"} for path in ("a", "b", None)]
    bench.engine.say(kernel.kernel_id, protocol.DONE, msg_id=kernel.msg_id, skipped=skipped)
    result = await ended(bench, run_id)
    lines = [f"[cellblock] {name} was not fetched: there is no file of this name\n" for name in ("a", "b", "a file")]
    assert (result.status, result.truncated, result.stderr) == (RunStatus.OK, False, "".join(lines))
    events = [event.fields["text"] for event in bench.stored(run_id).events.values() if event.type is EventType.STDERR]
    assert "".join(events) == result.stderr


async def test_a_language_without_an_environment_says_so(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="`env` cannot be set in the language 'other'"):
        await bench.record("x", language="other", inputs=RunInputs(env={"A": "1"}))


async def test_files_count_towards_what_a_tenant_may_have_waiting(bench: Bench) -> None:
    await bench.record("x", session_id=S)
    await bench.record("x", session_id=S, inputs=RunInputs({"a": bytes((64 << 20) + 1)}))
    with pytest.raises(TooManyRequests, match="Too much code and data"):
        await bench.record("x", session_id=S)
    (await bench.sent("x")).end()


async def test_the_size_of_a_live_run_to_be_shown_is_without_its_files(bench: Bench) -> None:
    run_id = await bench.record("x", inputs=RunInputs({"a": bytes(1 << 20)}))
    assert await bench.service.run_bytes(run_id) < 1000
    (await bench.sent("x")).end()


async def test_a_session_has_its_files_when_it_is_made(bench: Bench) -> None:
    await bench.create(files=FILES)
    assert bench.kernel_of().supervisor.files == FILES


@pytest.mark.parametrize(("why", "error"), [("no_space", TooLarge), ("link", InvalidRequest), ("changed", Conflict)])
async def test_a_session_whose_file_cannot_be_written_is_not_made(
    bench: Bench, why: str, error: type[Exception]
) -> None:
    next(iter(bench.engine.supervisors.values())).refused["a"] = why
    with pytest.raises(error, match="The file a could not be written"):
        await bench.create(files=ONE.files)
    assert bench.service.list_sessions(ANONYMOUS) == []


async def test_a_session_whose_files_take_too_long_is_not_made() -> None:
    bench = await Bench(timeouts=replace(HURRIED, variables_timeout_s=0.05)).start()
    next(iter(bench.engine.supervisors.values())).answers_files = False
    with pytest.raises(Exception, match="could not be written in time"):
        await bench.create(files=ONE.files)
    assert bench.service.list_sessions(ANONYMOUS) == []
    await bench.stop()
