"""A run on its way into the store: what is committed when, and how far frames may be acknowledged meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from doubles import ManualClock, until
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from test_media import png
from workbench import HURRIED

from sessions.kernels.messages import Message
from sessions.kernels.outcomes import Cause, Died, Done
from sessions.model import ANONYMOUS, Batch, EventType, GatewayId, Progress, Result, Run, RunId, RunStatus
from sessions.output.fold import RunFold
from sessions.runs.recorder import Recorder
from sessions.settings import Limits, Timeouts
from sessions.testing.memory_store import MemoryStore

DONE = Done(None, 0, ())
RUN_ID = RunId("00000000-0000-4000-8000-000000000001")


class Taped:
    """A recording with its store; `acknowledgeable` is how far frames might have been acknowledged at each commit."""

    def __init__(self, store: MemoryStore | None = None, timeouts: Timeouts = HURRIED) -> None:
        self.store = store or MemoryStore()
        self.timeouts = timeouts
        fold = RunFold(RUN_ID, Limits())
        self.clock = ManualClock()
        self.recorder = Recorder(RUN_ID, fold, self.store, self.clock, timeouts)
        self.recorder.on_commit(lambda: self.acknowledgeable.append(self.recorder.uncommitted_seq))
        self.acknowledgeable: list[int | None] = []
        self.seq = 0

    async def begin(self) -> Taped:
        run = Run(RUN_ID, ANONYMOUS, GatewayId("g"), "python", "", {}, 1.0, datetime(2026, 1, 1, tzinfo=UTC))
        await self.store.add_run(run)
        return self

    def say(self, msg_type: str, content: dict[str, Any], *buffers: bytes) -> int:
        self.seq += 1
        self.recorder.on_message(self.seq, Message("iopub", msg_type, "p", content, buffers))
        return self.seq

    def print(self, text: str) -> int:
        return self.say("stream", {"name": "stdout", "text": text})

    def stored_text(self) -> str:
        events = self.store.runs[RUN_ID].events.values()
        return "".join(str(event.fields["text"]) for event in events if event.type is EventType.STDOUT)

    async def finish(self) -> None:
        await self.recorder.finish(self.recorder.fold.finish(RunStatus.OK, None, None))


@pytest.fixture
async def taped(timeouts: Timeouts) -> AsyncIterator[Taped]:
    taped = await Taped(timeouts=timeouts).begin()
    yield taped
    taped.store.is_reachable = True
    if not taped.store.runs[RUN_ID].finished_at:
        await taped.finish()


async def test_output_is_stored_while_the_run_goes_on(taped: Taped) -> None:
    seq = taped.print("one")
    assert taped.recorder.uncommitted_seq == seq
    await until(lambda: taped.stored_text() == "one")
    await until(lambda: taped.recorder.uncommitted_seq is None)
    taped.print(" two")
    await until(lambda: taped.stored_text() == "one two")
    assert taped.store.runs[RUN_ID].finished_at is None


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("stream", {"name": "stderr", "text": "x"}),
        ("display_data", {"data": {"text/plain": "x"}}),
        ("execute_result", {"data": {"text/plain": "x"}}),
        ("clear_output", {}),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
        ("execute_input", {"execution_count": 1}),
    ],
)
async def test_every_kind_of_event_holds_its_frame_until_it_is_committed(
    taped: Taped, msg_type: str, content: dict[str, Any]
) -> None:
    seq = taped.say(msg_type, content)
    taped.say("status", {"execution_state": "busy"})
    assert taped.recorder.uncommitted_seq == seq
    await until(lambda: taped.acknowledgeable == [None])
    assert taped.store.runs[RUN_ID].events


async def test_a_message_without_an_event_holds_its_frame_until_the_progress_past_it_is_committed(taped: Taped) -> None:
    seq = taped.say("status", {"execution_state": "idle"})
    assert taped.recorder.uncommitted_seq == seq
    await until(lambda: taped.acknowledgeable == [None])
    stored = taped.store.runs[RUN_ID]
    assert stored.events == {}
    assert stored.progress is not None
    assert (stored.progress.taken_seq, stored.progress.state["said"]) == (seq, ["status"])


async def test_the_pieces_of_a_file_are_held_until_the_file_is_committed(taped: Taped) -> None:
    taped.print("before")
    first = taped.say("artifact", {"path": "f", "bytes": 4, "offset": 0}, b"ab")
    await until(lambda: taped.acknowledgeable == [first])
    last = taped.say("artifact", {"path": "f", "bytes": 4, "offset": 2}, b"cd")
    following = taped.say("artifact", {"path": "g", "bytes": 4, "offset": 0}, b"ab")
    assert following > last > first
    await until(lambda: taped.acknowledgeable == [first, following])
    assert [artifact.data for artifact in taped.store.runs[RUN_ID].artifacts.values()] == [b"abcd"]


async def test_a_file_that_is_not_kept_holds_nothing_up_once_it_is_complete(taped: Taped) -> None:
    taped.print("before")
    huge = png(30_000, 30_000)
    first = taped.say("artifact", {"path": "f.png", "bytes": len(huge), "offset": 0}, huge[:50])
    await until(lambda: taped.acknowledgeable == [first])
    taped.say("artifact", {"path": "f.png", "bytes": len(huge), "offset": 50}, huge[50:])
    await until(lambda: taped.recorder.uncommitted_seq is None)
    await taped.finish()
    assert taped.store.runs[RUN_ID].artifacts == {}


async def test_while_the_store_is_away_nothing_is_acknowledged_and_nothing_lost(taped: Taped) -> None:
    taped.store.is_reachable = False
    first = taped.print("one")
    await asyncio.sleep(0.05)
    taped.print(" two")
    await asyncio.sleep(0.05)
    assert taped.acknowledgeable == []
    assert taped.recorder.uncommitted_seq == first
    taped.store.is_reachable = True
    await until(lambda: taped.stored_text() == "one two")
    await until(lambda: taped.recorder.uncommitted_seq is None)


async def test_that_the_store_is_away_is_logged_at_once_and_then_every_minute(taped: Taped) -> None:
    taped.store.is_reachable = False
    with capture_logs() as logs:
        taped.print("one")
        for minutes in range(1, 3):
            await until(lambda minutes=minutes: len(logs) == minutes)  # type: ignore[misc]
            await asyncio.sleep(0.1)  # many attempts
            assert [line["event"] for line in logs] == minutes * ["run_not_written"]
            taped.clock.at_s += 60
        taped.store.is_reachable = True
        await until(lambda: taped.stored_text() == "one")


async def test_what_comes_while_a_batch_is_being_written_stays_uncommitted(taped: Taped) -> None:
    taped.store.is_reachable = False
    taped.print("one")
    await asyncio.sleep(0.03)  # the first batch is on its way now
    second = taped.print(" two")
    taped.store.is_reachable = True
    await until(lambda: bool(taped.acknowledgeable))
    assert taped.acknowledgeable[0] in (second, None)
    assert taped.acknowledgeable[0] == second or taped.stored_text() == "one two"


async def test_the_end_itself_is_uncommitted_until_the_answer_is_stored(taped: Taped) -> None:
    taped.print("one")
    await until(lambda: taped.recorder.uncommitted_seq is None)
    taped.recorder.on_end(DONE)
    assert taped.recorder.uncommitted_seq == taped.seq + 1
    await asyncio.sleep(0.05)
    assert taped.recorder.uncommitted_seq == taped.seq + 1
    await taped.finish()
    assert taped.recorder.uncommitted_seq is None
    assert taped.acknowledgeable == [None, None]


async def test_the_end_is_stored_with_what_was_not_yet_written(taped: Taped) -> None:
    taped.print("all of it")
    taped.recorder.on_end(DONE)
    await taped.finish()
    stored = taped.store.runs[RUN_ID]
    assert taped.stored_text() == "all of it"
    assert stored.status is RunStatus.OK
    assert sorted(stored.events) == list(range(1, len(stored.events) + 1))
    assert stored.events[len(stored.events)].type is EventType.END


async def test_a_batch_that_was_broken_off_is_written_with_the_end(taped: Taped) -> None:
    taped.store.is_reachable = False
    taped.print("one")
    await asyncio.sleep(0.03)
    taped.recorder.on_end(Died(Cause.GONE, None, None, None, ()))
    finishing = asyncio.ensure_future(taped.finish())
    await asyncio.sleep(0.03)
    assert not finishing.done()
    taped.store.is_reachable = True
    await finishing
    assert taped.stored_text() == "one"
    assert sorted(taped.store.runs[RUN_ID].events) == [1, 2, 3]
    assert taped.recorder.uncommitted_seq is None


async def test_a_run_ends_once(taped: Taped) -> None:
    taped.recorder.on_end(DONE)
    taped.recorder.on_end(Died(Cause.EXITED, 0, None, None, ()))
    assert taped.recorder.ended.result() == DONE


async def test_after_the_end_no_task_is_left(taped: Taped) -> None:
    taped.print("x")
    taped.recorder.on_end(DONE)
    await taped.finish()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_once_the_run_has_ended_only_its_end_is_written(taped: Taped) -> None:
    seq = taped.print("last words")
    taped.recorder.on_end(DONE)
    await asyncio.sleep(0.05)
    assert (taped.recorder.uncommitted_seq, taped.acknowledgeable) == (seq, [])
    await taped.finish()
    assert taped.acknowledgeable == [None]
    assert taped.stored_text() == "last words"


# --- for those who follow ---------------------------------------------------------------------------------------------


@pytest.mark.timeouts(batch_pause_s=60.0)
async def test_without_a_follower_output_gathers_and_with_one_it_is_written_at_once(taped: Taped) -> None:
    taped.print("one")
    await asyncio.sleep(0.05)
    assert taped.stored_text() == ""
    with taped.recorder.feed.following():  # in the middle of the pause
        await until(lambda: taped.stored_text() == "one")
        taped.print(" two")
        await until(lambda: taped.stored_text() == "one two")
    taped.print(" three")
    await asyncio.sleep(0.05)
    assert taped.stored_text() == "one two"


async def test_a_follower_sees_no_event_that_the_store_has_not(taped: Taped) -> None:
    feed = taped.recorder.feed
    with feed.following():
        taped.store.is_reachable = False
        taped.print("one")
        await asyncio.sleep(0.05)
        assert (feed.last_seq, feed.after(0)) == (0, [])
        taped.store.is_reachable = True
        await until(lambda: feed.last_seq == 2)
        assert feed.after(0) == [*taped.store.runs[RUN_ID].events.values()]
        taped.print(" two")
        taped.recorder.on_end(DONE)
        await taped.finish()
        assert feed.is_closed
        assert feed.after(0) == [*taped.store.runs[RUN_ID].events.values()]


class SlowStore(MemoryStore):
    """A store whose writes wait until the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.writes: list[str] = []

    async def append(self, run_id: RunId, batch: Batch) -> None:
        self.writes.append("append begins")
        await self.gate.wait()
        await super().append(run_id, batch)
        self.writes.append("append ends")

    async def finish_run(self, result: Result, batch: Batch, finished_at: datetime, session: Any = None) -> None:
        self.writes.append("finish")
        await super().finish_run(result, batch, finished_at, session)


