"""A run on its way into the store: what is committed when, and how far frames may be acknowledged meanwhile."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from doubles import ManualClock, until

import sessions.recording
from sessions.ends import Cause, Died, Done
from sessions.execution import Execution
from sessions.memory_store import MemoryStore
from sessions.messages import Message
from sessions.model import ANONYMOUS, ArtifactId, EventType, GatewayId, Limits, Run, RunId, RunStatus
from sessions.recording import Recording

DONE = Done(None, 0, ())
RUN_ID = RunId("00000000-0000-4000-8000-000000000001")


class Taped:
    """A recording with its store; `acknowledgeable` is how far frames might have been acknowledged at each commit."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        execution = Execution(RUN_ID, Limits(), lambda: ArtifactId(str(uuid4())))
        self.recording = Recording(RUN_ID, execution, self.store, ManualClock())
        self.recording.on_commit(lambda: self.acknowledgeable.append(self.recording.uncommitted_seq))
        self.acknowledgeable: list[int | None] = []
        self.seq = 0

    async def begin(self) -> Taped:
        run = Run(RUN_ID, ANONYMOUS, GatewayId("g"), "python", "", {}, 1.0, datetime(2026, 1, 1, tzinfo=UTC))
        await self.store.add_run(run)
        return self

    def say(self, msg_type: str, content: dict[str, Any], *buffers: bytes) -> int:
        self.seq += 1
        self.recording.on_message(self.seq, Message("iopub", msg_type, "p", content, buffers))
        return self.seq

    def print(self, text: str) -> int:
        return self.say("stream", {"name": "stdout", "text": text})

    def stored_text(self) -> str:
        events = self.store.runs[RUN_ID].events.values()
        return "".join(str(event.fields["text"]) for event in events if event.type is EventType.STDOUT)

    async def finish(self) -> None:
        await self.recording.finish(self.recording.execution.finish(RunStatus.OK, None, None))


@pytest.fixture
async def taped(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Taped]:
    monkeypatch.setattr(sessions.recording, "_BATCH_PAUSE_S", 0.01)
    monkeypatch.setattr(sessions.recording, "_FIRST_RETRY_S", 0.01)
    taped = await Taped().begin()
    yield taped
    taped.store.is_reachable = True
    if not taped.store.runs[RUN_ID].finished_at:
        await taped.finish()


async def test_output_is_stored_while_the_run_goes_on(taped: Taped) -> None:
    seq = taped.print("one")
    assert taped.recording.uncommitted_seq == seq
    await until(lambda: taped.stored_text() == "one")
    await until(lambda: taped.recording.uncommitted_seq is None)
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
    assert taped.recording.uncommitted_seq == seq
    await until(lambda: taped.acknowledgeable == [None])
    assert taped.store.runs[RUN_ID].events


async def test_a_message_without_an_event_holds_its_frame_until_the_progress_past_it_is_committed(taped: Taped) -> None:
    seq = taped.say("status", {"execution_state": "idle"})
    assert taped.recording.uncommitted_seq == seq
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
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 30_000, 30_000, 8, 2, 0, 0, 0) + bytes(64)
    first = taped.say("artifact", {"path": "f.png", "bytes": len(huge), "offset": 0}, huge[:50])
    await until(lambda: taped.acknowledgeable == [first])
    taped.say("artifact", {"path": "f.png", "bytes": len(huge), "offset": 50}, huge[50:])
    await until(lambda: taped.recording.uncommitted_seq is None)
    await taped.finish()
    assert taped.store.runs[RUN_ID].artifacts == {}


async def test_while_the_store_is_away_nothing_is_acknowledged_and_nothing_lost(taped: Taped) -> None:
    taped.store.is_reachable = False
    first = taped.print("one")
    await asyncio.sleep(0.05)
    taped.print(" two")
    await asyncio.sleep(0.05)
    assert taped.acknowledgeable == []
    assert taped.recording.uncommitted_seq == first
    taped.store.is_reachable = True
    await until(lambda: taped.stored_text() == "one two")
    await until(lambda: taped.recording.uncommitted_seq is None)


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
    await until(lambda: taped.recording.uncommitted_seq is None)
    taped.recording.on_done(DONE)
    assert taped.recording.uncommitted_seq == taped.seq + 1
    await asyncio.sleep(0.05)
    assert taped.recording.uncommitted_seq == taped.seq + 1
    await taped.finish()
    assert taped.recording.uncommitted_seq is None
    assert taped.acknowledgeable == [None, None]


async def test_the_end_is_stored_with_what_was_not_yet_written(taped: Taped) -> None:
    taped.print("all of it")
    taped.recording.on_done(DONE)
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
    taped.recording.on_died(Died(Cause.GONE, None, None, None, ()))
    finishing = asyncio.ensure_future(taped.finish())
    await asyncio.sleep(0.03)
    assert not finishing.done()
    taped.store.is_reachable = True
    await finishing
    assert taped.stored_text() == "one"
    assert sorted(taped.store.runs[RUN_ID].events) == [1, 2, 3]
    assert taped.recording.uncommitted_seq is None


async def test_a_run_ends_once(taped: Taped) -> None:
    taped.recording.on_done(DONE)
    taped.recording.on_died(Died(Cause.EXITED, 0, None, None, ()))
    assert taped.recording.ended.result() == DONE


async def test_after_the_end_no_task_is_left(taped: Taped) -> None:
    taped.print("x")
    taped.recording.on_done(DONE)
    await taped.finish()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_once_the_run_has_ended_only_its_end_is_written(taped: Taped) -> None:
    seq = taped.print("last words")
    taped.recording.on_done(DONE)
    await asyncio.sleep(0.05)
    assert (taped.recording.uncommitted_seq, taped.acknowledgeable) == (seq, [])
    await taped.finish()
    assert taped.acknowledgeable == [None]
    assert taped.stored_text() == "last words"
