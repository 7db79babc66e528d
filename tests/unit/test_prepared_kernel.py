"""What the supervisor asks a kernel of another language, and what of the answers anybody else sees."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kernel_image.prepared_kernel import PreparedKernel

FAILED = {"status": "error", "ename": "Error", "evalue": "Execution failed", "traceback": [], "execution_count": 1}


def message(msg_type: str, parent: str = "", content: Any = None, *, msg_id: str = "m") -> list[bytes]:
    headers = ({"msg_id": msg_id, "msg_type": msg_type}, {"msg_id": parent} if parent else {})
    return [*(json.dumps(header).encode() for header in headers), b"{}", json.dumps(content or {}).encode()]


def request(msg_id: str, code: str = "code", **options: Any) -> list[bytes]:
    parts = message("execute_request", content={"code": code}, msg_id=msg_id)
    return [*parts[:2], json.dumps({"cellblock": options}).encode(), parts[3]]


class Kernel:
    """A prepared kernel; `sent` are the codes that went to it, those of requests and those of our own questions."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.published: list[str] = []
        self.prepared = PreparedKernel(
            "functions", self.execute, lambda msg_type, *_: self.published.append(msg_type), 1 << 20
        )
        self.messages = os.dup(self.prepared.pipes.write_ends[2])
        self.prepared.pipes.publish_from_now()

    def execute(self, code: str) -> str:
        self.sent.append(code)
        return f"own-{len(self.sent)}"

    def send(self, msg_id: str, code: str = "code", **options: Any) -> None:
        with self.prepared.around("shell", request(msg_id, code, **options)):
            self.sent.append(code)

    def explain(self, **content: Any) -> None:
        os.write(self.messages, json.dumps({"type": "error", "content": content}).encode() + b"\n")


@pytest.fixture
async def kernel() -> AsyncIterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.prepared.pipes.close()
    os.close(kernel.messages)


async def test_a_run_that_succeeds_asks_nothing(kernel: Kernel) -> None:
    kernel.send("r")
    reply = message("execute_reply", "r", {"status": "ok"})
    assert kernel.prepared.received("shell", reply) == [reply]
    assert kernel.sent == ["code"]


async def test_the_reply_of_a_run_that_failed_waits_for_its_explanation(kernel: Kernel) -> None:
    kernel.send("r", "1 +")
    assert kernel.prepared.received("iopub", message("error", "r", FAILED)) == []
    assert kernel.prepared.received("shell", message("execute_reply", "r", FAILED)) == []
    assert kernel.prepared.received("iopub", message("error", "r", FAILED)) == []
    _, question = kernel.sent
    asked = json.loads(json.loads(question.removeprefix("functions.explain(").removesuffix(")")))
    assert asked == {"code": "1 +", "reply": FAILED, "interrupted": False}

    idle = message("status", "own-2", {"execution_state": "idle"})
    assert kernel.prepared.received("iopub", idle) == []
    kernel.explain(ename="SyntaxError", evalue="e", traceback=["t"])
    (released,) = kernel.prepared.received("shell", message("execute_reply", "own-2", {"status": "ok"}))
    assert json.loads(released[1]) == {"msg_id": "r"}
    assert json.loads(released[3]) == {**FAILED, "ename": "SyntaxError", "evalue": "e", "traceback": ["t"]}
    assert kernel.published == ["error"]


async def test_without_an_explanation_the_reply_is_as_it_came(kernel: Kernel) -> None:
    kernel.send("r")
    reply = message("execute_reply", "r", FAILED)
    assert kernel.prepared.received("shell", reply) == []
    assert kernel.prepared.received("shell", message("execute_reply", "own-2", FAILED)) == [reply]
    assert kernel.prepared.received("iopub", message("status", "own-2")) == []


async def test_an_interrupt_is_told_once_and_none_where_nothing_runs(kernel: Kernel) -> None:
    kernel.prepared.note_interrupt()
    kernel.send("before")
    kernel.prepared.received("shell", message("execute_reply", "before", FAILED))
    assert '\\"interrupted\\": false' in kernel.sent[-1]
    for msg_id, is_interrupted in (("first", True), ("second", False)):
        kernel.send(msg_id)
        if is_interrupted:
            kernel.prepared.note_interrupt()
        kernel.prepared.received("shell", message("execute_reply", msg_id, FAILED))
        assert f'\\"interrupted\\": {str(is_interrupted).lower()}' in kernel.sent[-1]


async def test_the_environment_is_set_before_a_run_and_put_back_behind_it(kernel: Kernel) -> None:
    kernel.send("r", env={"KEY": "it's"})
    literal = json.dumps(json.dumps({"KEY": "it's"}))
    assert kernel.sent == [f"functions.setEnvironment({literal})", "code", "functions.putEnvironmentBack()"]
    for own in ("own-1", "own-3"):
        assert kernel.prepared.received("shell", message("execute_reply", own, {"status": "ok"})) == []
        assert kernel.prepared.received("iopub", message("error", own, FAILED)) == []


@pytest.mark.parametrize(
    "parts",
    [
        [b"", b"", b"", b""],
        [b"{}", b"{}", b"{}", b"{}"],
        [b"[1]", b"[]", b"{}", b"{}"],
        message("execute_reply", "unknown", FAILED),
        message("execute_reply", "r", [1]),
        message("execute_reply", "r", {"status": "ok"}),
        message("error", "unknown", FAILED),
    ],
)
async def test_what_code_has_written_itself_passes(kernel: Kernel, parts: list[bytes]) -> None:
    kernel.send("r")
    assert kernel.prepared.received("shell", parts) == [parts]