@pytest.fixture
async def slow() -> Taped:
    return await Taped(SlowStore()).begin()


async def test_the_end_waits_for_a_batch_that_is_on_its_way(slow: Taped) -> None:
    store = slow.store
    assert isinstance(store, SlowStore)
    slow.print("one")
    await until(lambda: store.writes == ["append begins"])
    slow.print(" two")
    slow.recorder.on_end(DONE)
    finishing = asyncio.ensure_future(slow.finish())
    await asyncio.sleep(0.03)
    assert store.writes == ["append begins"]
    store.gate.set()
    await finishing
    assert store.writes == ["append begins", "append ends", "finish"]
    assert slow.stored_text() == "one two"
    assert [event.seq for event in store.runs[RUN_ID].events.values()] == [1, 2, 3, 4]


async def test_what_comes_while_a_batch_is_on_its_way_is_not_acknowledged_with_it(slow: Taped) -> None:
    store = slow.store
    assert isinstance(store, SlowStore)
    first = slow.print("one")
    await until(lambda: store.writes == ["append begins"])
    second = slow.print(" two")
    assert slow.recorder.uncommitted_seq == first
    store.gate.set()
    await until(lambda: bool(slow.acknowledgeable))
    assert slow.acknowledgeable[0] == second
    slow.recorder.on_end(DONE)
    await slow.finish()


