"""A Jupyter client and the session that it is at: its end, its restarts, and what goes to its kernel as it is."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from doubles import ManualClock, until
from jupyter_talk import Client, message
from workbench import Bench, S, held

from kernel_image import protocol
from sessions.errors import Draining, NotFound, Unavailable
from sessions.jupyter.request_window import MAX_UNANSWERED, MAX_WAITING
from sessions.model import ANONYMOUS, RunStatus, SessionId, SessionState, TenantId


@pytest.fixture
async def lab(bench: Bench) -> Client:
    await bench.create()
    return await Client.attach(bench)


def sent_to_kernel(bench: Bench) -> list[str]:
    """The types of all that was sent to the session's kernel."""
    kernel_id = bench.session().kernel_id
    assert kernel_id is not None
    frames = bench.engine.link(kernel_id).binary
    return [json.loads(protocol.decode_message(frame)[1][0])["msg_type"] for frame in frames]


def statuses(bench: Bench) -> list[RunStatus]:
    return [stored.status for stored in bench.store.runs.values()]


# --- the session ------------------------------------------------------------------------------------------------------


async def test_a_session_that_is_gone_does_not_come_back_by_a_cell(bench: Bench, lab: Client) -> None:
    await bench.service.delete_session(ANONYMOUS, S)
    await until(lambda: lab.is_over)
    assert lab.states()[-1] == "dead"
    await lab.execute("x")
    assert bench.store.sessions == {}
    with pytest.raises(NotFound):
        await bench.service.attach(ANONYMOUS, S, "lab")


async def test_two_tenants_under_one_name_hear_nothing_of_each_other(bench: Bench, lab: Client) -> None:
    stranger = TenantId("stranger")
    with pytest.raises(NotFound):
        await bench.service.attach(stranger, S, "lab")
    await bench.create(tenant=stranger)
    theirs = await Client.attach(bench, "lab", tenant=stranger)
    await lab.execute("x")
    (await bench.sent("x")).end("mine")
    await lab.reply("x")
    assert theirs.messages == []
    assert not lab.is_replaced


async def test_a_client_that_asks_for_little_keeps_the_session_and_that_is_recorded_now_and_then() -> None:
    clock = ManualClock()
    bench = await Bench(clock=clock).start()
    await bench.create()
    lab = await Client.attach(bench)
    before = bench.session().last_used_at
    for _ in range(50):
        clock.at_s += 7
        await lab.send("kernel_info_request")
        await asyncio.sleep(0)
    assert bench.service.get_session(ANONYMOUS, S).session.session_id == S
    await until(lambda: bench.session().last_used_at > before + timedelta(seconds=300))
    clock.at_s += 200
    await until(lambda: bench.store.sessions == {})
    await bench.stop()


async def test_a_restart_drops_what_a_notebook_has_queued_and_keeps_the_runs_of_others(
    bench: Bench, lab: Client
) -> None:
    await lab.execute("runs")
    await lab.execute("waits")
    other = await bench.record("other", session_id=S)
    kernel = await bench.sent("runs")
    restarting = asyncio.ensure_future(lab.send("shutdown_request", {"restart": True}, channel="control", msg_id="r"))
    await until(lambda: bool(kernel.interrupts()))
    kernel.interrupted()
    await until(lambda: bool(kernel.link.sent(protocol.RESTART)))
    bench.engine.say(kernel.kernel_id, protocol.STATE, state="starting", generation=kernel.supervisor.generation)
    kernel.next_process()
    await restarting
    (await bench.sent("other")).end()
    assert (await bench.service.result(other)).status is RunStatus.OK
    assert (await lab.reply("waits"))["status"] == "error"
    assert bench.times_sent("waits") == 0
    assert (await lab.receives("shutdown_reply", "r"))["restart"] is True
    assert "restarting" not in lab.states()
    assert lab.states("") == ["starting", "idle"]
    kernel.die_idle()
    await until(lambda: lab.states("") == ["starting", "idle", "restarting", "starting", "idle"])


