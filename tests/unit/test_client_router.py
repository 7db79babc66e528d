"""Who of a kernel's Jupyter clients is told what: replies, what all are told, and what was missed while away."""

from __future__ import annotations

import json

import pytest
from jupyter_talk import message
from router_room import HEADER, MSG_ID, RUN, Room, request, told, types

from kernel_image import protocol
from sessions.errors import TooManyRequests
from sessions.jupyter import router as router_module
from sessions.jupyter.client_state import ClientState
from sessions.jupyter.router import MAX_CLIENTS
from sessions.model import JupyterRequest, RunId

# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_reply_goes_only_to_whoever_asked_though_both_name_the_same_header_session(room: Room) -> None:
    first, second = room.ask(room.a, msg_id="m1", mine=[1]), room.ask(room.b, msg_id="m1")
    assert first != second
    room.answer(first)
    (reply, idle) = told(room.a)
    assert (reply.msg_type, reply.channel) == ("kernel_info_reply", "shell")
    assert reply.parent_header == {
        "msg_id": "m1",
        "msg_type": "kernel_info_request",
        "session": "notebook",
        "mine": [1],
    }
    assert idle.parent_header == reply.parent_header
    assert types(room.b) == ["status"]


def test_a_kernel_gets_of_a_header_what_it_can_hash_and_read(room: Room) -> None:
    """What it cannot read it does not answer: jupyter_client takes versions apart, and whatever looks like a date."""
    never = "2026-99-99T00:00:00"
    odd = {"unhashable": [1], "nothing": None, "version": "x", "date": never, "username": never}
    room.ask(room.a, subshell_id="s", number=1.5, flag=True, msg_id="m", cellblock_client_id="forged", **odd)
    header = json.loads(protocol.decode_message(room.sent[0])[1][0])
    assert header.pop("msg_id") != "m"
    assert header.pop("date") != never
    assert header == {
        "version": "5.4",
        "msg_type": "kernel_info_request",
        "session": "notebook",
        "cellblock_client_id": "m",
        "subshell_id": "s",
        "number": 1.5,
        "flag": True,
    }


def test_a_request_that_takes_long_is_answered_however_many_others_come_and_go(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_module, "_REMEMBERED", 10)
    slow = room.ask(room.a, msg_id="slow")
    for _ in range(200):
        room.answer(room.ask(room.b))
    told(room.a)
    room.answer(slow)
    assert [one.parent_id for one in told(room.a)] == ["slow", "slow"]
    assert len(room.router._answered) <= 10
    assert not room.router._pending


def test_what_comes_late_to_a_request_still_names_it(room: Room) -> None:
    asked = room.ask(room.a, "comm_msg", msg_id="widget")
    room.idle(asked)
    told(room.a)
    room.say("comm_msg", asked, {"data": {}})
    assert [one.parent_id for one in told(room.a)] == ["widget"]


def test_a_flood_of_one_client_waits_and_the_others_do_not(room: Room) -> None:
    asked = [room.ask(room.a) for _ in range(100)]
    assert asked.index("") == 64
    assert room.ask(room.b) != ""
    room.idle(asked[0])
    assert len(room.sent) == 66


def test_a_client_is_told_of_a_request_that_cannot_be_sent_and_goes_on(room: Room) -> None:
    room.is_reachable = False
    for _ in range(100):
        room.ask(room.a, msg_id="lost")
    dropped = told(room.a)
    assert [(one.msg_type, one.parent_id) for one in dropped] == [("stream", "lost"), ("status", "lost")] * 100
    assert "kernel_info_request was dropped" in dropped[0].content.decode()
    room.is_reachable = True
    asked = room.ask(room.a)
    room.answer(asked)
    assert room.arrived == {asked}
    assert [one.msg_type for one in told(room.a)] == ["kernel_info_reply", "status"]
    assert not room.router._pending


def test_what_waits_for_a_kernel_that_died_does_not_choke_the_next_one(room: Room) -> None:
    for _ in range(200):
        room.ask(room.a)
    room.router.kernel_lost(at_work=False)
    room.router.kernel_ready()
    assert len(room.sent) == 64
    assert room.ask(room.a) != ""
    assert len(room.router._pending) == 1


# --- runs -------------------------------------------------------------------------------------------------------------


def test_what_comes_of_a_run_names_the_clients_own_header_with_all_that_it_holds(room: Room) -> None:
    room.router.run_queued(RUN, request())
    room.say("stream", MSG_ID, {"name": "stdout", "text": "x"})
    room.say("execute_reply", MSG_ID, {"status": "ok"}, "shell")
    assert [one.parent_header for one in told(room.a)] == [HEADER, HEADER]
    (stream,) = told(room.b)
    assert (stream.parent_header, stream.msg_type) == (HEADER, "stream")


def test_a_question_goes_to_whoever_asked_for_the_run(room: Room) -> None:
    room.router.run_queued(RUN, request())
    room.say("input_request", MSG_ID, {"prompt": "? "}, "stdin")
    assert (types(room.a), types(room.b)) == (["input_request"], [])