async def test_a_recording_that_is_broken_off_writes_nothing_more_and_leaves_no_task(taped: Taped) -> None:
    taped.store.is_reachable = False
    taped.print("one")
    await asyncio.sleep(0.03)
    await taped.recorder.stop_writing()
    taped.store.is_reachable = True
    await asyncio.sleep(0.03)
    assert (taped.stored_text(), taped.acknowledgeable) == ("", [])
    assert taped.recorder.feed.is_closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- going on where another gateway stopped ---------------------------------------------------------------------------


async def gone_on(taped: Taped) -> Taped:
    """Another gateway's recording of the same run, from what is stored."""
    await taped.recorder.stop_writing()
    later = Taped(taped.store)
    stored = taped.store.runs[RUN_ID]
    later.recorder.resume([*stored.events.values()], stored.progress or Progress(0, None, {}))
    return later


async def test_frames_that_are_committed_are_passed_over_and_those_that_are_not_are_taken(taped: Taped) -> None:
    taped.print("one")
    await until(lambda: taped.stored_text() == "one")
    taped.print(" two")  # taken, and lost with the gateway
    later = await gone_on(taped)
    assert later.recorder.feed.last_seq == 2
    for text in ("one", " two", " three"):
        later.print(text)
    later.recorder.on_end(DONE)
    await later.finish()
    assert later.stored_text() == "one two three"
    assert later.store.runs[RUN_ID].result.output == "one two three"  # type: ignore[union-attr]


