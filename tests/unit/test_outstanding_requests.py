"""What is told of requests that the kernel's death has cut short: which ran, which may have, and which never did."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kernel_image import accounting, missing_replies, outstanding, protocol
from kernel_image.artifacts import WorkingDirectory
from kernel_image.outstanding import OutstandingRequests
from kernel_image.parity import Likeness
from kernel_image.supervisor import Supervisor


class Told:
    """A relay that keeps what it is told."""

    def __init__(self) -> None:
        self.controls: list[dict[str, Any]] = []
        self.messages: list[tuple[str, bool]] = []
        self.types: list[tuple[str, str]] = []

    def put_control(self, op: str, **fields: Any) -> None:
        self.controls.append({"op": op, **fields})

    def put_message(self, channel: str, parts: list[bytes], *, droppable: bool) -> bool:
        self.messages.append((channel, droppable))
        header, parent = (json.loads(part or b"{}") for part in parts[:2])
        self.types.append((header.get("msg_type", ""), parent.get("msg_id", "")))
        return bool(parts)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def requests(tmp_path: Path, told: Told) -> OutstandingRequests:
    settings = protocol.SupervisorSettings("k", "c", "unix:/s", str(tmp_path), "/ipc", "/home")
    meter = accounting.find_meter(own_container=False)
    work = WorkingDirectory(str(tmp_path), 10)
    return OutstandingRequests(settings, told, meter, work, lambda: None)  # type: ignore[arg-type]


def accept(requests: OutstandingRequests, *msg_ids: Any, is_taken: bool = True) -> list[bool]:
    headers = [json.dumps({"msg_id": msg_id, "msg_type": "execute_request"}).encode() for msg_id in msg_ids]
    return [requests.accept([header, b"{}", b"{}", b"{}"], 1 if is_taken else None) for header in headers]


def reply(requests: OutstandingRequests, msg_id: str, content: bytes = b"{}") -> bool:
    parent = json.dumps({"msg_id": msg_id}).encode()
    return requests.relay("shell", [b'{"msg_type": "execute_reply"}', parent, b"{}", content], {})


async def test_only_what_was_behind_a_request_without_an_answer_was_never_run(
    requests: OutstandingRequests, told: Told
) -> None:
    accept(requests, "a", "b", "c")
    await requests.fail_all("exited", exit_code=0, signal_number=None)
    assert (told.controls[-1]["msg_id"], told.controls[-1]["never_run"]) == ("a", ["b", "c"])


async def test_what_was_behind_a_request_with_an_answer_may_have_begun(
    requests: OutstandingRequests, told: Told
) -> None:
    accept(requests, "a", "b", "c")
    reply(requests, "a")  # its idle was lost with the kernel, which may have gone on to the next one
    await requests.fail_all("exited", exit_code=0, signal_number=None)
    assert (told.controls[-1]["msg_id"], told.controls[-1]["never_run"]) == ("a", ["c"])


async def test_a_request_that_no_kernel_takes_is_answered_once_and_not_taken_later(
    requests: OutstandingRequests, told: Told
) -> None:
    assert accept(requests, "a", "a", is_taken=False) == [False, False]
    assert accept(requests, "a", "b", "b") == [False, True, False]
    assert told.controls == [{"op": "rejected", "msg_id": "a"}]
    assert (requests.msg_ids, list(requests.finished)) == (["b"], [])
    await requests.fail_all("exited", exit_code=0, signal_number=None)


@pytest.mark.parametrize("msg_id", [None, 5, ["a"], {"a": 1}])
def test_a_request_whose_id_is_none_is_not_taken(requests: OutstandingRequests, told: Told, msg_id: Any) -> None:
    assert accept(requests, msg_id) == accept(requests, msg_id, is_taken=False) == [False]
    assert told.controls == []


@pytest.mark.parametrize(
    ("content", "leaves"),
    [
        ({"payload": [{"source": "ask_exit", "keepkernel": False}]}, True),
        ({"payload": [{"source": "page"}, {"source": "ask_exit", "keepkernel": None}]}, True),
        ({"payload": [{"source": "ask_exit", "keepkernel": True}]}, False),
        ({"payload": [{"source": "page", "text": "ask_exit"}]}, False),
        ({"payload": "ask_exit"}, False),
        ({"payload": ["ask_exit"]}, False),
        ({"ask_exit": 1}, False),
    ],
)
async def test_an_answer_that_says_the_kernel_ends_is_understood(
    requests: OutstandingRequests, content: dict[str, Any], *, leaves: bool
) -> None:
    accept(requests, "a")
    assert reply(requests, "a", json.dumps(content).encode()) is leaves
    assert reply(requests, "nobody's", json.dumps(content).encode()) is False


@pytest.mark.parametrize("channel", ["shell", "control", "stdin", "iopub"])
async def test_what_nobody_asked_for_may_be_dropped_and_what_ends_a_request_may_not(
    requests: OutstandingRequests, told: Told, channel: str
) -> None:
    """Else a kernel could fill the supervisor's memory with answers to nothing."""
    requests.relay(channel, [b'{"msg_type": "execute_reply"}', b'{"msg_id": "nobody"}', b"{}", b"{}"], {})
    requests.relay(channel, [b'{"msg_type": "status"}', b"{}", b"{}", b"{}"], {})
    assert told.messages == [(channel, True), (channel, True)]
    accept(requests, "a")
    reply(requests, "a")
    assert told.messages[2:] == [("shell", False)]


