"""What is sent to a kernel for Jupyter clients arrives, once and in order, though its supervisor's link breaks."""

from __future__ import annotations

import json

import pytest
from doubles import message_frame
from kernel_line import Line, RecordingListener

from kernel_image import protocol
from sessions.errors import Unavailable
from sessions.kernels.link import forwarded_frames
from sessions.kernels.link.forwarded_frames import ForwardedFrames
from sessions.settings import Timeouts

GENERATION = 7


def request(msg_id: str, channel: str = "shell", size_bytes: int = 0) -> bytes:
    header = json.dumps({"msg_id": msg_id, "msg_type": "comm_msg"}).encode()
    return protocol.encode_message(channel, [header, b"{}", b"{}", b"x" * size_bytes])


def forward(line: Line, *msg_ids: str) -> None:
    for msg_id in msg_ids:
        line.kernel.forward(msg_id, request(msg_id))


def dial(line: Line, forwarded: str | None, generation: int = GENERATION) -> None:
    line.dial()
    line.greet(forwarded=forwarded, generation=generation)


@pytest.fixture
async def ready(line: Line) -> Line:
    line.greet(forwarded=None, generation=GENERATION)
    line.say("state", state="idle", generation=GENERATION)
    return line


async def test_what_is_sent_without_a_link_is_sent_over_the_next_one(ready: Line) -> None:
    ready.handshake.on_closed()
    assert ready.kernel.takes_messages()
    forward(ready, "a", "b")
    dial(ready, None)
    assert ready.link.request_ids() == ["a", "b"]


@pytest.mark.parametrize(
    ("arrived", "again"), [(None, "abcd"), ("before all", "abcd"), ("a", "bcd"), ("c", "d"), ("d", "")]
)
async def test_what_a_broken_link_has_swallowed_is_sent_again_and_nothing_else(
    ready: Line, arrived: str | None, again: str
) -> None:
    forward(ready, "a", "b", "c")
    assert ready.link.request_ids() == ["a", "b", "c"]
    ready.handshake.on_closed()
    forward(ready, "d")
    dial(ready, arrived)
    assert "".join(ready.link.request_ids()) == again
    ready.handshake.on_closed()
    dial(ready, "d")
    assert ready.link.request_ids() == []


async def test_cells_and_other_messages_keep_their_order(ready: Line) -> None:
    forward(ready, "before")
    cell = ready.execute("x", RecordingListener())
    forward(ready, "behind")
    ready.handshake.on_closed()
    ready.kernel.interrupt(cell, 1.0)
    dial(ready, None)
    assert ready.link.request_ids() == ["before", cell, "behind"]
    assert ready.link.sent("interrupt") == [{"op": "interrupt", "msg_id": cell, "grace_s": 1.0}]
    ready.handshake.on_closed()
    dial(ready, "before")
    assert ready.link.request_ids() == [cell, "behind"]


async def test_what_was_meant_for_a_kernel_process_that_is_gone_goes_with_it(ready: Line) -> None:
    forward(ready, "a")
    ready.handshake.on_closed()
    forward(ready, "b")
    ready.kernel.interrupt(None, 1.0)
    ready.kernel.restart()
    ready.kernel.stop_files("x")
    dial(ready, None, GENERATION + 1)
    assert ready.link.request_ids() == []
    assert [control["op"] for control in ready.link.controls] == ["welcome", "stop_files"]
    ready.say("died", msg_id=None, cause="signal")
    ready.say("state", state="idle", generation=GENERATION + 1)
    ready.handshake.on_closed()
    forward(ready, "c")
    ready.kernel.interrupt(None, 1.0)
    dial(ready, "a", GENERATION + 1)
    assert ready.link.request_ids() == ["c"]
    assert len(ready.link.sent("interrupt")) == 1


async def test_interrupts_without_end_push_nothing_out_that_waits_for_the_link(ready: Line) -> None:
    ready.handshake.on_closed()
    ready.kernel.stop_files("x")
    ready.kernel.restart()
    for _ in range(100):
        ready.kernel.interrupt("x", 1.0)
    dial(ready, None)
    assert [control["op"] for control in ready.link.controls] == ["welcome", "stop_files", "restart", "interrupt"]


async def test_what_has_been_answered_is_not_kept(ready: Line) -> None:
    forward(ready, "a", "b", "c")
    ready.kernel.note_arrived("b")
    ready.kernel.note_arrived("unknown")
    assert len(ready.kernel._link._forwarded) == 1
    ready.handshake.on_closed()
    dial(ready, None)
    assert ready.link.request_ids() == ["c"]