async def test_the_pieces_of_a_half_file_are_taken_again_and_what_is_between_them_is_not(taped: Taped) -> None:
    def say_all(into: Taped, frames: int) -> None:
        say = [
            lambda: into.print("before"),
            lambda: into.say("artifact", {"path": "f", "bytes": 6, "offset": 0}, b"ab"),
            lambda: into.print(" between"),
            lambda: into.say("artifact", {"path": "f", "bytes": 6, "offset": 2}, b"cd"),
            lambda: into.say("artifact", {"path": "f", "bytes": 6, "offset": 4}, b"ef"),
        ]
        for one in say[:frames]:
            one()

    say_all(taped, 4)
    await until(lambda: taped.acknowledgeable != [] and taped.acknowledgeable[-1] == 2)
    progress = taped.store.runs[RUN_ID].progress
    assert progress is not None
    assert (progress.taken_seq, progress.file_seq) == (4, 2)
    later = await gone_on(taped)
    say_all(later, 5)
    await until(lambda: later.recorder.uncommitted_seq is None)
    assert later.stored_text() == "before between"
    assert [artifact.data for artifact in later.store.runs[RUN_ID].artifacts.values()] == [b"abcdef"]


async def test_a_file_that_was_whole_is_not_taken_again(taped: Taped) -> None:
    content = {"path": "f", "bytes": 2, "offset": 0}
    taped.say("artifact", content, b"ab")
    await until(lambda: len(taped.store.runs[RUN_ID].artifacts) == 1)
    await until(lambda: taped.acknowledgeable == [None])
    later = await gone_on(taped)
    later.say("artifact", content, b"ab")
    later.recorder.on_end(DONE)
    await later.finish()
    assert len(later.store.runs[RUN_ID].artifacts) == 1


