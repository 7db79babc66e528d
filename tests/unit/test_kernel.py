"""The conversation with a supervisor: frames, acknowledgement, and what is not taken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from doubles import message_frame, until
from kernel_line import Line, RecordingListener

from kernel_image import protocol
from sessions.errors import KernelLost, Unavailable
from sessions.kernels.kernel import KernelState
from sessions.kernels.outcomes import Cause, Died, Done
from sessions.model import Usage


async def test_messages_reach_the_request_they_answer_and_nobody_else(line: Line) -> None:
    one, two = RecordingListener(), RecordingListener()
    first = line.ready().execute("1", one)
    second = line.execute("2", two)
    assert line.link.request_ids() == [first, second]
    line.publish(second, text="for two")
    line.publish("somebody else's", text="for nobody")
    line.publish(first, "comm_open")
    line.publish(first, text="for one")
    assert [(seq, message.content) for seq, message in one.messages] == [(5, {"text": "for one"})]
    assert [(seq, message.content) for seq, message in two.messages] == [(2, {"text": "for two"})]


async def test_a_request_ends_once_and_hears_nothing_after(line: Line) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    usage = {"wall_ms": 1.5, "cpu_ms": 1, "memory_peak_bytes": 7, "oom_kills": 2}
    line.say("done", msg_id=msg_id, usage=usage, skipped=[{"path": "f"}, "odd"])
    assert heard.ends == [Done(Usage(1.5, 1.0, 7), 2, ({"path": "f"},))]
    line.publish(msg_id, text="late")
    line.say("done", msg_id=msg_id, usage=usage)
    line.say("died", cause="exited", exit_code=1)
    assert len(heard.ends) == 1
    assert heard.messages == []


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {"wall_ms": "1"},
        {"wall_ms": True, "cpu_ms": 1, "memory_peak_bytes": 1},
        {"wall_ms": -1, "cpu_ms": 1, "memory_peak_bytes": 1},
        {"wall_ms": float("nan"), "cpu_ms": 1, "memory_peak_bytes": 1},
        {"wall_ms": 1, "cpu_ms": float("inf"), "memory_peak_bytes": 1},
        {"wall_ms": 1, "cpu_ms": 1, "memory_peak_bytes": 10**400},
        {"wall_ms": 1, "cpu_ms": 1},
    ],
)
async def test_usage_that_cannot_be_true_is_none(line: Line, usage: object) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    line.say("done", msg_id=msg_id, usage=usage, skipped={"not": "a list"})
    assert heard.ends == [Done(None, 0, ())]


async def test_a_death_ends_every_request_and_tells_which_had_not_begun(line: Line) -> None:
    one, two = RecordingListener(), RecordingListener()
    first = line.ready().execute("1", one)
    second = line.execute("2", two)
    line.say("died", msg_id=first, never_run=[second], cause="signal", exit_code=None, signal=9, usage=None)
    assert one.ends == [Died(Cause.SIGNAL, None, 9, None, ())]
    assert two.ends == [Died(Cause.SIGNAL, None, None, None, (), ran=False)]
    assert line.kernel.last_death == one.ends[0]


async def test_a_request_that_a_death_does_not_name_is_another_kernel_processs(line: Line) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    line.say("died", msg_id=None, cause="signal", signal=9)
    assert heard.ends == []
    line.say("done", msg_id=msg_id)
    assert heard.ends == [Done(None, 0, ())]


async def test_after_a_death_nothing_is_sent_until_the_next_kernel_answers(line: Line) -> None:
    line.ready().say("died", cause="exited", exit_code=0)
    assert not line.kernel.is_ready()
    with pytest.raises(KernelLost):
        line.execute("x", RecordingListener())
    assert line.link.binary == []
    line.say("state", state="starting")
    line.say("state", state="idle")
    assert line.execute("x", RecordingListener()) in line.link.request_ids()


@pytest.mark.parametrize(
    "fields", [{}, {"cause": ["x"]}, {"cause": "gone"}, {"never_run": 7}, {"exit_code": "4", "signal": 1.5}]
)
async def test_a_death_told_badly_is_still_a_death(line: Line, fields: dict[str, Any]) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    line.say("died", msg_id=msg_id, **fields)
    assert heard.ends == [Died(Cause.EXITED, None, None, None, ())]


async def test_a_gap_reaches_the_request_it_names_or_else_all(line: Line) -> None:
    one, two = RecordingListener(), RecordingListener()
    first = line.ready().execute("1", one)
    line.execute("2", two)
    line.say("gap", msg_id=first, dropped_bytes=5)
    line.say("gap", msg_id=None, dropped_bytes=7)
    for odd in (-1, 0, True, "9", 1 << 60, None):
        line.say("gap", msg_id=None, dropped_bytes=odd)
    line.say("gap", msg_id="unknown", dropped_bytes=9)
    assert (one.gaps, two.gaps) == ([5, 7], [7])


async def test_a_frame_that_comes_again_is_taken_once(line: Line) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    frame = message_frame(2, "stream", msg_id, {"text": "once"})
    for _ in range(3):
        line.handshake.on_binary(frame)
    line.handshake.on_text(protocol.encode_control("state", seq=2, state="dead"))
    assert len(heard.messages) == 1
    assert line.kernel.is_ready()


@pytest.mark.parametrize("frame", [b"", b"1234567", protocol.number_frame(2, b"junk"), message_frame(3, "stream", "p")])
async def test_a_frame_that_breaks_the_protocol_ends_the_kernel(line: Line, frame: bytes) -> None:
    heard = RecordingListener()
    line.ready().execute("x", heard)
    line.handshake.on_binary(frame)
    assert line.kernel.state is KernelState.GONE
    assert line.kernel.violation is not None
    assert line.link.closed is not None
    assert len(heard.ends) == 1


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"seq": 3, "op": "state"}', '{"seq": ' + "9" * 5000 + "}"])
async def test_a_control_message_that_is_none_ends_the_kernel(line: Line, text: str) -> None:
    line.ready().handshake.on_text(text)
    assert line.kernel.state is KernelState.GONE


@pytest.mark.parametrize("fields", [{}, {"seq": "2"}, {"seq": True}, {"seq": 2.0}, {"seq": None}])
async def test_a_control_message_without_a_number_says_nothing(line: Line, fields: dict[str, Any]) -> None:
    line.ready().handshake.on_text(protocol.encode_control("state", **{"state": "dead", **fields}))
    assert line.kernel.is_ready()


async def test_an_overlong_control_message_is_refused(line: Line) -> None:
    line.ready().handshake.on_text('{"x": "' + "y" * (1 << 20) + '"}')
    assert line.link.closed is not None


async def test_a_kernel_given_up_takes_no_more_frames(line: Line) -> None:
    changes: list[KernelState] = []
    line.ready().kernel.abandon("enough")
    line.kernel.watch(lambda kernel: changes.append(kernel.state))
    line.say("state", state="idle")
    line.publish("p")
    line.kernel.abandon("again")
    assert line.kernel.state is KernelState.GONE
    assert changes == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "does not start."),
        ({"reason": "there is no program"}, "does not start: there is no program."),
        ({"reason": 1}, "does not start."),
        ({"reason": "x" * 10_000}, "does not start: xxx"),
    ],
)
async def test_a_supervisor_whose_kernel_does_not_start_is_given_up(
    line: Line, fields: dict[str, Any], said: str
) -> None:
    line.greet()
    line.say("state", state="dead", **fields)
    with pytest.raises(KernelLost, match=said) as error:
        await line.kernel.wait_ready(5)
    assert len(str(error.value)) < 1000


async def test_a_flood_gets_a_share_of_the_time_and_a_pause_forgives_it(line: Line) -> None:
    def take_long() -> None:
        line.clock.at_s += 0.1

    pauses = [line.ready().kernel.throttle.metered(take_long) for _ in range(30)]
    assert pauses[:10] == [0.0] * 10
    assert 4 < pauses[-1] < 6
    paused = line.handshake.on_text(protocol.encode_control("gap", seq=99))
    assert line.kernel.state is KernelState.GONE  # frame 99 was not the next one: that is said at once
    assert paused is None
    line.clock.at_s += 100.0
    assert line.kernel.throttle.metered(take_long) == 0.0


async def test_the_next_frame_of_a_flood_waits(line: Line) -> None:
    line.ready()
    line.kernel.throttle._account.left_s = -0.01
    started_s = asyncio.get_running_loop().time()
    waiting = line.handshake.on_text(protocol.encode_control("unknown"))
    assert waiting is not None
    await waiting
    assert asyncio.get_running_loop().time() - started_s >= 0.035


# --- acknowledgement --------------------------------------------------------------------------------------------------


def acknowledged(line: Line) -> int:
    return max((control["seq"] for control in line.link.sent("ack")), default=0)


async def test_what_needs_no_commit_is_acknowledged_now_and_then(line: Line) -> None:
    line.ready()
    for _ in range(62):
        line.publish("nobody")
    assert line.link.sent("ack") == []
    line.publish("nobody")
    assert line.link.sent("ack") == [{"op": "ack", "seq": 64}]


async def test_many_bytes_are_acknowledged_at_once(line: Line) -> None:
    line.ready().publish("nobody", text="x" * (1 << 20))
    assert acknowledged(line) == 2


async def test_nothing_is_acknowledged_before_it_is_committed(line: Line) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    heard.uncommitted_seq = 2
    for _ in range(200):
        line.publish(msg_id, text="x")
    assert acknowledged(line) == 1
    heard.uncommitted_seq = 100
    line.kernel.acknowledge()
    assert acknowledged(line) == 99
    heard.uncommitted_seq = None
    line.kernel.acknowledge()
    assert acknowledged(line) == 201


async def test_commits_that_follow_each_other_are_acknowledged_together(line: Line) -> None:
    line.ready().publish("nobody")
    for _ in range(3):
        line.kernel.acknowledge_soon()
    assert line.link.sent("ack") == []
    line.publish("nobody")
    await until(lambda: acknowledged(line) == 3)
    assert len(line.link.sent("ack")) == 1


async def test_what_is_much_is_acknowledged_with_its_commit(line: Line) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    heard.uncommitted_seq = 2
    for _ in range(200):
        line.publish(msg_id, text="x")
    heard.uncommitted_seq = None
    line.kernel.acknowledge_soon()
    assert acknowledged(line) == 201


async def test_what_is_committed_is_acknowledged_before_the_kernel_is_handed_over(line: Line) -> None:
    line.ready().publish("nobody")
    line.kernel.acknowledge_soon()
    line.kernel.hand_over("the gateway stops")
    assert acknowledged(line) == 2
    line.kernel.acknowledge_soon()
    assert len(line.link.sent("ack")) == 1


@pytest.mark.parametrize("end", ["done", "died"])
async def test_the_end_of_a_request_is_not_acknowledged_before_it_is_committed(line: Line, end: str) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    line.publish(msg_id, text="x")
    heard.uncommitted_seq = 2
    line.say(end, msg_id=msg_id)
    for _ in range(200):
        line.publish("nobody")
    assert acknowledged(line) == 1
    heard.uncommitted_seq = None
    line.kernel.acknowledge()
    assert acknowledged(line) == 203


async def test_the_slowest_of_several_requests_holds_the_acknowledgement(line: Line) -> None:
    one, two = RecordingListener(uncommitted_seq=5), RecordingListener(uncommitted_seq=3)
    line.ready().execute("1", one)
    line.execute("2", two)
    for _ in range(100):
        line.publish("nobody")
    assert acknowledged(line) == 2


async def test_a_reconnected_supervisor_is_told_what_is_committed_not_what_is_taken(line: Line) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    heard.uncommitted_seq = 4
    for _ in range(6):
        line.publish(msg_id, text="x")
    line.kernel.acknowledge()
    line.handshake.on_closed()
    assert not line.kernel.is_ready()
    line.dial()
    line.greet()
    assert line.link.controls == [{"op": "welcome", "acknowledged": 3}]
    line.seq = 3  # it sends again from there
    for _ in range(6):
        line.publish(msg_id, text="y")
    assert [message.content["text"] for _, message in heard.messages] == ["x"] * 6 + ["y"] * 2
    assert line.kernel.is_ready()


@pytest.mark.timeouts(reconnect_timeout_s=0.01)
async def test_a_supervisor_that_does_not_come_back_is_given_up(line: Line) -> None:
    heard = RecordingListener()
    line.ready().execute("x", heard)
    line.handshake.on_closed()
    assert heard.ends == []
    with pytest.raises(KernelLost):
        line.execute("y", RecordingListener())
    async with asyncio.timeout(5):
        while not heard.ends:
            await asyncio.sleep(0.005)
    assert heard.ends == [Died(Cause.GONE, None, None, None, ())]


@pytest.mark.timeouts(reconnect_timeout_s=0.05)
async def test_a_supervisor_that_comes_back_in_time_is_kept(line: Line) -> None:
    line.ready().handshake.on_closed()
    line.dial()
    line.greet()
    await asyncio.sleep(0.15)
    assert line.kernel.is_ready()


async def test_giving_a_kernel_up_ends_its_supervisor_and_its_requests_once(line: Line) -> None:
    heard = RecordingListener()
    line.ready().execute("x", heard)
    line.kernel.abandon("enough")
    line.kernel.abandon("enough")
    assert line.link.sent("shutdown") == [{"op": "shutdown"}]
    assert line.link.closed == "enough"
    assert len(heard.ends) == 1


async def test_waiting_for_a_kernel_that_never_comes_ends_in_time(line: Line) -> None:
    with pytest.raises(KernelLost, match="not ready after"):
        await line.kernel.wait_ready(0.01)


async def test_an_interrupt_names_the_request_and_the_grace_time(line: Line) -> None:
    msg_id = line.ready().execute("x", RecordingListener())
    line.kernel.interrupt(msg_id, 2.0)
    assert line.link.sent("interrupt") == [{"op": "interrupt", "msg_id": msg_id, "grace_s": 2.0}]


async def test_the_kernels_state_is_in_its_representation(line: Line) -> None:
    line.ready().execute("x", RecordingListener())
    assert repr(line.kernel) == "<Kernel k1 ready linked, 1 pending>"


# --- what is not taken, and what breaks -------------------------------------------------------------------------------


async def test_a_request_that_is_rejected_was_not_run(line: Line) -> None:
    one, two = RecordingListener(), RecordingListener()
    first = line.ready().execute("1", one)
    line.execute("2", two)
    line.say("rejected", msg_id=first)
    assert one.ends == [Died(Cause.REJECTED, None, None, None, (), ran=False)]
    assert two.ends == []
    assert line.kernel.last_death is None
    line.say("rejected", msg_id=None)
    line.say("rejected", msg_id=first)
    assert len(one.ends) == 1


async def test_which_process_it_is_at_is_what_the_supervisor_last_said(line: Line) -> None:
    line.greet()
    assert line.kernel.generation == 0
    line.say("state", state="idle", generation=1)
    for odd in (None, 0, -1, "7", True, 1.5, 1 << 60):
        line.say("state", state="idle", generation=odd)
    assert line.kernel.generation == 1
    waiting = asyncio.ensure_future(line.kernel.wait_restarted(1, 5.0))
    line.say("died", cause="restart")
    line.say("state", state="starting", generation=2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (line.kernel.generation, waiting.done()) == (2, False)
    line.say("state", state="idle", generation=2)
    await waiting


async def test_what_a_broken_link_has_swallowed_is_sent_again_unless_the_supervisor_knows_it(line: Line) -> None:
    heard = [RecordingListener() for _ in range(3)]
    msg_ids = [line.ready().execute("0", heard[0]), *(line.execute(str(n), heard[n]) for n in (1, 2))]
    line.handshake.on_closed()
    line.dial()
    line.greet(outstanding=[msg_ids[0]], finished=[msg_ids[2], 7, None])
    assert line.link.request_ids() == [msg_ids[1]]
    line.handshake.on_closed()
    line.dial()
    line.greet(outstanding="odd")  # it says no more that it knows the others, but once it has
    assert line.link.request_ids() == [msg_ids[1]]


async def test_a_request_that_has_been_answered_to_is_never_sent_again(line: Line) -> None:
    msg_id = line.ready().execute("x", RecordingListener())
    line.publish(msg_id, text="x")
    line.handshake.on_closed()
    line.dial()
    line.greet()
    assert line.link.request_ids() == []


async def test_to_detach_tells_nobody_and_ends_nothing(line: Line) -> None:
    heard, changes = RecordingListener(), []
    line.ready().execute("x", heard)
    line.kernel.watch(changes.append)
    line.kernel.hand_over("stopping")
    assert line.link.closed == "stopping"
    assert (line.link.sent("shutdown"), heard.ends, changes) == ([], [], [])
    line.handshake.on_closed()
    assert line.kernel.state is KernelState.GONE
    line.kernel.hand_over("again")
    line.kernel.abandon("again")
    assert (heard.ends, changes) == ([], [])


async def test_answers_about_files_are_not_numbered_and_end_with_the_link(line: Line) -> None:
    line.ready()
    listing = asyncio.ensure_future(line.kernel.files.list())
    await asyncio.sleep(0)
    (asked,) = line.link.sent("file_list")
    line.handshake.on_text(protocol.encode_control("file_entries", id=asked["id"], entries=[["a", 1, 2]], more=False))
    assert [(entry.path, entry.size_bytes) for entry in await listing] == [("a", 1)]
    again = asyncio.ensure_future(line.kernel.files.list())
    await asyncio.sleep(0)
    line.handshake.on_closed()
    with pytest.raises(Unavailable):
        await again
    line.dial()
    line.greet()
    line.publish("nobody")  # the next number, as if nothing had been
    assert line.kernel.is_ready()


async def test_an_answer_to_a_question_needs_a_link(line: Line) -> None:
    line.ready().kernel.answer_input("yes")
    assert protocol.decode_message(line.link.binary[-1])[0] == "stdin"
    line.handshake.on_closed()
    with pytest.raises(Unavailable):
        line.kernel.answer_input("yes")


# --- poison -----------------------------------------------------------------------------------------------------------


async def test_a_request_that_the_supervisor_cannot_handle_has_ended_and_that_is_logged(line: Line) -> None:
    heard, other = RecordingListener(), RecordingListener()
    msg_id = line.ready().execute("x", heard)
    line.execute("y", other)
    with structlog.testing.capture_logs() as logs:
        line.say("failed", msg_id=msg_id, why="KeyError: " + "x" * 10_000)
        line.say("failed", msg_id=None, why={})
    (end,) = heard.ends
    assert isinstance(end, Died)
    assert end.cause is Cause.FAILED
    assert (other.ends, line.kernel.is_ready()) == ([], True)
    assert [entry["msg_id"] for entry in logs if entry["event"] == "frame_failed_in_sandbox"] == [msg_id, None]
    assert len(str(logs)) < 2_000


class Broken(RecordingListener):
    """A listener with a bug."""

    def on_message(self, seq: int, message: Any) -> None:
        raise RuntimeError(f"cannot take {seq}: {message}")


async def test_a_frame_that_the_gateway_cannot_handle_ends_the_kernel_and_is_logged(line: Line) -> None:
    heard = Broken()
    msg_id = line.ready().execute("x", heard)
    with structlog.testing.capture_logs() as logs:
        line.publish(msg_id)
    (end,) = heard.ends
    assert isinstance(end, Died)
    assert (end.cause, line.kernel.state) == (Cause.GONE, KernelState.GONE)
    assert "could not handle what the sandbox sent" in str(line.kernel.violation)
    assert line.link.closed is not None
    assert [entry["kernel_id"] for entry in logs if entry["event"] == "frame_not_handled"] == ["k1"]


async def test_a_hello_that_the_gateway_cannot_handle_is_refused_and_logged_until_that_is_too_much(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(line.kernel, "_handle_failed_preloads", fail)
    with structlog.testing.capture_logs() as logs:
        for _ in range(16):
            line.greet()
            assert line.link.sent("refused")
            line.dial()
    assert line.kernel.state is KernelState.GONE
    assert len([entry for entry in logs if entry["event"] == "hello_not_handled"]) == 16


@pytest.mark.parametrize("progress", [True, False])
async def test_a_link_that_breaks_at_the_same_frame_for_ever_ends_the_kernel(line: Line, *, progress: bool) -> None:
    heard = RecordingListener()
    msg_id = line.ready().execute("x", heard)
    with structlog.testing.capture_logs() as logs:
        for _ in range(40):
            line.handshake.on_closed()
            line.dial()
            line.greet()
            if progress:
                line.publish(msg_id)
    assert line.kernel.is_ready() == progress
    assert len(heard.ends) == (not progress)
    assert ("again and again" in str(line.kernel.violation)) == (not progress)
    assert "link_broke" in {entry["event"] for entry in logs}