async def test_an_older_supervisor_is_sent_what_it_was_and_nothing_waits_for_it(line: Line) -> None:
    line.ready()
    forward(line, "a")
    assert line.link.request_ids() == ["a"]
    line.handshake.on_closed()
    assert not line.kernel.takes_messages()
    with pytest.raises(Unavailable):
        forward(line, "b")
    line.dial()
    line.greet()
    assert line.link.request_ids() == []
    forward(line, "c")
    assert line.link.request_ids() == ["c"]


async def test_a_kernel_that_is_gone_takes_nothing(ready: Line) -> None:
    ready.handshake.on_closed()
    forward(ready, "a")
    ready.kernel.abandon("enough")
    assert not ready.kernel.takes_messages()
    assert len(ready.kernel._link._forwarded) == 0
    with pytest.raises(Unavailable):
        forward(ready, "b")


async def test_more_than_can_be_kept_is_refused_without_a_link_and_sent_with_one(
    ready: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarded_frames, "MOST", 3)
    forward(ready, *"abcdef")
    assert ready.link.request_ids() == [*"abcdef"]
    ready.handshake.on_closed()
    with pytest.raises(Unavailable):
        forward(ready, "g")
    dial(ready, None)
    assert ready.link.request_ids() == [*"def"]


def test_the_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarded_frames, "MOST_BYTES", 1000)
    frames = ForwardedFrames()
    for number in range(20):
        frames.add(str(number), number, 1, bytes(300))
        assert frames._bytes <= 1000
    assert [number for number, _ in frames.left(None, 1)] == [17, 18, 19]
    frames.add("too large", 20, 1, bytes(2000))
    assert [number for number, _ in frames.left(None, 1)] == [17, 18, 19]
    frames.add("same", 21, 1, bytes(900))
    frames.add("same", 22, 1, bytes(900))
    assert [number for number, _ in frames.left(None, 1)] == [22]


def test_what_is_too_large_is_not_kept_and_what_came_before_it_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarded_frames, "MOST_BYTES", 1000)
    frames = ForwardedFrames()
    for number, size_bytes in enumerate((300, 2000, 300)):
        frames.add(str(number), number, 1, bytes(size_bytes))
    assert [number for number, _ in frames.left(None, 1)] == [0, 2]
    assert [number for number, _ in frames.left("1", 1)] == [2]


# --- input ------------------------------------------------------------------------------------------------------------


def ask(line: Line, msg_id: str, question: object) -> None:
    line.seq += 1
    _, frame = protocol.split_number(message_frame(line.seq, "input_request", msg_id, {"prompt": ""}, channel="stdin"))
    _, parts = protocol.decode_message(frame)
    header = json.dumps({"msg_type": "input_request", "msg_id": question}).encode()
    line.handshake.on_binary(protocol.number_frame(line.seq, protocol.encode_message("stdin", [header, *parts[1:]])))


def answers(line: Line) -> list[object]:
    """To which question each answer says that it is one."""
    frames = [protocol.decode_message(frame) for frame in line.link.binary]
    return [json.loads(parts[0]).get(protocol.QUESTION_ID) for channel, parts in frames if channel == "stdin"]


async def test_an_answer_says_to_which_question_and_waits_for_the_next_link(ready: Line) -> None:
    msg_id = ready.execute("input()", RecordingListener())
    ask(ready, msg_id, "q1")
    ready.kernel.answer_input("yes")
    ask(ready, msg_id, "q2")
    ready.handshake.on_closed()
    ready.kernel.answer_input("no")
    assert answers(ready) == ["q1"]
    first = ready.link.request_ids()[-1]
    dial(ready, first)
    assert answers(ready) == ["q2"]
    assert ready.link.request_ids()[-1] != first


@pytest.mark.parametrize("odd", [None, 7, "", "x" * 1000, ["q"]])
async def test_a_question_without_an_id_is_answered_without_one(ready: Line, odd: object) -> None:
    msg_id = ready.execute("input()", RecordingListener())
    ask(ready, msg_id, odd)
    ready.kernel.answer_input("yes")
    assert answers(ready) == [None]


@pytest.mark.parametrize("said", ["q1", None, ...])
async def test_a_gateway_that_takes_a_kernel_over_learns_which_question_is_open(
    timeouts: Timeouts, said: object
) -> None:
    line = Line(timeouts, adopted=True)
    line.greet(forwarded=None, generation=GENERATION, state="idle", **({} if said is ... else {"question": said}))
    assert line.kernel.asks is (said is not None)
    assert line.kernel.question() == ({protocol.QUESTION_ID: "q1"} if said == "q1" else {})
    ask(line, "run", "q2")
    assert line.kernel.asks
    assert line.kernel.question() == {protocol.QUESTION_ID: "q2"}


async def test_the_next_kernel_process_has_asked_nothing(ready: Line) -> None:
    ask(ready, "x", "q1")
    ready.say("died", msg_id=None, cause="signal")
    ready.say("state", state="idle", generation=GENERATION + 1)
    assert ready.kernel.question() == {}