@pytest.mark.parametrize(
    "said", [("execute_reply", {"status": "ok"}), ("status", {"execution_state": "idle"}), ("status", {})]
)
async def test_what_the_kernel_has_said_of_its_end_is_known_to_the_next_gateway(
    taped: Taped, said: tuple[str, dict[str, Any]]
) -> None:
    taped.say(*said)
    await until(lambda: taped.acknowledgeable == [None])
    later = await gone_on(taped)
    assert later.recorder.has_reply() is (said[0] == "execute_reply")
    assert not later.recorder.code_ended.done()
    later.seq = taped.seq
    for other in (("execute_reply", {"status": "ok"}), ("status", {"execution_state": "idle"})):
        if other != said:
            later.say(*other)
    assert later.recorder.is_complete()
    assert later.recorder.code_ended.done()
    later.recorder.on_end(DONE)
    await later.finish()


async def test_a_gap_that_is_committed_is_not_counted_twice(taped: Taped) -> None:
    taped.seq += 1
    taped.recorder.on_gap(taped.seq, 7)
    await until(lambda: taped.acknowledgeable == [None])
    later = await gone_on(taped)
    later.recorder.on_gap(1, 7)
    later.recorder.on_gap(2, 9)
    later.recorder.on_end(DONE)
    await later.finish()
    truncated = [event for event in later.store.runs[RUN_ID].events.values() if event.type is EventType.TRUNCATED]
    assert [event.fields["dropped_bytes"] for event in truncated] == [16]


async def test_a_run_that_begins_again_on_another_kernel_takes_frames_from_the_first_and_writes_them(
    taped: Taped,
) -> None:
    taped.seq += 1
    taped.recorder.on_gap(taped.seq, 7)
    taped.recorder.on_end(Died(Cause.REJECTED, None, None, None, (), ran=False))
    await asyncio.sleep(0.03)
    taped.recorder.begin_again()
    assert not taped.recorder.ended.done()
    assert taped.recorder.uncommitted_seq is None
    taped.seq = 0
    taped.print("one")
    await until(lambda: taped.stored_text() == "one")


Recorded = tuple[str, list[bytes], list[EventType]]


def say(into: Taped, steps: list[str]) -> None:
    """The next of these frames. Files come in two pieces."""
    step, before = steps[into.seq], steps[: into.seq].count("file")
    match step:
        case "reply":
            into.say("execute_reply", {"status": "ok", "execution_count": 1})
        case "idle":
            into.say("status", {"execution_state": "idle"})
        case "file":
            into.say("artifact", {"path": "f", "bytes": 4, "offset": 2 * (before % 2)}, b"%d" % (10 + before))
        case text:
            into.print(text)


async def record(steps: list[str], stops: list[tuple[int, int, bool]]) -> Recorded:
    """What is stored when gateways stop after so many frames, and frames come again from so far back."""
    tape = await Taped(timeouts=replace(HURRIED, batch_pause_s=0.0)).begin()
    for stop, back, is_written in stops:
        while tape.seq < stop:
            say(tape, steps)
        if is_written:
            await asyncio.sleep(0.003)
        tape = await gone_on(tape)
        progress = tape.store.runs[RUN_ID].progress or Progress(0, None, {})
        acknowledged_seq = progress.taken_seq if progress.file_seq is None else progress.file_seq - 1
        tape.seq = max(0, acknowledged_seq - back)
    while tape.seq < len(steps):
        say(tape, steps)
    tape.recorder.on_end(DONE)
    await tape.finish()
    stored = tape.store.runs[RUN_ID]
    assert sorted(stored.events) == [*range(1, len(stored.events) + 1)]
    types = [event.type for _, event in sorted(stored.events.items()) if event.type is not EventType.STDOUT]
    return tape.stored_text(), [artifact.data for artifact in stored.artifacts.values()], types


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "reply", "idle", "file", "file"]), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.booleans()), min_size=1, max_size=3),
)
def test_wherever_gateways_stop_the_last_one_has_it_all_once(
    steps: list[str], stops: list[tuple[int, int, bool]]
) -> None:
    stops = [(min(stop, len(steps)), back, is_written) for stop, back, is_written in sorted(stops)]
    assert asyncio.run(record(steps, stops)) == asyncio.run(record(steps, []))
