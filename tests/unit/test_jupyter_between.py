"""What a Jupyter client is sent while one of its runs is replayed: all that belongs to no run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from doubles import until
from jupyter_talk import Client, message
from workbench import Bench, Benches, Kernel, come_back, crash

from gateway.http.jupyter.replay import with_others
from kernel_image import protocol
from sessions.jupyter.message_queue import MessageQueue, Queued, Replay
from sessions.jupyter.messages import ClientMessage
from sessions.model import RunId

A, B = RunId("a"), RunId("b")


async def broken_in_mid_run(bench: Bench) -> tuple[Client, Kernel]:
    """A client that came back and is sent its run again, which goes on; and the kernel."""
    await bench.create()
    lab = await Client.attach(bench, confirms=False)
    await lab.execute("x")
    kernel = await bench.sent("x")
    kernel.print("one ")
    await lab.receives("stream")
    lab.disconnect()
    back = await Client.attach(bench)
    await until(lambda: back.screen.shown == {"x": "one "})
    return back, kernel


def answer(bench: Bench, kernel: Kernel, msg_type: str) -> None:
    """Answer the request that the kernel was sent last."""
    _, parts = protocol.decode_message(kernel.link.binary[-1])
    msg_id = json.loads(parts[0])["msg_id"]
    bench.engine.publish(kernel.kernel_id, "status", msg_id, {"execution_state": "busy"})
    bench.engine.publish(kernel.kernel_id, msg_type, msg_id, {"status": "ok"}, channel="shell")
    bench.engine.publish(kernel.kernel_id, "status", msg_id, {"execution_state": "idle"})


async def test_who_came_back_in_mid_run_hears_comms_completions_and_the_reply_to_an_interrupt(bench: Bench) -> None:
    back, kernel = await broken_in_mid_run(bench)
    kernel.publish("comm_open", {"comm_id": "w", "target_name": "t", "data": {}})
    await back.receives("comm_open", "x")
    await back.send("complete_request", {"code": "x"}, msg_id="complete")
    answer(bench, kernel, "complete_reply")
    await back.receives("complete_reply", "complete")
    await until(lambda: back.states("complete") == ["busy", "idle"])
    bench.engine.publish(kernel.kernel_id, "comm_msg", "nobody's", {"comm_id": "w", "data": {}})
    await back.receives("comm_msg")
    await back.send("interrupt_request", channel="control", msg_id="interrupt")
    await back.receives("interrupt_reply", "interrupt")
    assert kernel.interrupts() == [kernel.msg_id]
    assert back.told("execute_reply") == []
    kernel.print("two")
    kernel.end()
    assert (await back.reply("x"))["status"] == "ok"
    assert back.screen.shown == {"x": "one two"}


async def test_what_cannot_be_run_is_answered_in_mid_run_too(bench: Bench) -> None:
    back, kernel = await broken_in_mid_run(bench)
    await back.send("execute_request", {"code": 7}, msg_id="odd")
    assert (await back.reply("odd"))["status"] == "error"
    kernel.end()
    await back.reply("x")


async def test_who_found_the_next_gateway_hears_replies_though_more_of_its_cells_wait(benches: Benches) -> None:
    (bench,) = benches
    await bench.create()
    lab = await Client.attach(bench)
    for code in ("x", "y", "z"):
        await lab.execute(code)
    kernel = await bench.sent("x")
    bench = await crash(benches)
    back = await Client.attach(bench)
    come_back(bench, kernel)
    await until(lambda: bool(back.told("clear_output", "x")))
    await back.send("kernel_info_request", msg_id="info")
    answer(bench, kernel, "kernel_info_reply")
    await back.receives("kernel_info_reply", "info")
    assert back.told("execute_reply") == []
    for code in ("x", "y", "z"):
        (await bench.sent(code)).end(code)
        await back.reply(code)
    assert back.screen.shown == {"x": "x", "y": "y", "z": "z"}


async def test_what_goes_between_and_has_not_arrived_comes_again(bench: Bench) -> None:
    back, kernel = await broken_in_mid_run(bench)
    back.disconnect()
    deaf = await Client.attach(bench, confirms=False)
    await until(lambda: deaf.screen.shown == {"x": "one "})
    kernel.publish("comm_open", {"comm_id": "w", "target_name": "t", "data": {}})
    await deaf.receives("comm_open")
    deaf.disconnect()
    again = await Client.attach(bench)
    await again.receives("comm_open", "x")
    kernel.end()
    await again.reply("x")
    assert len(again.told("comm_open")) == 1


async def test_what_comes_as_a_replay_ends_is_not_left_out() -> None:
    others: asyncio.Queue[ClientMessage] = asyncio.Queue()
    has_ended = asyncio.Event()

    async def replay() -> AsyncIterator[ClientMessage]:
        yield reply("replayed")
        await has_ended.wait()

    async def next_ahead() -> ClientMessage:
        return await others.get()

    def end() -> None:
        has_ended.set()
        others.put_nowait(comm("one"))
        others.put_nowait(comm("two"))

    told = []
    async for one, is_of_replay in with_others(replay(), next_ahead):
        told.append(one.msg_id)
        if is_of_replay:
            asyncio.get_running_loop().call_later(0.02, end)  # both are waited for by then
        else:
            await asyncio.sleep(0.02)
    assert told == ["replayed", "one", "two"]


async def test_the_death_of_the_kernel_is_told_behind_the_run_that_it_ended(bench: Bench) -> None:
    back, kernel = await broken_in_mid_run(bench)
    kernel.died("signal", signal=9)
    kernel.next_process()
    assert (await back.reply("x"))["ename"] == "KernelDied"
    await until(lambda: "restarting" in back.states())
    order = [one.msg_type for one in back.messages if one.msg_type == "execute_reply" or not one.parent_id]
    assert order[0] == "execute_reply"
    assert back.states("") == ["restarting", "starting", "idle"]


async def test_a_client_that_confirms_nothing_is_sent_no_more_between_than_can_be_sent_again(bench: Bench) -> None:
    back, kernel = await broken_in_mid_run(bench)
    back._confirms = False
    for number in range(600):
        kernel.publish("comm_msg", {"comm_id": "w", "data": {"number": number}})
        await asyncio.sleep(0)
    await until(lambda: len(back.told("comm_msg")) >= 200)
    await asyncio.sleep(0.05)
    assert len(back.told("comm_msg")) <= 256
    back.connection.confirm(back.connection.sent)
    await until(lambda: len(back.told("comm_msg")) > 300)
    kernel.end()


# --- the order --------------------------------------------------------------------------------------------------------


def comm(text: str) -> ClientMessage:
    return message("comm_msg", {"text": text}, msg_id=text)


def reply(text: str) -> ClientMessage:
    return message("complete_reply", msg_id=text, channel="shell")


def status(text: str) -> ClientMessage:
    return message("status", msg_id=text)


@pytest.mark.parametrize(
    ("items", "ahead"),
    [
        ([Queued(comm("1")), Replay(B), Queued(reply("2")), Queued(comm("3"))], "1 2 3"),
        ([Queued(status("b"), B), Queued(comm("1")), Queued(reply("2"))], "1 2"),
        ([Queued(status("b"), B), Queued(comm("not"), during=B), Queued(reply("1")), Queued(comm("nor"))], "1"),
        ([Queued(comm("1"), during=B), Queued(status("b"), B), Queued(comm("not"), during=B)], "1"),
        ([Queued(status("b"), B), Queued(comm("1"), during=A)], "1"),
        ([Queued(comm("1")), Queued(status("died"), keeps_place=True), Queued(reply("not")), Queued(comm("nor"))], "1"),
    ],
)
def test_what_goes_ahead_keeps_its_order_and_leaves_none_behind_that_it_belongs_to(
    items: list[Queued | Replay], ahead: str
) -> None:
    queue = MessageQueue()
    for item in items:
        queue.append(item)
    assert list(queue) == items
    taken = []
    while queue.has_ahead:
        taken.append(queue.pop_ahead())
    assert " ".join(one.message.msg_id for one in taken) == ahead
    assert list(queue) == [item for item in items if item not in taken]
    rest = [queue.pop() for _ in range(len(queue))]
    assert rest == [item for item in items if item not in taken]
    assert (len(queue), queue.size_bytes) == (0, 0)
    queue.append(Queued(comm("later"), during=B))
    assert queue.has_ahead


def test_all_of_it_in_order_is_what_was_put_in() -> None:
    queue = MessageQueue()
    items = [Queued(comm("1")), Replay(A), Queued(reply("2")), Queued(status("3"), B), Queued(comm("4"), during=B)]
    for item in items:
        queue.append(item)
    assert [queue.pop() for _ in items] == items
