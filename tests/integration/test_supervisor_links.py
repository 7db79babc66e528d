"""Both ends of a link that breaks: a real supervisor, and the gateway's `Kernel`. Nothing is lost, nothing is twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from doubles import until
from supervised import Supervised, supervised

from gateway.host.clock import SystemClock
from gateway.supervisors import SupervisorSwitchboard
from kernel_image import protocol
from sessions.kernels.kernel import Kernel
from sessions.kernels.link.handshake import Handshake
from sessions.kernels.messages import Message
from sessions.kernels.outcomes import Died, Done
from sessions.ports import Link, LinkListener
from sessions.settings import Timeouts

DIES_WHEN_TOLD = """
import os, threading, time
def die():
    while not os.path.exists('die'):
        time.sleep(0.01)
    os._exit(1)
threading.Thread(target=die).start()
"""


class Lines:
    """The kernel of a supervisor that an earlier gateway has left; the test breaks its link, and lets it dial again."""

    uncommitted_seq: int | None = None

    def __init__(self, supervisor: Supervised) -> None:
        self.supervisor = supervisor
        self.timeouts = Timeouts(reconnect_timeout_s=60.0)
        self.kernel = Kernel(
            supervisor.kernel_id, "python3", "the credential", SystemClock(), self.timeouts, adopted=True
        )
        self.kernel.tap = self
        self.heard: list[tuple[str, str, dict[str, Any]]] = []
        self.ends: list[Done | Died] = []
        self.link: Link | None = None
        self.is_open = True

    def accept(self, link: Link) -> LinkListener:
        if not self.is_open:
            link.close("no gateway here")
        self.link = link
        return Handshake(self.kernel, link, self.timeouts.hello_timeout_s)

    async def cut(self) -> None:
        assert self.link is not None
        self.is_open = False
        self.link.close("dropped by the test")
        await until(lambda: not self.kernel.is_linked())

    async def mend(self) -> None:
        self.is_open = True
        await until(self.kernel.is_ready)

    def request(self, msg_type: str, channel: str = "shell", **content: Any) -> str:
        header = {"msg_id": uuid4().hex, "msg_type": msg_type, "session": "s", "username": "u", "version": "5.4"}
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self.kernel.forward(header["msg_id"], protocol.encode_message(channel, parts))
        return header["msg_id"]

    def answers(self, msg_type: str) -> list[str]:
        """What the messages of this type answer."""
        return [parent_id for name, parent_id, _ in self.heard if name == msg_type]

    def text(self) -> str:
        return "".join(content["text"] for name, _, content in self.heard if name == "stream")

    # --- `KernelTap` and `RequestListener` ----------------------------------------------------------------------------

    def on_frame(self, frame: memoryview) -> None:
        _, parts = protocol.decode_message(frame)
        header, parent, content = (json.loads(parts[index]) for index in (0, 1, 3))
        self.heard.append((header["msg_type"], parent.get("msg_id", ""), content))

    def on_message(self, seq: int, message: Message) -> None:
        pass

    def on_gap(self, *_: Any) -> None:
        raise AssertionError("nothing is lost here")

    def on_end(self, end: Done | Died) -> None:
        self.ends.append(end)


@pytest.fixture
async def lines(short_dir: Path, switchboard: SupervisorSwitchboard) -> AsyncIterator[Lines]:
    async with supervised(short_dir, switchboard) as supervisor:
        lines = Lines(supervisor)
        supervisor.accept = lines.accept  # type: ignore[method-assign]
        switchboard.release(supervisor.kernel_id)
        switchboard.open(supervisor.kernel_id, supervisor.accept)
        await until(lines.kernel.is_ready)
        yield lines
        lines.kernel.hand_over("the test is over")


async def test_what_is_sent_while_the_link_is_down_is_answered_once_and_in_order(lines: Lines) -> None:
    await lines.cut()
    asked = [lines.request("kernel_info_request") for _ in range(5)]
    await lines.mend()
    await until(lambda: len(lines.answers("kernel_info_reply")) == 5)
    assert lines.answers("kernel_info_reply") == asked
    await lines.cut()
    await lines.mend()
    asked.append(lines.request("kernel_info_request"))
    await until(lambda: lines.answers("kernel_info_reply")[-1] == asked[-1])
    assert lines.answers("kernel_info_reply") == asked


async def test_an_answer_that_is_given_while_the_link_is_down_reaches_the_code(lines: Lines) -> None:
    lines.kernel.execute("run.1.0000abcd", "print(input(), input())", lines, allow_stdin=True)
    for count, value in enumerate(("one", "two"), start=1):
        await until(lambda: len(lines.answers("input_request")) == count)  # noqa: B023 - waited for at once
        await lines.cut()
        lines.kernel.answer_input(value)
        await lines.mend()
    await until(lambda: bool(lines.ends))
    assert lines.text() == "one two\n"


async def test_an_answer_to_code_that_was_interrupted_meanwhile_is_no_answer_to_the_next(lines: Lines) -> None:
    lines.kernel.execute("run.1.0000abcd", "input()", lines, allow_stdin=True)
    await until(lambda: bool(lines.answers("input_request")))
    stale = lines.kernel.question()
    lines.kernel.interrupt("run.1.0000abcd", 30.0)
    await until(lambda: bool(lines.ends))
    lines.kernel.execute("next.1.0000abcd", "print(input())", lines, allow_stdin=True)
    await until(lambda: len(lines.answers("input_request")) == 2)
    now, lines.kernel._question = lines.kernel._question, stale[protocol.QUESTION_ID]
    lines.kernel.answer_input("stale")
    lines.kernel._question = now
    lines.kernel.answer_input("meant")
    await until(lambda: len(lines.ends) == 2)
    assert lines.text() == "meant\n"


async def test_what_was_meant_for_a_kernel_that_died_meanwhile_is_not_sent_to_the_next(lines: Lines) -> None:
    lines.kernel.execute("run.1.0000abcd", DIES_WHEN_TOLD, lines)
    await until(lambda: bool(lines.ends))
    await lines.cut()
    generation = lines.kernel.generation
    lines.request("kernel_info_request")
    (lines.supervisor.work_dir / "die").touch()
    await until(lambda: lines.supervisor.log().count("kernel_ready") == 2)
    await lines.mend()
    await until(lambda: lines.kernel.generation > generation and lines.kernel.is_ready())
    later = lines.request("kernel_info_request")
    await until(lambda: bool(lines.answers("kernel_info_reply")))
    assert lines.answers("kernel_info_reply") == [later]
