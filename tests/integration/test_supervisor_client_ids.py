"""A real kernel behind a real supervisor, and requests with a client's msg_id beside the gateway's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from supervised import Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard
from kernel_image.protocol import CLIENT_ID, encode_message
from sessions.kernels.messages import RequestBuilder
from sessions.model import JupyterRequest

SEEN = "get_ipython().kernel.get_parent()['header']['msg_id']"


@pytest.fixture
async def kernel(short_dir: Path, switchboard: SupervisorSwitchboard) -> AsyncIterator[Supervised]:
    async with supervised(short_dir, switchboard) as kernel:
        yield kernel


def send(kernel: Supervised, ours: str, theirs: str, code: str) -> None:
    header = {"msg_id": theirs, "msg_type": "execute_request", "session": "notebook"}
    jupyter = JupyterRequest(header, {}, {"allow_stdin": True}, "a")
    kernel.send_frame(RequestBuilder().execute(ours, code, jupyter=jupyter))


def ask(kernel: Supervised, channel: str, msg_type: str, ours: str, theirs: str) -> None:
    header = {"msg_id": ours, "msg_type": msg_type, "session": "s", "username": "u", "version": "5.4"}
    parts = [json.dumps(part).encode() for part in ({**header, CLIENT_ID: theirs}, {}, {}, {})]
    kernel.send_frame(encode_message(channel, parts))


def answered(kernel: Supervised, msg_type: str, ours: str) -> bool:
    return any((frame.msg_type, frame.parent_id) == (msg_type, ours) for frame in kernel.frames)


async def test_code_sees_its_clients_id_and_the_gateway_its_own(kernel: Supervised) -> None:
    send(kernel, "run.1.0000abcd", "theirs", f"print({SEEN}); open('file', 'w').write('x')")
    run = await kernel.end_of("run.1.0000abcd")
    assert run.text() == "theirs\n"
    assert run.files() == {"file": b"x"}
    assert {frame.parent_id for frame in run.frames if frame.channel} == {"run.1.0000abcd"}


@pytest.mark.parametrize("channel", ["shell", "control"])
async def test_other_requests_are_answered_under_our_id(kernel: Supervised, channel: str) -> None:
    ask(kernel, channel, "kernel_info_request", "ours", "theirs")
    await kernel.until(partial(answered, kernel, "kernel_info_reply", "ours"))
    assert not answered(kernel, "kernel_info_reply", "theirs")


async def test_two_requests_of_one_id_are_told_apart(kernel: Supervised) -> None:
    send(kernel, "one.1.0000abcd", "same", f"import time; time.sleep(0.5); print('one', {SEEN})")
    send(kernel, "two.1.0000abcd", "same", f"print('two', {SEEN})")
    assert (await kernel.end_of("one.1.0000abcd")).text() == "one same\n"
    assert (await kernel.end_of("two.1.0000abcd")).text() == "two two.1.0000abcd\n"
    send(kernel, "three.1.0000abcd", "same", f"print('three', {SEEN})")
    assert (await kernel.end_of("three.1.0000abcd")).text() == "three same\n"


async def test_what_a_thread_prints_later_belongs_to_its_request(kernel: Supervised) -> None:
    late = "import threading\nthreading.Timer(0.5, lambda: print('late', flush=True)).start()"
    send(kernel, "one.1.0000abcd", "theirs", late)
    await kernel.end_of("one.1.0000abcd")
    await kernel.printed("late")
    (frame,) = [frame for frame in kernel.frames if "late" in str(frame.content.get("text"))]
    assert frame.parent_id == "one.1.0000abcd"


async def test_a_question_and_an_interrupt_go_by_our_id(kernel: Supervised) -> None:
    send(kernel, "one.1.0000abcd", "theirs", "print('hello', input())\nimport time; time.sleep(60)")
    await kernel.until(partial(answered, kernel, "input_request", "one.1.0000abcd"))
    kernel.send_frame(RequestBuilder().input_reply("answer", "Ada", {}))
    await kernel.printed("hello Ada")
    kernel.interrupt("one.1.0000abcd")
    run = await kernel.end_of("one.1.0000abcd")
    assert (run.end.msg_type, run.reply()["ename"]) == ("done", "KeyboardInterrupt")


async def test_after_a_reconnect_and_a_restart_the_ids_are_still_told_apart(kernel: Supervised) -> None:
    send(kernel, "one.1.0000abcd", "theirs", "import time; time.sleep(1); print('done')")
    await kernel.reconnect()
    assert kernel.hellos[-1]["outstanding"] == ["one.1.0000abcd"]
    assert (await kernel.end_of("one.1.0000abcd")).text() == "done\n"
    send(kernel, "two.1.0000abcd", "theirs", "print('before', flush=True); import os; os._exit(3)")
    run = await kernel.end_of("two.1.0000abcd")
    assert (run.end.msg_type, run.text()) == ("died", "before\n")
    await kernel.ready(generation=2)
    send(kernel, "three.1.0000abcd", "theirs", f"print({SEEN})")
    assert (await kernel.end_of("three.1.0000abcd")).text() == "theirs\n"


async def test_a_parent_that_code_has_made_up_ends_nothing(kernel: Supervised) -> None:
    forge = """
kernel = get_ipython().kernel
for made_up in ('theirs', 'other', '', None, 7, [], {'a': 1}):
    parent = {'msg_id': made_up, 'msg_type': 'execute_request'}
    kernel.session.send(kernel.iopub_socket, 'status', {'execution_state': 'idle'}, parent=parent)
print('goes on')
"""
    send(kernel, "one.1.0000abcd", "theirs", forge)
    assert (await kernel.end_of("one.1.0000abcd")).end.msg_type == "done"
    await kernel.printed("goes on")  # behind its end, perhaps: the code has said itself that it is idle
    assert (await kernel.run("1 + 1")).value() == "2"