@pytest.mark.timeouts(restart_timeout_s=0.05)
async def test_a_restart_that_cannot_be_had_is_told_to_the_client(bench: Bench, lab: Client) -> None:
    await lab.send("shutdown_request", {"restart": True}, channel="control", msg_id="r")
    await until(lambda: bool(lab.told("stream", "r")))
    (note,) = lab.told("stream", "r")
    assert note["name"] == "stderr"
    assert "did not restart" in note["text"]
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.DEAD


async def test_shutting_the_kernel_down_deletes_the_session(bench: Bench, lab: Client) -> None:
    await lab.send("shutdown_request", {"restart": False}, channel="control", msg_id="d")
    await until(lambda: lab.is_over)
    assert lab.told("shutdown_reply", "d") == [{"status": "ok", "restart": False}]
    assert bench.store.sessions == {}
    assert "shutdown_request" not in [one.msg_type for one in lab.messages]


async def test_an_interrupt_reaches_the_cell_at_work_and_is_answered(bench: Bench, lab: Client) -> None:
    await lab.execute("sleep")
    kernel = await bench.sent("sleep")
    await lab.send("interrupt_request", channel="control", msg_id="i")
    assert kernel.interrupts() == [kernel.msg_id]
    assert await lab.receives("interrupt_reply", "i") == {"status": "ok"}
    kernel.interrupted()
    assert statuses(bench)[0] is RunStatus.RUNNING
    await lab.reply("sleep")


@pytest.mark.parametrize("how", ["message", "route"])
async def test_an_interrupt_reaches_a_widget_that_computes_while_nothing_runs(
    bench: Bench, lab: Client, how: str
) -> None:
    async def interrupt() -> None:
        if how == "message":
            await lab.send("interrupt_request", channel="control")
        else:
            await bench.service.interrupt_session(ANONYMOUS, S)

    await lab.execute("first")
    kernel = await bench.sent("first")
    kernel.end()
    await lab.reply("first")
    session = bench.service._sessions.get(ANONYMOUS, S)
    await until(lambda: session.current is None)
    await interrupt()
    assert kernel.interrupts() == [], "nothing is asked of it"
    await lab.send("comm_msg", {"comm_id": "c", "data": {}}, msg_id="moved")
    await interrupt()
    assert kernel.interrupts() == [None]
    asked = json.loads(protocol.decode_message(kernel.link.binary[-1])[1][0])["msg_id"]
    bench.engine.publish(kernel.kernel_id, "status", asked, {"execution_state": "idle"})
    await interrupt()
    assert kernel.interrupts() == [None]


async def test_an_interrupt_reaches_a_widget_while_the_last_run_is_stored(bench: Bench, lab: Client) -> None:
    await lab.execute("first")
    kernel = await bench.sent("first")
    with held(bench.store, "finish_run") as finishing:
        kernel.end()
        await until(lambda: finishing.count == 1)
        await lab.send("comm_msg", {"comm_id": "c", "data": {}})
        await lab.send("interrupt_request", channel="control")
        assert kernel.interrupts() == [None]
    await lab.reply("first")


async def test_a_request_that_is_dropped_is_told_and_over(bench: Bench, lab: Client) -> None:
    for number in range(MAX_UNANSWERED + MAX_WAITING):
        await lab.send("comm_msg", {"comm_id": "c", "data": {}}, msg_id=str(number))
    await lab.send("comm_msg", {"comm_id": "c", "data": {}}, msg_id="one more")
    assert "was dropped" in (await lab.receives("stream", "one more"))["text"]
    assert await lab.receives("status", "one more") == {"execution_state": "idle"}
    assert len(sent_to_kernel(bench)) == MAX_UNANSWERED


# --- everything else --------------------------------------------------------------------------------------------------