class Questions:
    """A kernel that is asked, and answers when the test says so."""

    def __init__(self, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(missing_replies, "_GRACE_S", 0)
        settings = protocol.SupervisorSettings("k", "c", "unix:/s", str(tmp_path), "/ipc", "/home")
        meter = accounting.find_meter(own_container=False)
        work = WorkingDirectory(str(tmp_path), 10)
        self.requests = OutstandingRequests(settings, told, meter, work, self._ask)  # type: ignore[arg-type]
        self.asked: list[str] = []

    def _ask(self) -> str:
        self.asked.append(f"question {len(self.asked)}")
        return self.asked[-1]

    def idle(self, parent: str, state: str = "idle") -> None:
        header = json.dumps({"msg_id": parent}).encode()
        content = json.dumps({"execution_state": state}).encode()
        self.requests.relay("iopub", [b'{"msg_type": "status"}', header, b"{}", content], {})

    def answer(self, question: str) -> None:
        header = json.dumps({"msg_id": question}).encode()
        self.requests.relay("shell", [b'{"msg_type": "kernel_info_reply"}', header, b"{}", b"{}"], {})


@pytest.fixture
def questions(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Questions:
    return Questions(tmp_path, told, monkeypatch)


def ops(told: Told) -> list[str]:
    return [control["op"] for control in told.controls]


async def test_a_kernel_is_asked_once_about_a_request_however_often_it_is_idle(
    questions: Questions, told: Told
) -> None:
    accept(questions.requests, "a")
    for _ in range(3):
        for _ in range(1000):
            questions.idle("a")
        await asyncio.sleep(0.01)
    assert questions.asked == ["question 0"]
    questions.answer("question 0")
    assert ops(told) == ["done"]
    assert [channel for channel, _ in told.messages].count("shell") == 1


async def test_a_reply_without_idle_is_an_end_once_the_kernel_goes_on(questions: Questions, told: Told) -> None:
    accept(questions.requests, "a")
    reply(questions.requests, "a")
    await asyncio.sleep(0.01)
    questions.answer("question 0")  # output may still be on its way
    assert ops(told) == []
    questions.idle("question 0", "busy")
    assert ops(told) == ["done"]


async def test_a_late_half_of_an_end_is_taken_as_it_comes(questions: Questions, told: Told) -> None:
    accept(questions.requests, "a", "b")
    reply(questions.requests, "a")
    questions.idle("b")
    await asyncio.sleep(0.01)
    questions.idle("a")
    reply(questions.requests, "b")
    messages = list(told.messages)
    for question in questions.asked:
        questions.answer(question)
        questions.idle(question)
    assert ops(told) == ["done", "done"]
    assert told.messages == messages


async def test_a_kernel_is_not_asked_about_requests_that_end_in_time(questions: Questions) -> None:
    accept(questions.requests, "a", "b")
    for msg_id in ("a", "b"):
        reply(questions.requests, msg_id)
        questions.idle(msg_id)
    await asyncio.sleep(0.01)
    assert questions.asked == []


def begin(requests: OutstandingRequests, msg_id: str) -> None:
    parent = json.dumps({"msg_id": msg_id}).encode()
    requests.relay("iopub", [b'{"msg_type": "execute_input"}', parent, b"{}", b"{}"], {})


async def test_a_request_that_has_not_begun_is_interrupted_when_it_has(
    requests: OutstandingRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outstanding, "_BEGIN_S", 0.01)
    accept(requests, "a", "b")
    told: list[str] = []
    requests.once_begun("a", lambda: told.append("a"))
    assert told == []
    begin(requests, "a")
    assert told == ["a"]
    requests.once_begun("a", lambda: told.append("a again"))
    assert told == ["a", "a again"]
    requests.once_begun("b", lambda: told.append("b, which is late"))
    await asyncio.sleep(0.05)
    begin(requests, "b")
    assert told == ["a", "a again", "b, which is late"]


async def test_a_request_that_has_ended_is_not_interrupted(
    questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outstanding, "_BEGIN_S", 0.01)
    accept(questions.requests, "a")
    told: list[str] = []
    questions.requests.once_begun("a", lambda: told.append("a"))
    reply(questions.requests, "a")
    questions.idle("a")
    await asyncio.sleep(0.05)
    assert told == []


async def test_a_request_that_cannot_be_handled_has_ended_and_does_not_come_again(
    requests: OutstandingRequests, told: Told
) -> None:
    accept(requests, "a", "b")
    requests.measure()
    requests.fail("a", "KeyError: 'x'")
    requests.fail("unknown", "FrameError")
    requests.fail(None, "FrameError")
    assert (requests.msg_ids, list(requests.finished)) == (["b"], ["a", "unknown"])
    assert [control["msg_id"] for control in told.controls] == ["a", "unknown", None]
    assert accept(requests, "a", "unknown") == [False, False]
    await requests.fail_all("exited", exit_code=0, signal_number=None)


async def test_a_request_that_cannot_be_sent_to_the_kernel_ends_at_once(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = protocol.SupervisorSettings("k", "c", "unix:/s", str(tmp_path), str(tmp_path), str(tmp_path))
    supervisor = Supervisor(settings, Likeness({}, {}))
    monkeypatch.setattr(supervisor._relay, "put_control", told.put_control)

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(supervisor, "_send_to_kernel", fail)
    supervisor._accepts_requests, supervisor._channels = True, object()  # type: ignore[assignment]
    header = json.dumps({"msg_id": "a", "msg_type": "execute_request"}).encode()
    supervisor.on_message("shell", [header, b"{}", b"{}", b"{}"])
    assert told.controls == [{"op": "failed", "msg_id": "a", "why": "RuntimeError: a bug"}]
    assert supervisor.hello()["finished"] == ["a"]
    supervisor._zmq.destroy()


async def test_what_comes_through_pipes_waits_for_the_begin_of_its_request(
    requests: OutstandingRequests, told: Told
) -> None:
    accept(requests, "a", "b")
    text = {"name": "stderr", "text": "x"}
    parent = json.dumps({"msg_id": "a"}).encode()
    requests.publish("display_data", {}, {})
    assert told.types == []
    requests.relay("iopub", [b'{"msg_type": "execute_input"}', parent, b"{}", b"{}"], {})
    requests.publish("stream", text, {})
    reply(requests, "a")
    requests.relay("iopub", [b'{"msg_type": "status"}', parent, b"{}", b'{"execution_state": "idle"}'], {})
    requests.publish("clear_output", {}, {})  # of code that is still running, although another request is next
    await requests.fail_all("exited", exit_code=0, signal_number=None)
    requests.publish("stream", text, {})
    assert told.types == [
        ("execute_input", "a"),
        ("display_data", "a"),
        ("stream", "a"),
        ("execute_reply", "a"),
        ("status", "a"),
        ("clear_output", "b"),
        ("stream", "a"),
    ]