def test_the_kernels_reply_is_announced_once_before_it_is_told(room: Room) -> None:
    replies = room.replies
    room.router.run_queued(RUN, request())
    for _ in range(2):
        room.say("execute_reply", MSG_ID, {}, "shell")
    assert replies == [(RUN, 0)]


def test_a_run_that_is_nobodys_is_told_to_all_as_the_kernel_says_it(room: Room) -> None:
    room.router.run_queued(RUN, None)
    room.say("stream", MSG_ID, {"name": "stdout", "text": "x"})
    room.say("execute_reply", MSG_ID, {}, "shell")
    for state in (room.a, room.b):
        assert [item.run_id for item in state.outbox._queue] == [RUN]  # type: ignore[union-attr]
        assert [one.parent_id for one in told(state)] == [MSG_ID]


def test_what_names_a_run_of_another_session_is_about_none(room: Room) -> None:
    """A kernel may say what it likes: no client of its is to be told another session's run for that."""
    for number in range(5000):
        room.say("stream", f"other-{number}.1", {"name": "stdout", "text": "x" * 2000})
    assert all(item.run_id is None for item in room.a.outbox._queue)
    assert len(room.a.outbox._queue) < 4096
    assert room.a.outbox._replayed == set()


def test_comm_messages_of_a_run_come_though_the_run_is_told_again(room: Room) -> None:
    room.router.run_queued(RUN, request())
    room.a.outbox.replay(RUN)
    room.say("comm_open", MSG_ID, {"comm_id": "c"})
    room.say("stream", MSG_ID, {"name": "stdout", "text": "x"})
    room.a.outbox._queue.pop()
    assert types(room.a) == ["comm_open"]


def test_only_the_header_of_a_run_is_kept_when_it_is_over(room: Room) -> None:
    large = "x" * 100_000
    room.router.run_queued(RUN, JupyterRequest(HEADER, {"large": large}, {"large": large}, "a"))
    assert large not in repr(room.router._runs)
    for number in range(router_module._REMEMBERED + 10):
        room.router.run_queued(RunId(str(number)), request())
    assert len(room.router._runs) == router_module._REMEMBERED


def test_missing_output_is_marked_under_the_run_that_misses_it(room: Room) -> None:
    room.router.run_queued(RUN, request())
    room.router.on_gap(MSG_ID, 77)
    room.router.on_gap(None, 5)
    room.router.on_gap("nobody's.1", 6)
    notes = told(room.b)
    assert [one.parent_header for one in notes] == [HEADER, {}, {}]
    assert b"77 bytes were dropped on the way" in notes[0].content


# --- clients ----------------------------------------------------------------------------------------------------------


def leave(room: Room, state: ClientState, *, comes_back: bool = True) -> None:
    room.router.disconnect(state, state.connection_number, comes_back=comes_back)


def test_a_client_that_is_away_finds_what_it_missed(room: Room) -> None:
    leave(room, room.a)
    assert room.router.connections() == 1
    room.say("stream", "x", {"name": "stdout", "text": "missed"})
    assert room.router.connect("a") is room.a
    assert types(room.a) == ["stream"]


def test_one_that_does_not_come_back_leaves_nothing_behind(room: Room) -> None:
    room.ask(room.a)
    leave(room, room.a, comes_back=False)
    assert not room.router.knows("a")
    assert not room.router._pending


def test_of_those_who_are_away_the_last_few_are_kept(room: Room) -> None:
    states = [room.router.connect(str(number)) for number in range(12)]
    room.answer(room.ask(states[0]))
    for state in states:
        leave(room, state)
    assert [state.client for state in states if room.router.knows(state.client)] == [str(n) for n in range(4, 12)]
    assert room.router.knows("a")
    assert not room.router._answered


def test_there_are_no_more_clients_than_may_be_also_when_one_comes_back(room: Room) -> None:
    leave(room, room.a)
    others = [room.router.connect(str(number)) for number in range(MAX_CLIENTS - 1)]
    for name in ("new", "a"):
        with pytest.raises(TooManyRequests, match="32 clients"):
            room.router.connect(name)
    assert room.router.knows("a")
    assert room.router.connect("b") is room.b  # takes its own state
    leave(room, others[0])
    assert room.router.connect("a") is room.a


def test_a_client_that_connects_anew_takes_over_and_the_end_of_the_old_connection_does_not_count(room: Room) -> None:
    replaced: list[str] = []
    first = room.a.connection_number
    room.a.on_replaced = lambda: replaced.append("first")
    room.a.outbox.put(message("stream"))
    room.router.connect("a")
    assert replaced == ["first"]
    room.router.disconnect(room.a, first, comes_back=False)
    assert (room.a.is_connected, room.router.knows("a")) == (True, True)
    room.router.connect("a")
    assert replaced == ["first"]  # who has not said how, is not told