async def test_input_is_asked_for_over_stdin_and_what_answers_no_question_is_ignored(bench: Bench, lab: Client) -> None:
    await lab.send("input_reply", {"value": "early"}, channel="stdin")
    await lab.execute("input()")
    kernel = await bench.sent("input()")
    kernel.publish("input_request", {"prompt": "? ", "password": False}, channel="stdin")
    assert (await lab.receives("input_request", "input()"))["prompt"] == "? "
    for value in ("42", "twice"):
        await lab.send("input_reply", {"value": value, "status": "ok"}, channel="stdin")
    assert sent_to_kernel(bench) == ["execute_request", "input_reply"]
    channel, parts = protocol.decode_message(kernel.link.binary[-1])
    assert (channel, json.loads(parts[3])["value"]) == ("stdin", "42")
    kernel.end()
    await lab.reply("input()")


async def test_other_requests_go_to_the_kernel_and_unknown_channels_nowhere(bench: Bench, lab: Client) -> None:
    await lab.send("complete_request", {"code": "x."}, msg_id="c")
    for channel, msg_type in (("stdin", "execute_request"), ("iopub", "stream"), ("iopub", "execute_request")):
        await lab.send(msg_type, {"code": "x"}, channel=channel)
    assert sent_to_kernel(bench) == ["complete_request"]
    assert bench.store.runs == {}


async def test_a_link_that_breaks_under_a_run_holds_up_no_interrupt(bench: Bench, lab: Client) -> None:
    await lab.execute("sleep")
    kernel = await bench.sent("sleep")
    bench.engine.disconnect(kernel.kernel_id)
    asking = asyncio.ensure_future(lab.send("kernel_info_request"))
    await asyncio.sleep(0.01)
    bench.engine.dial(kernel.kernel_id)
    async with asyncio.timeout(2):
        await asking
    assert sent_to_kernel(bench)[-1] == "kernel_info_request"
    kernel.end()
    await lab.reply("sleep")


async def test_while_the_gateway_stops_nobody_is_let_in_and_cells_are_refused(bench: Bench, lab: Client) -> None:
    await bench.service.drain(0)
    with pytest.raises(Draining):
        await bench.service.attach(ANONYMOUS, S, None)
    await lab.execute("x")
    assert "Nothing was run" in (await lab.reply("x"))["evalue"]


async def test_a_connection_that_comes_to_nothing_gives_its_place_back(bench: Bench) -> None:
    await bench.create()

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    bench.store.list_runs = broken  # type: ignore[assignment]
    for number in range(40):
        with pytest.raises(RuntimeError):
            await bench.service.attach(ANONYMOUS, S, f"client {number}")


async def test_of_two_connections_of_one_client_the_later_one_hears_also_if_the_first_comes_up_last(
    bench: Bench,
) -> None:
    await bench.create()
    with held(bench.store, "list_runs") as listing:
        slow = asyncio.ensure_future(bench.service.attach(ANONYMOUS, S, "lab"))
        await until(lambda: listing.count == 1)
        second = await Client.attach(bench, "lab")
    first = await slow
    replaced: list[str] = []
    first.on_replaced(lambda: replaced.append("first"))
    assert replaced == ["first"]
    first.disconnect()
    await second.execute("x")
    (await bench.sent("x")).end("out")
    await second.reply("x")
    assert second.screen.shown == {"x": "out"}


async def test_a_connection_that_is_over_takes_nothing_that_is_the_next_ones(bench: Bench) -> None:
    await bench.create()
    first = await bench.service.attach(ANONYMOUS, S, "lab")
    first.disconnect()
    state = first._state
    state.outbox.put(message("stream"))
    assert await first.next_item() is None
    second = await bench.service.attach(ANONYMOUS, S, "lab")
    assert await second.next_item() is not None
    first.confirm(second.sent)
    assert len(state.outbox._unconfirmed) == 1


async def test_an_odd_name_of_a_session_is_no_obstacle(bench: Bench) -> None:
    await bench.create(SessionId("a b/\u4e09"))
    assert bench.service.session_of_kernel(ANONYMOUS, "a b/\u4e09").session.session_id == "a b/\u4e09"


