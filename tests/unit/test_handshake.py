"""Who is let in at the other end of a link, at first and again; and how a kernel of an earlier gateway is joined."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from doubles import message_frame
from kernel_line import Line, RecordingListener

from sessions.errors import KernelLost
from sessions.kernels.kernel import KernelState
from sessions.kernels.outcomes import Cause, Died, Done


async def test_the_right_credential_is_welcomed(line: Line) -> None:
    line.greet(limits={"pids": 5})
    assert line.link.controls == [{"op": "welcome", "acknowledged": 0}]
    assert line.kernel.limits_seen == {"pids": 5}
    assert not line.kernel.is_ready()
    line.say("state", state="idle")
    assert line.kernel.is_ready()


@pytest.mark.parametrize(
    "fields",
    [
        {"credential": "guessed"},
        {"credential": ""},
        {"credential": None},
        {"credential": "\ud800"},
        {"credential": ["s3cret"]},
        {"kernel_id": "k2"},
        {"boot_id": None},
        {"protocol": 1},
        {"op": "state"},
    ],
)
async def test_anything_else_is_refused_and_hears_nothing(line: Line, fields: dict[str, Any]) -> None:
    line.greet(**fields) if "op" not in fields else line.handshake.on_text('{"op": "state", "state": "idle", "seq": 1}')
    assert [control["op"] for control in line.link.controls] == ["refused"]
    assert line.link.closed is not None
    line.say("state", state="idle")
    line.handshake.on_binary(message_frame(1, "stream", "p"))
    assert line.kernel.state is KernelState.STARTING


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"op": 5}', "[" * 60_000, '{"op": "hello"}', " " * 70_000])
async def test_a_first_message_that_is_no_hello_is_refused(line: Line, text: str) -> None:
    line.handshake.on_text(text)
    assert line.link.closed is not None
    assert line.kernel.state is KernelState.STARTING


async def test_a_jupyter_message_before_the_hello_is_refused(line: Line) -> None:
    line.handshake.on_binary(message_frame(1, "stream", "p"))
    assert line.link.closed is not None
    line.greet()
    assert line.link.sent("welcome") == []


@pytest.mark.timeouts(hello_timeout_s=0.01)
async def test_whoever_says_nothing_is_hung_up_on(line: Line) -> None:
    line.dial()
    async with asyncio.timeout(5):
        while line.link.closed is None:
            await asyncio.sleep(0.005)
    assert line.link.closed == "no hello in time"


async def test_too_many_guesses_end_the_kernel(line: Line) -> None:
    honest = line.ready().link
    for _ in range(15):
        line.dial()
        line.greet(credential="guess")
        assert line.kernel.is_ready()
    line.dial()
    line.greet(credential="guess")
    assert line.kernel.state is KernelState.GONE
    assert line.kernel.violation is not None
    assert honest.closed is not None


async def test_a_newer_connection_takes_the_place_of_the_older(line: Line) -> None:
    older, listener = line.ready().link, line.handshake
    line.dial()
    line.greet()
    assert older.closed is not None
    listener.on_closed()
    assert line.kernel.is_ready()


async def test_a_supervisor_that_has_started_anew_is_another_one(line: Line) -> None:
    heard = RecordingListener()
    line.ready().execute("x", heard)
    line.dial()
    line.greet(boot_id="b2")
    assert line.kernel.state is KernelState.GONE
    assert [end.cause for end in heard.ends if isinstance(end, Died)] == [Cause.GONE]


# --- a kernel of an earlier gateway -----------------------------------------------------------------------------------


class AdoptedLine(Line):
    """A supervisor in mid-conversation: `seq` frames have been said before."""

    def __init__(self, seq: int = 0) -> None:
        super().__init__(adopted=True)
        self.seq = seq

    def join(self, **fields: Any) -> None:
        self.greet(**{"state": "idle", "generation": 3, "oldest_seq": self.seq + 1, **fields})


async def test_an_adopted_kernel_begins_where_the_supervisor_does() -> None:
    line = AdoptedLine(40)
    line.join()
    assert line.link.controls == [{"op": "welcome", "acknowledged": 40}]
    assert line.kernel.is_ready()
    assert line.kernel.generation == 3
    line.publish("nobody")  # frame 41
    assert line.kernel.is_ready()
    line.seq += 1
    line.publish("nobody")  # 42 is missing
    assert line.kernel.state is KernelState.GONE


@pytest.mark.parametrize("oldest_seq", [None, 0, -5, "41", True, 1 << 60])
async def test_an_adopted_kernel_that_does_not_say_where_it_is_begins_at_the_beginning(oldest_seq: object) -> None:
    line = AdoptedLine()
    line.join(oldest_seq=oldest_seq)
    line.publish("nobody")
    assert line.kernel.is_ready()


async def test_an_adopted_kernel_that_is_busy_starting_is_not_ready_yet() -> None:
    line = AdoptedLine(4)
    line.join(state="starting")
    assert not line.kernel.is_ready()
    line.say("state", state="idle", generation=4)
    assert line.kernel.is_ready()


async def test_an_adopted_kernel_that_does_not_start_is_given_up() -> None:
    line = AdoptedLine(4)
    line.join(state="dead")
    assert line.kernel.state is KernelState.GONE
    assert line.link.sent("welcome") == []


async def test_a_run_that_was_sent_is_listened_to_under_the_name_it_was_sent_by() -> None:
    line, sent, finished, unsent = AdoptedLine(9), RecordingListener(), RecordingListener(), RecordingListener()
    for run_id, heard in (("r1", sent), ("r2", finished), ("r3", unsent)):
        line.kernel.expect(run_id, heard)
    line.join(outstanding=["r1.a", "silent", "r9.a"], finished=["r2.b"])
    assert [line.kernel.msg_id_of(heard) for heard in (sent, finished, unsent)] == ["r1.a", "r2.b", None]
    assert line.link.binary == []
    line.publish("r1.a", text="one")
    line.publish("r3.a", text="nobody's")
    line.say("done", msg_id="r2.b")
    assert [message.content for _, message in sent.messages] == [{"text": "one"}]
    assert (finished.ends, unsent.messages) == ([Done(None, 0, ())], [])


async def test_a_run_that_was_sent_twice_is_listened_to_under_its_last_name() -> None:
    line, heard = AdoptedLine(), RecordingListener()
    line.kernel.expect("r1", heard)
    line.join(finished=["r1.never_run", "r2.a"], outstanding=["r1.running"])
    assert line.kernel.msg_id_of(heard) == "r1.running"


async def test_only_the_first_hello_tells_what_an_earlier_gateway_has_sent() -> None:
    line, heard = AdoptedLine(), RecordingListener()
    line.kernel.expect("r1", heard)
    line.join()
    line.handshake.on_closed()
    line.dial()
    line.join(outstanding=["r1.a"])
    assert line.kernel.msg_id_of(heard) is None


async def test_an_adopted_kernel_of_another_version_is_given_up_and_a_launched_one_may_dial_again(line: Line) -> None:
    line.greet(protocol=1)
    assert line.kernel.state is KernelState.STARTING
    adopted = AdoptedLine()
    adopted.join(protocol=1)
    assert adopted.kernel.state is KernelState.GONE


async def test_a_link_is_waited_for_until_the_kernel_is_given_up() -> None:
    line = AdoptedLine()
    waiting = asyncio.ensure_future(line.kernel.wait_linked(5.0))
    await asyncio.sleep(0)
    line.join(state="starting")
    await waiting
    line.handshake.on_closed()
    waiting = asyncio.ensure_future(line.kernel.wait_linked(5.0))
    await asyncio.sleep(0)
    line.kernel.abandon("enough")
    with pytest.raises(KernelLost):
        await waiting
