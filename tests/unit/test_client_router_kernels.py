"""What Jupyter clients are told of a kernel that dies, restarts or ends, and of one that says what no kernel should."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from kernel_line import Line, RecordingListener
from router_room import MSG_ID, RUN, Room, request, told, types

from kernel_image import protocol
from sessions.jupyter.client_state import ClientState
from sessions.jupyter.messages import ClientMessage
from sessions.model import Result, RunStatus

# --- the life of the kernel -------------------------------------------------------------------------------------------


def states(state: ClientState) -> list[str]:
    return [json.loads(one.content)["execution_state"] for one in told(state) if one.msg_type == "status"]


def test_a_death_while_nothing_runs_is_told_at_once_and_once(room: Room) -> None:
    room.router.kernel_lost(at_work=False)
    room.router.kernel_lost(at_work=False)
    assert states(room.a) == ["restarting"]
    room.router.kernel_ready()
    room.router.kernel_ready()
    assert states(room.a) == ["starting", "idle"]


@pytest.mark.parametrize("is_back_first", [False, True])
def test_a_death_at_work_is_told_behind_the_end_of_the_run(room: Room, *, is_back_first: bool) -> None:
    room.router.kernel_lost(at_work=True)
    if is_back_first:
        room.router.kernel_ready()
    assert states(room.a) == []
    room.router.run_settled()
    if not is_back_first:
        assert states(room.a) == ["restarting"]
        room.router.kernel_ready()
        assert states(room.a) == ["starting", "idle"]
    assert states(room.b) == ["restarting", "starting", "idle"]


def test_a_restart_that_somebody_wants_is_no_accident_though_the_run_at_work_takes_a_kernel_along(room: Room) -> None:
    room.router.restart_requested()
    assert types(room.a) == ["shutdown_reply"]
    for _ in range(2):  # it ignores the interrupt and is killed; then comes the restart itself
        room.router.kernel_lost(at_work=True)
        room.router.kernel_ready()
    room.router.run_settled()
    room.router.restart_finished()
    assert "restarting" not in states(room.a)
    room.router.kernel_lost(at_work=False)
    assert states(room.a) == ["restarting"]


async def test_the_end_is_told_to_those_who_are_there_and_is_the_last_thing(room: Room) -> None:
    room.router.session_ended()
    last = await room.a.outbox.get()
    assert isinstance(last, ClientMessage)
    assert b'"dead"' in last.content
    assert await room.a.outbox.get() is None


async def test_a_mistake_of_whoever_listens_in_costs_a_run_nothing(line: Line) -> None:
    class Broken:
        def on_frame(self, frame: memoryview) -> None:
            raise RuntimeError(bytes(frame))

        def on_gap(self, msg_id: str | None, dropped_bytes: int) -> None:
            raise RuntimeError(msg_id, dropped_bytes)

    line.ready()
    heard = RecordingListener()
    msg_id = line.execute("x", heard)
    line.kernel.tap = Broken()
    line.publish(msg_id, name="stdout", text="x")
    line.say("gap", msg_id=msg_id, dropped_bytes=7)
    assert [message.content["text"] for _, message in heard.messages] == ["x"]
    assert heard.gaps == [7]
    assert line.kernel.is_ready()


# --- hostile kernels --------------------------------------------------------------------------------------------------


def test_a_run_whose_idle_was_heard_and_whose_reply_was_not_is_answered_at_its_end(room: Room) -> None:
    room.router.run_queued(RUN, request())
    room.say("status", MSG_ID, {"execution_state": "idle"})
    room.say_parts(b'{"msg_type": "execute_reply"}', json.dumps({"msg_id": MSG_ID}).encode(), _OBJECT, b"?")
    assert types(room.a) == ["status"]
    live: Any = SimpleNamespace(run_id=RUN)
    room.router.run_ended(live, Result(RUN, RunStatus.TIMEOUT, "", error="too long"))
    assert types(room.a) == ["error", "execute_reply", "status"]
    room.router.run_ended(live, Result(RUN, RunStatus.TIMEOUT, "", error="too long"))
    assert types(room.a) == []


def test_bytes_that_are_no_text_are_replaced_and_the_message_is_told(room: Room) -> None:
    """As ipykernel writes a file name that is no UTF-8."""
    room.say_parts(_HEADER, _OBJECT, b'{"x": "\xff"}', b'{"text": "\x80"}')
    for state in (room.a, room.b):
        (message,) = told(state)
        assert (message.metadata.decode(), message.content.decode()) == ('{"x": "\ufffd"}', '{"text": "\ufffd"}')


_OBJECT = b"{}"
_HEADER = b'{"msg_type": "stream"}'


@pytest.mark.parametrize(
    "parts",
    [
        (b"[]", _OBJECT, _OBJECT, _OBJECT),
        (b'{"msg_type": ["stream"]}', _OBJECT, _OBJECT, _OBJECT),
        (_HEADER, b"7", _OBJECT, _OBJECT),
        (_HEADER, _OBJECT, _OBJECT, b'{"x": NaN}'),
        (_HEADER, _OBJECT, b'{"x": Infinity}', _OBJECT),
        (b'{"msg_type": "stream", "x": 1e999}', _OBJECT, _OBJECT, _OBJECT),
        (_HEADER, b'{"x": [-1e999]}', _OBJECT, _OBJECT),
        (_HEADER, b'{"x": NaN}', _OBJECT, _OBJECT),
        (_HEADER, _OBJECT, _OBJECT, b"[]"),
        (_HEADER, _OBJECT, _OBJECT, b"[" * 200_000),
        (_HEADER, _OBJECT, _OBJECT, b'{"x":' * 20_000),
        (_HEADER, b'{"x":' + b"[" * 90 + b"]" * 90 + b"}", _OBJECT, _OBJECT),
        (_HEADER, b'{"msg_id": "' + b"x" * 40_000 + b'"}', _OBJECT, _OBJECT),
        (b'{"msg_type": "stream", "x": "' + b"x" * 40_000 + b'"}', _OBJECT, _OBJECT, _OBJECT),
    ],
    ids=lambda parts: max(parts, key=len)[:30].decode("ascii", "replace"),
)
def test_what_is_no_message_is_told_to_nobody(room: Room, parts: tuple[bytes, ...]) -> None:
    room.say_parts(*parts)
    assert all(b"was cut: it had too many values" in one.content for one in told(room.a))
    room.say_parts(_HEADER, _OBJECT, _OBJECT, _OBJECT)
    (whole,) = told(room.b)[-1:]
    assert {"msg_id", "msg_type", "username", "session", "version", "date"} <= whole.header.keys()


def test_our_own_channels_are_not_clients_business(room: Room) -> None:
    room.say_parts(_HEADER, _OBJECT, _OBJECT, _OBJECT, channel="artifact")
    assert told(room.a) == []


def test_a_flood_of_messages_to_a_client_that_takes_none_are_bounded_in_time_and_memory(room: Room) -> None:
    room.router.run_queued(RUN, request())
    frame = memoryview(protocol.encode_message("iopub", [_HEADER, b'{"msg_id": "x"}', _OBJECT, b'{"text": "x"}']))
    started_s = time.process_time()
    for _ in range(30_000):
        room.router.on_frame(frame)
    assert time.process_time() - started_s < 15
    assert room.a.outbox.size_bytes < 5 << 20
