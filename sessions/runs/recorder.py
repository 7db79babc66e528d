"""Records a run: folds its kernel's messages, writes the events in batches, and then lets their frames be acknowledged.

It owns the writing and its retries. What the messages mean is decided in fold.py, when the run must end in executor.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from math import inf
from typing import Any

import structlog

from sessions.concurrency import growing_pauses, retry
from sessions.errors import StoreUnavailable
from sessions.kernels.messages import Message
from sessions.kernels.outcomes import Died, Done
from sessions.measures.stages import RunTrace, Stage, Stages
from sessions.model import Batch, Event, EventType, Progress, Result, RunId, Session
from sessions.output.fold import RunFold
from sessions.ports import Clock, Store
from sessions.runs.feed import Feed
from sessions.settings import Timeouts

_FIRST_FOLLOWED_PAUSE_S = 0.001
_FOLLOWED_PAUSE_S = 0.02
_WARNING_PAUSE_S = 60.0
_MOST_REFUSALS = 2

log = structlog.get_logger()


class Recorder:
    """`sessions.kernels.pending_requests.RequestListener` of one run.

    `code_ended` is done when the kernel has said so, or when its first file comes, which the supervisor sends only
    then; `ended` once the files have come as well. `feed` has the committed events. The mutable state: the run's fold,
    the batch that is being written, the last frame folded, the first frame that no commit covers yet, the last
    frame that an earlier gateway's commits cover, and when a failure was last told in the log.
    """

    def __init__(
        self,
        run_id: RunId,
        fold: RunFold,
        store: Store,
        clock: Clock,
        timeouts: Timeouts,
        *,
        trace: RunTrace | None = None,
        log_fields: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """`log_fields` says what every line of the log about the run has, if that is more than its id."""
        loop = asyncio.get_running_loop()
        self.run_id = run_id
        self._log_fields = log_fields or (lambda: {"run_id": run_id})
        self.fold = fold
        self.feed = Feed()
        self.code_ended: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Done | Died] = loop.create_future()
        self.has_files = False
        self.is_held_up = False
        self.failure = ""
        self._warned_at_s = -inf
        self._seen_types: set[str] = set()
        self._store = store
        self._clock = clock
        self._timeouts = timeouts
        self._trace = trace or RunTrace(Stages())
        self._taken_seq = 0
        self._file_seq = 0
        self._covered = Progress(0, None, {})
        self._uncommitted_seq: int | None = None
        self._writing_seq: int | None = None
        self._unwritten = Batch()
        self._committed: Callable[[], None] = lambda: None
        self._end_committed = self._committed
        self._writer: asyncio.Task[None] | None = None
        self._begin_timer: asyncio.TimerHandle | None = None
        self.feed.on_followed = self._begin_writing_soon
        self._is_writing = False
        self._is_stopping = False
        self._news = asyncio.Event()
        self._has_events = asyncio.Event()

    @property
    def uncommitted_seq(self) -> int | None:
        """The first folded frame whose content is not committed yet."""
        return self._uncommitted_seq if self._writing_seq is None else self._writing_seq

    def on_commit(self, committed: Callable[[], None], ended: Callable[[], None] | None = None) -> None:
        """Call `committed` after every commit, so that frames can be acknowledged; `ended`, if any, after the last."""
        self._committed, self._end_committed = committed, ended or committed

    def resume(self, events: Sequence[Event], progress: Progress) -> None:
        """Go on from what an earlier gateway has committed; frames that this covers are skipped."""
        self.fold.resume(events, progress.state.get("execution", {}))
        self._seen_types = set(progress.state.get("said", ()))
        self.has_files = bool(progress.state.get("has_files", False))
        self._covered = progress
        self._taken_seq = progress.taken_seq
        self._file_seq = progress.file_seq or progress.taken_seq
        self.feed.publish(events)
        self._note_code_ended()

    def on_message(self, seq: int, message: Message) -> None:
        """Fold a message; the events that it adds are written soon."""
        if self._is_covered(seq, is_piece=message.msg_type == "artifact"):
            return
        if not self.fold.is_assembling():
            self._file_seq = seq
        if not self._taken_seq:
            self._trace.end(Stage.KERNEL_BUSY)
        begun_s = time.perf_counter()
        self.fold.handle_message(message)
        self._trace.add_fold(begun_s)
        if message.msg_type == "execute_reply" or message.content.get("execution_state") == "idle":
            self._seen_types.add(message.msg_type)
        self.has_files = self.has_files or message.msg_type == "artifact"
        self._note_frame(seq)
        self._note_code_ended()

    def on_gap(self, seq: int, dropped_bytes: int) -> None:
        """Output was lost on the way."""
        if not self._is_covered(seq, is_piece=False):
            self.fold.handle_gap(dropped_bytes)
            self._note_frame(seq)

    def on_end(self, end: Done | Died) -> None:
        """The code has ended, or the kernel has died.

        The frame that says so has a number above all others; only `finish` commits it.
        """
        if not self.code_ended.done():
            self.code_ended.set_result(None)
        if not self.ended.done():
            self._trace.end_frames()
            self.ended.set_result(end)
            if self._uncommitted_seq is None:
                self._uncommitted_seq = self._taken_seq + 1

    def has_begun(self) -> bool:
        """Whether anything of the run is committed."""
        return self.feed.last_seq > 0 or self._covered.taken_seq > 0

    def begin_again(self) -> None:
        """The kernel did not take this run, which will be sent to another one."""
        self.ended = asyncio.get_running_loop().create_future()
        self.code_ended = asyncio.get_running_loop().create_future()
        self._covered = Progress(0, None, {})
        self._uncommitted_seq = None
        self._taken_seq = 0
        self._forget_timer()
        if self._writer is not None and self._writer.done():
            self._writer = None

    def has_reply(self) -> bool:
        """Whether the kernel's reply has come, which tells whether the code raised."""
        return "execute_reply" in self._seen_types

    def is_complete(self) -> bool:
        """Whether the kernel itself has told the end of the code: by its reply, and by being idle."""
        return self._seen_types >= {"execute_reply", "status"}

    async def finish(self, result: Result, session: Session | None = None) -> Result:
        """Commit the end with everything that is not committed yet; returns the result as it was stored.

        Tries for as long as it takes while the database is out of reach. What the database refuses is left out.
        """
        await self._stop_writing()
        batch = self._unwritten_events()
        finished_at = self._clock.now()
        refusals = 0
        while True:
            try:
                await self._store_end(result, batch, finished_at, session)
            except Exception:
                if refusals == _MOST_REFUSALS:
                    raise
                log.exception("batch_refused", **self._log_fields(), events=len(batch.events))
                refusals += 1
                result = replace(result, truncated=True)
                batch = self._least_batch(batch) if refusals < _MOST_REFUSALS else Batch()
            else:
                break
        self._unwritten, self._uncommitted_seq, self._writing_seq = Batch(), None, None
        self.feed.publish(batch.events)
        self.feed.close()
        self._end_committed()
        return result

    async def _store_end(self, result: Result, batch: Batch, finished_at: datetime, session: Session | None) -> None:
        await self._persist(lambda: self._store.finish_run(result, batch, finished_at, session))

    def _least_batch(self, refused: Batch) -> Batch:
        """Of a batch that the database refuses, the events that every run must have: its start and its end."""
        kept = [event for event in refused.events if event.type in (EventType.STARTED, EventType.END)]
        first_seq = self.feed.last_seq + 1
        return Batch(tuple(replace(event, seq=first_seq + index) for index, event in enumerate(kept)))

    async def stop_writing(self) -> None:
        """Write no more. What is not committed was not acknowledged either, so the next gateway gets it again."""
        self._is_stopping = True
        self._forget_timer()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        self.feed.close()

    def _is_covered(self, seq: int, *, is_piece: bool) -> bool:
        """Whether an earlier gateway has committed the content of this frame."""
        if seq > self._covered.taken_seq:
            return False
        return not is_piece or self._covered.file_seq is None or seq < self._covered.file_seq

    def _note_frame(self, seq: int) -> None:
        """A frame was folded. Even one without an event changes the state that the next gateway resumes from."""
        self._taken_seq = max(self._taken_seq, seq)
        if self._uncommitted_seq is None:
            self._uncommitted_seq = seq
        self._news.set()
        if self.fold.has_pending():
            self._has_events.set()
        self._begin_writing_soon()

    def _begin_writing_soon(self) -> None:
        """Have the writer begin when output has gathered for a while, or at once while somebody follows the run.

        A short run that nobody follows ends before: its one commit is that of its end.
        """
        if self._writer is not None or self._is_stopping or not self._news.is_set():
            return
        if self.feed.followed.is_set():
            self._begin_writing(has_gathered=False)
        elif self._begin_timer is None:
            gathered = partial(self._begin_writing, has_gathered=True)
            self._begin_timer = asyncio.get_running_loop().call_later(self._timeouts.batch_pause_s, gathered)

    def _begin_writing(self, *, has_gathered: bool) -> None:
        self._forget_timer()
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write(has_gathered=has_gathered))

    def _forget_timer(self) -> None:
        if self._begin_timer is not None:
            self._begin_timer.cancel()
            self._begin_timer = None

    def _note_code_ended(self) -> None:
        if (self.has_files or self.is_complete()) and not self.code_ended.done():
            self._trace.end(Stage.IDLE)
            self.code_ended.set_result(None)

    async def _write(self, *, has_gathered: bool) -> None:
        """Write batch after batch until the run ends; `finish` commits the end."""
        pause_s = _FIRST_FOLLOWED_PAUSE_S
        while True:
            if not self._has_events.is_set():
                pause_s = _FIRST_FOLLOWED_PAUSE_S
            await self._news.wait()
            if not has_gathered:
                await self._pause()
            has_gathered = False
            if self.ended.done():
                return
            self._news.clear()
            self._has_events.clear()
            batch = self._next_batch()
            self._writing_seq = self._uncommitted_seq
            # The pieces of a file that is not complete are in no batch yet.
            self._uncommitted_seq = self._file_seq if self.fold.is_assembling() else None
            self._is_writing = True
            try:
                await self._persist(lambda batch=batch: self._store.append(self.run_id, batch))  # type: ignore[misc]
            except Exception:
                log.exception("batch_refused", **self._log_fields(), events=len(batch.events))
                return  # `finish` tries once more, with everything
            finally:
                self._is_writing = False
            self._unwritten, self._writing_seq = Batch(), None
            self.feed.publish(batch.events)
            self._committed()
            if self._is_stopping:
                return
            if self.feed.followed.is_set():
                # Continuous output is committed less and less often; a single line never waits.
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _FOLLOWED_PAUSE_S)

    async def _pause(self) -> None:
        """Let output gather. Events go out at once while somebody follows the run."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.batch_pause_s):
                await self.feed.followed.wait()
                await self._has_events.wait()

    async def _stop_writing(self) -> None:
        """End the writer, after the batch that is being written."""
        self._is_stopping = True
        self._forget_timer()
        if self._writer is not None:
            if not self._is_writing:
                self._writer.cancel()
            await asyncio.wait([self._writer])

    def _next_batch(self) -> Batch:
        """All that no commit has confirmed, and how far that goes. To write a batch twice does no harm."""
        # The keys are stored: they stay.
        state = {"said": sorted(self._seen_types), "has_files": self.has_files, "execution": self.fold.state()}
        file_seq = self._file_seq if self.fold.is_assembling() else None
        return replace(self._unwritten_events(), progress=Progress(self._taken_seq, file_seq, state))

    def _unwritten_events(self) -> Batch:
        """The same for a run that has ended: nobody goes on from there."""
        fresh, unwritten = self.fold.drain(), self._unwritten
        self._unwritten = Batch(unwritten.events + fresh.events, unwritten.artifacts + fresh.artifacts)
        return self._unwritten

    async def _persist(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Write; try again for as long as the store is out of reach."""
        pauses = growing_pauses(self._timeouts.first_write_retry_s, self._timeouts.longest_write_retry_s)
        await retry(write, on=StoreUnavailable, pauses=pauses, on_failure=self._note_failure)
        self.is_held_up = False
        self.failure = ""

    def _note_failure(self, error: Exception) -> None:
        self.is_held_up = True
        self.failure = str(error).partition(";")[0]
        now_s = self._clock.monotonic()
        if now_s >= self._warned_at_s + _WARNING_PAUSE_S:
            self._warned_at_s = now_s
            cause = str(error.__cause__ or "no answer in time").strip()
            log.warning("run_not_written", **self._log_fields(), cause=cause)
