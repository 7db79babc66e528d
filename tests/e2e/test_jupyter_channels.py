"""A kernel's WebSocket, frame by frame: both framings, what clients leave out or add, and who gets which message."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from itertools import groupby

import pytest
import pytest_asyncio
from jupyter_client_rig import NUMBERED, Channels, Jupyter, numbers, only_these_kernels, visiting
from jupyter_messages import Message, text_of
from serve_rig import Gateway
from websockets.exceptions import ConnectionClosed, InvalidStatus

COMM_TARGET = """
from ipykernel.comm import Comm
def echo(comm, opened):
    def back(message):
        comm.send(message["content"]["data"], buffers=[bytes(part)[::-1] for part in message["buffers"]])
    comm.on_msg(back)
get_ipython().kernel.comm_manager.register_target("echo", echo)
"""

GARBAGE: list[str | bytes] = [
    "",
    "no JSON",
    "[]",
    "{}",
    '{"channel": "nowhere", "header": {"msg_id": "1", "msg_type": "execute_request"}, "content": {"code": "1"}}',
    '{"channel": "shell", "header": 7, "parent_header": {}, "metadata": {}, "content": {}}',
    b"",
    b"\x00",
    b"\xff" * 64,
    b"\x05" + b"\x00" * 7,
    b"\x00\x00\x00\x02\x00\x00\x00\x0c\x7f\xff\xff\xff{}",
]

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def kernel_ids(gateway: Gateway) -> Iterator[list[str]]:
    """The kernel that the tests here share, once there is one."""
    kernel_ids: list[str] = []
    with only_these_kernels(gateway):
        yield kernel_ids


@pytest_asyncio.fixture
async def jupyter(gateway: Gateway) -> AsyncIterator[Jupyter]:
    """Alice, who leaves her kernels there."""
    async with visiting(gateway, deletes=False) as jupyter:
        yield jupyter


@pytest_asyncio.fixture
async def kernel_id(jupyter: Jupyter, kernel_ids: list[str]) -> str:
    """It is restarted for each test, and replaced once a test has deleted it."""
    if kernel_ids and await jupyter.status(kernel_ids[-1]) == 200:
        await jupyter.until_nobody_is_connected(kernel_ids[-1])
        restarted = await jupyter.http.post(f"/api/kernels/{kernel_ids[-1]}/restart")
        assert restarted.status_code == 200, restarted.text
    else:
        kernel_ids.append(await jupyter.start())
    return kernel_ids[-1]


@pytest_asyncio.fixture(params=[True, False], ids=["v1", "legacy"])
async def channels(jupyter: Jupyter, kernel_id: str, request: pytest.FixtureRequest) -> AsyncIterator[Channels]:
    """A connection in either framing."""
    async with jupyter.channels(kernel_id, v1=request.param) as channels:
        yield channels


async def works(jupyter: Jupyter, kernel_id: str) -> None:
    """A newcomer can use this kernel."""
    async with jupyter.channels(kernel_id) as channels:
        assert (await channels.run("print('here')"))[1] == "here\n"


async def test_a_run_is_told_in_the_order_of_the_protocol(channels: Channels) -> None:
    msg_id = await channels.execute("print('out')\nimport sys; print('err', file=sys.stderr)\n1 + 1")
    reply = await channels.reply(msg_id)
    assert (reply.channel, reply.type, reply.content["status"]) == ("shell", "execute_reply", "ok")
    assert reply.content["execution_count"] == 1
    told = [message for message in channels.heard if message.parent_id == msg_id and message.channel == "iopub"]
    kinds = [kind for kind, _ in groupby(told, key=lambda message: message.type)]  # a stream may come in pieces
    assert kinds == ["status", "execute_input", "stream", "execute_result", "status"]
    assert told[0].is_state("busy")
    assert told[-1].is_state("idle")
    for name, text in (("stdout", "out\n"), ("stderr", "err\n")):
        pieces = [message.content for message in told if message.type == "stream"]
        assert "".join(piece["text"] for piece in pieces if piece["name"] == name) == text
    assert told[-2].content["data"] == {"text/plain": "2"}
    assert all(message.parent_header["session"] == channels.session for message in told)


async def test_buffers_go_both_ways_unchanged(channels: Channels) -> None:
    await channels.run(COMM_TARGET)
    opening = {"comm_id": "c1", "target_name": "echo", "data": {}}
    await channels.send(channels.message("comm_open", opening))
    sent = [b"\x00\x01\x02\xff", b"second"]
    message = channels.message("comm_msg", {"comm_id": "c1", "data": {"n": 1}}, buffers=sent)
    await channels.send(message)
    back = await channels.until(lambda message: message.type == "comm_msg")
    assert back.content == {"comm_id": "c1", "data": {"n": 1}}
    assert back.buffers == [part[::-1] for part in sent]
    assert back.parent_id == message.header["msg_id"]


async def test_a_message_without_a_channel_is_for_shell(jupyter: Jupyter, kernel_id: str) -> None:
    async with jupyter.channels(kernel_id, v1=False) as channels:
        reply = await channels.reply(await channels.send(channels.message("kernel_info_request", {}, channel=None)))
        assert (reply.channel, reply.type) == ("shell", "kernel_info_reply")
        assert reply.content["language_info"]["name"] == "python"


@pytest.mark.parametrize(
    ("fields", "without"),
    [
        ({}, "date"),
        ({"date": 1767322800.5}, ""),
        ({"date": 1767322800000}, ""),
        ({"subshell_id": None, "x-trace": "a", "x-depth": 1}, ""),
        ({"version": "5.0"}, "username"),
    ],
    ids=["no date", "seconds", "milliseconds", "unknown fields", "no username"],
)
async def test_a_header_comes_back_as_it_was_sent(channels: Channels, fields: dict[str, object], without: str) -> None:
    message = channels.message("execute_request", {"code": "print(1)", "silent": False})
    message.header.update(fields)
    message.header.pop(without, None)
    reply = await channels.reply(await channels.send(message))
    assert reply.content["status"] == "ok", reply.content
    answers = [answer for answer in channels.heard if answer.parent_id == message.header["msg_id"]]
    assert {answer.type for answer in answers} >= {"execute_reply", "status", "stream"}
    for answer in answers:
        for name in message.header.keys() - {"date", "version"}:
            assert answer.parent_header[name] == message.header[name], answer


async def test_buffers_that_are_an_empty_object_are_none(jupyter: Jupyter, kernel_id: str) -> None:
    async with jupyter.channels(kernel_id, v1=False) as channels:
        message = channels.message("execute_request", {"code": "print(1)", "silent": False})
        body = {**vars(message), "buffers": {}}
        await channels.ws.send(json.dumps(body))
        msg_id = message.header["msg_id"]
        assert (await channels.reply(msg_id)).content["status"] == "ok"
        assert text_of(channels.heard, msg_id) == "1\n"


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
async def test_garbage_hurts_nobody(jupyter: Jupyter, kernel_id: str, *, v1: bool) -> None:
    """Neither who is at the same kernel nor, as long as it is little, who has sent it."""
    async with jupyter.channels(kernel_id) as other:
        await other.run("x = 1")
        for garbage in GARBAGE:
            msg_id = await other.execute("import time; time.sleep(0.1); print(x)")
            async with jupyter.channels(kernel_id, v1=v1) as sender:
                await sender.ws.send(garbage)
                assert (await sender.run("print(x)"))[1] == "1\n", garbage
            assert (await other.reply(msg_id)).content["status"] == "ok", garbage
            assert text_of(other.heard, msg_id) == "1\n", garbage


async def test_replies_go_to_who_asked_and_output_to_all(jupyter: Jupyter, kernel_id: str) -> None:
    """Both say the same `session`, in the URL and in their headers, as one Lab page opened twice does."""
    session = uuid.uuid4().hex
    async with jupyter.channels(kernel_id) as first, jupyter.channels(kernel_id, v1=False) as second:
        first.session = second.session = session
        asked = await first.execute("print('first')")
        also_asked = await second.execute("print('second')")
        completed = await second.send(second.message("complete_request", {"code": "prin", "cursor_pos": 4}))
        await first.reply(asked)
        await second.reply(also_asked)
        await second.reply(completed)
        await asyncio.gather(first.quiet(), second.quiet())
        for channels, own in ((first, {asked}), (second, {also_asked, completed})):
            replies = [message for message in channels.heard if message.channel == "shell"]
            assert {message.parent_id for message in replies} == own
            assert (text_of(channels.heard, asked), text_of(channels.heard, also_asked)) == ("first\n", "second\n")


async def test_input_is_asked_of_who_runs_the_code(jupyter: Jupyter, kernel_id: str) -> None:
    async with jupyter.channels(kernel_id) as asker, jupyter.channels(kernel_id, v1=False) as other:
        msg_id = await asker.execute("name = input('name? ')\nprint(name)")
        request = await asker.until(lambda message: message.type == "input_request")
        assert (request.channel, request.parent_id) == ("stdin", msg_id)
        assert request.content == {"prompt": "name? ", "password": False}
        answer = asker.message("input_reply", {"value": "Ada"}, channel="stdin", parent_header=request.header)
        await asker.send(answer)
        assert (await asker.reply(msg_id)).content["status"] == "ok"
        assert text_of(asker.heard, msg_id) == "Ada\n"
        await other.until(lambda message: message.parent_id == msg_id and message.is_state("idle"))
        assert {message.channel for message in other.heard if message.parent_id == msg_id} == {"iopub"}
        refused, _ = await asker.run("input()", allow_stdin=False)
        assert refused.content["ename"] == "StdinNotImplementedError"


async def test_an_interrupt_on_control_ends_the_run_and_not_the_kernel(channels: Channels) -> None:
    await channels.run("x = 42")
    msg_id = await channels.execute(NUMBERED.format(count=600, pause_s=0.1))
    await channels.until(lambda message: message.type == "stream")
    interrupt = await channels.send(channels.message("interrupt_request", {}, channel="control"))
    told = await channels.until(lambda message: message.parent_id == interrupt and message.channel == "control")
    assert (told.type, told.content["status"]) == ("interrupt_reply", "ok")
    reply = await channels.reply(msg_id)
    assert (reply.content["status"], reply.content["ename"]) == ("error", "KeyboardInterrupt")
    assert (await channels.run("print(x)"))[1] == "42\n"


async def test_an_interrupt_ends_a_widgets_callback_while_no_cell_runs(
    jupyter: Jupyter, kernel_id: str, channels: Channels
) -> None:
    register = (
        "def opened(comm, message):\n    comm.on_msg(spin)\n"
        "def spin(message):\n    print('spinning', flush=True)\n    while True: pass\n"
        "comm_manager = get_ipython().kernel.comm_manager\ncomm_manager.register_target('spin', opened)\n"
    )
    await channels.run(register)
    await channels.send(channels.message("comm_open", {"comm_id": "1", "target_name": "spin", "data": {}}))
    moved = await channels.send(channels.message("comm_msg", {"comm_id": "1", "data": {}}))
    said = await channels.until(lambda message: message.type == "stream" and message.parent_id == moved)
    assert said.content["text"] == "spinning\n"
    async with asyncio.timeout(60):
        while not any(message.parent_id == moved and message.is_state("idle") for message in channels.heard):
            assert (await jupyter.http.post(f"/api/kernels/{kernel_id}/interrupt")).status_code == 204
            await channels.quiet()
    assert (await channels.run("print('here')"))[1] == "here\n"


async def test_what_waits_behind_an_error_is_aborted(channels: Channels) -> None:
    """Unless it says otherwise, and for what was sent before alone."""
    failing = await channels.execute("import time; time.sleep(0.5); 1/0")
    waiting = await channels.execute("print('not reached')")
    assert (await channels.reply(failing)).content["ename"] == "ZeroDivisionError"
    assert (await channels.reply(waiting)).content["status"] == "aborted"
    assert text_of(channels.heard, waiting) == ""
    assert (await channels.run("print('later')"))[1] == "later\n"


async def test_a_shutdown_request_deletes_the_kernel(jupyter: Jupyter, kernel_id: str) -> None:
    async with jupyter.channels(kernel_id) as channels:
        await channels.run("x = 1")
        asked = await channels.send(channels.message("shutdown_request", {"restart": False}, channel="control"))
        try:
            reply = await channels.until(lambda message: message.parent_id == asked and message.channel == "control")
            assert (reply.type, reply.content["restart"]) == ("shutdown_reply", False)
        except ConnectionClosed:
            pass  # It is gone sooner than it could be told.
    await jupyter.until_gone(kernel_id)
    with pytest.raises(InvalidStatus) as refused:
        async with jupyter.channels(kernel_id):
            pass
    assert refused.value.response.status_code == 404


async def test_a_kernel_that_dies_says_so_and_starts_again(channels: Channels) -> None:
    await channels.run("x = 1")
    msg_id = await channels.execute("print('before', flush=True)\nimport os; os._exit(1)")
    died: list[Message] = [
        await channels.until(lambda message: message.type == "execute_reply" or message.is_state("restarting"))
    ]
    died.append(await channels.until(lambda message: message.type == "execute_reply" or message.is_state("restarting")))
    (reply,) = (message for message in died if message.type == "execute_reply")
    assert (reply.parent_id, reply.channel, reply.content["status"]) == (msg_id, "shell", "error")
    assert reply.content["ename"]
    assert [message.type for message in died].count("status") == 1
    assert text_of(channels.heard, msg_id) == "before\n"
    after, text = await channels.run("print('x' in globals())")
    assert (after.content["status"], text) == ("ok", "False\n")


async def test_a_restart_is_told_to_all_who_are_connected(jupyter: Jupyter, kernel_id: str) -> None:
    async with jupyter.channels(kernel_id) as channels, jupyter.channels(kernel_id, v1=False) as other:
        await channels.run("x = 1")
        restarted = await jupyter.http.post(f"/api/kernels/{kernel_id}/restart")
        assert (restarted.status_code, restarted.json()["id"]) == (200, kernel_id)
        for connection in (channels, other):
            assert (await connection.run("print('x' in globals())"))[1] == "False\n"


async def test_another_tenants_kernel_is_not_there(jupyter: Jupyter, kernel_id: str) -> None:
    for stranger, statuses in (("bob", {404}), ("nobody", {401, 403}), ("", {401, 403})):
        with pytest.raises(InvalidStatus) as refused:
            async with Jupyter(jupyter.url, stranger, jupyter.http).channels(kernel_id):
                pass
        assert refused.value.response.status_code in statuses
    await works(jupyter, kernel_id)


async def test_frames_that_are_sent_at_once_are_all_answered(jupyter: Jupyter, kernel_id: str) -> None:
    """Nothing waits for the kernel to be ready, nor for an answer before the next request."""
    async with jupyter.channels(kernel_id) as channels:
        asked = [await channels.execute(f"print({number})") for number in range(50)]
        for msg_id in asked:
            await channels.reply(msg_id)
        assert "".join(text_of(channels.heard, msg_id) for msg_id in asked) == numbers(50)
        replies = [message.parent_id for message in channels.heard if message.type == "execute_reply"]
        assert replies == asked