async def test_what_a_client_asks_of_a_gateway_that_has_closed_loses_no_variables(bench: Bench, lab: Client) -> None:
    before = bench.session()
    await bench.service.close()
    await lab.send("complete_request", {"code": "x", "cursor_pos": 1})
    await asyncio.sleep(0.02)
    assert bench.session() == before
    assert before.kernel_id in bench.engine.sandboxes
    assert "is shutting down" in lab.told("stream")[-1]["text"]


# --- a supervisor whose link is down ----------------------------------------------------------------------------------


async def test_what_is_asked_while_the_link_is_down_is_answered_when_it_is_up_again(bench: Bench) -> None:
    await bench.create()
    lab = await Client.attach(bench)
    await lab.execute("x")
    kernel = await bench.sent("x")
    bench.engine.disconnect(kernel.kernel_id)
    async with asyncio.timeout(5):
        await lab.send("complete_request", msg_id="complete")
        await lab.send("interrupt_request", channel="control", msg_id="interrupt")
        await lab.send("comm_msg", msg_id="slider")
    bench.engine.dial(kernel.kernel_id)
    assert sent_to_kernel(bench) == ["complete_request", "comm_msg"]
    assert kernel.interrupts() == [kernel.msg_id]
    msg_id = kernel.link.request_ids()[0]
    bench.engine.publish(kernel.kernel_id, "complete_reply", msg_id, {"status": "ok"}, channel="shell")
    await lab.receives("complete_reply", "complete")
    bench.engine.disconnect(kernel.kernel_id)
    bench.engine.dial(kernel.kernel_id)
    assert sent_to_kernel(bench) == []
    kernel.interrupted()
    await lab.reply("x")


@pytest.mark.parametrize("over_jupyter", [False, True])
async def test_an_answer_that_is_given_while_the_link_is_down_reaches_the_code(
    bench: Bench, *, over_jupyter: bool
) -> None:
    await bench.create()
    lab = await Client.attach(bench)
    if over_jupyter:
        await lab.execute("input()")
    else:
        await bench.record("input()", session_id=S, allow_stdin=True)
    kernel = await bench.sent("input()")
    run_id = bench.stored().run.run_id
    kernel.publish("input_request", {"prompt": "? ", "password": False}, channel="stdin")
    bench.engine.disconnect(kernel.kernel_id)
    if over_jupyter:
        await lab.send("input_reply", {"value": "42"}, channel="stdin")
    else:
        await bench.service.answer_input(ANONYMOUS, run_id, "42")
    assert not bench.service.waits_for_input(run_id)
    bench.engine.dial(kernel.kernel_id)
    (frame,) = kernel.link.binary
    channel, parts = protocol.decode_message(frame)
    assert (channel, json.loads(parts[3])["value"]) == ("stdin", "42")
    assert json.loads(parts[0])[protocol.QUESTION_ID]
    kernel.end("thanks")
    assert (await bench.service.result(run_id)).output == "thanks"


async def test_an_older_supervisor_gets_no_answer_late_and_whoever_gave_it_may_give_it_again(bench: Bench) -> None:
    await bench.create()
    kernel_id = bench.session().kernel_id
    assert kernel_id is not None
    bench.engine.supervisors[kernel_id].names_forwarded = False
    bench.engine.disconnect(kernel_id)
    bench.engine.dial(kernel_id)
    await bench.record("input()", session_id=S, allow_stdin=True)
    kernel = await bench.sent("input()")
    run_id = bench.stored().run.run_id
    kernel.publish("input_request", {"prompt": "? ", "password": False}, channel="stdin")
    bench.engine.disconnect(kernel_id)
    with pytest.raises(Unavailable):
        await bench.service.answer_input(ANONYMOUS, run_id, "42")
    bench.engine.dial(kernel_id)
    assert kernel.link.binary == []
    await bench.service.answer_input(ANONYMOUS, run_id, "42")
    assert len(kernel.link.binary) == 1
    kernel.end()
    await bench.service.result(run_id)
