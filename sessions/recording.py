"""A run on its way into the store: the kernel's messages are folded, written in batches, and only then acknowledged.

It owns the writing and its retries; what the messages mean is execution.py's, and when the run must end service.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from sessions.ends import Died, Done
from sessions.errors import StoreUnavailable
from sessions.execution import Execution
from sessions.messages import Message
from sessions.model import Batch, Result, RunId
from sessions.ports import Clock, Store

_BATCH_PAUSE_S = 0.25
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 2.0

log = structlog.get_logger()


class Recording:
    """`sessions.kernel.RequestListener` of one run.

    `code_ended` is done when the kernel has said so, or its first file comes, which the supervisor sends only then;
    `ended` once all that the code has made has come as well. Its state: the run's fold, the batch that is being
    written, and the first frame that no commit covers yet.
    """

    def __init__(self, run_id: RunId, execution: Execution, store: Store, clock: Clock) -> None:
        self.run_id = run_id
        self.execution = execution
        self.code_ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[Done | Died] = asyncio.get_running_loop().create_future()
        self.has_files = False
        self._said: set[str] = set()
        self._store = store
        self._clock = clock
        self._taken_seq = 0
        self._file_seq = 0
        self._uncommitted_seq: int | None = None
        self._writing_seq: int | None = None
        self._unwritten = Batch()
        self._committed: Callable[[], None] = lambda: None
        self._writer: asyncio.Task[None] | None = None

    @property
    def uncommitted_seq(self) -> int | None:
        """The first frame taken whose content is not yet committed."""
        return self._uncommitted_seq if self._writing_seq is None else self._writing_seq

    def on_commit(self, committed: Callable[[], None]) -> None:
        """Call `committed` after every commit, so that frames can be acknowledged."""
        self._committed = committed

    def on_message(self, seq: int, message: Message) -> None:
        """Fold a message in; what it adds is written soon."""
        self._taken_seq = seq
        if not self.execution.is_assembling():
            self._file_seq = seq
        self.execution.take(message)
        if not self.execution.has_pending() and not self.execution.is_assembling():
            self._uncommitted_seq = None  # a file whose last piece this was is not kept: nothing is left to commit
        elif self._uncommitted_seq is None:
            self._uncommitted_seq = seq
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write())
        if message.msg_type == "execute_reply" or message.content.get("execution_state") == "idle":
            self._said.add(message.msg_type)
        self.has_files = self.has_files or message.msg_type == "artifact"
        if (self.has_files or self.is_complete()) and not self.code_ended.done():
            self.code_ended.set_result(None)

    def has_reply(self) -> bool:
        """Whether the kernel's reply has come, which tells whether the code raised."""
        return "execute_reply" in self._said

    def is_complete(self) -> bool:
        """Whether the kernel itself has told the end of the code: by its reply, and by being idle."""
        return self._said >= {"execute_reply", "status"}

    def on_gap(self, dropped_bytes: int) -> None:
        """Output was lost on the way."""
        self.execution.take_gap(dropped_bytes)

    def on_done(self, done: Done) -> None:
        """The code has ended."""
        self._end(done)

    def on_died(self, died: Died) -> None:
        """The kernel has."""
        self._end(died)

    async def finish(self, result: Result) -> Result:
        """Commit the end with everything that is not committed yet; returns the result as it was stored.

        Tries for as long as it takes while the database is out of reach. What the database refuses is left out.
        """
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        batch = self._take_batch()
        finished_at = self._clock.now()
        try:
            await self._persist(lambda: self._store.finish_run(result, batch, finished_at))
        except Exception:
            log.exception("batch_refused", run_id=self.run_id, events=len(batch.events))
            result = replace(result, truncated=True)
            await self._persist(lambda: self._store.finish_run(result, Batch(), finished_at))
        self._unwritten, self._uncommitted_seq, self._writing_seq = Batch(), None, None
        self._committed()
        return result

    def _end(self, end: Done | Died) -> None:
        """The frame that says so has a number above all others, and only `finish` commits what it says."""
        if not self.code_ended.done():
            self.code_ended.set_result(None)
        if not self.ended.done():
            self.ended.set_result(end)
            if self._uncommitted_seq is None:
                self._uncommitted_seq = self._taken_seq + 1

    async def _write(self) -> None:
        """Write what has come, again and again, until the run's end, which `finish` commits."""
        while True:
            await asyncio.sleep(_BATCH_PAUSE_S)
            if self.ended.done():
                return
            if not self.execution.has_pending():
                continue
            batch = self._take_batch()
            self._writing_seq = self._uncommitted_seq
            # The pieces of a file that is not complete are in no batch yet.
            self._uncommitted_seq = self._file_seq if self.execution.is_assembling() else None
            try:
                await self._persist(lambda batch=batch: self._store.append(self.run_id, batch))  # type: ignore[misc]
            except Exception:
                log.exception("batch_refused", run_id=self.run_id, events=len(batch.events))
                return  # `finish` tries once more, with everything
            self._unwritten, self._writing_seq = Batch(), None
            self._committed()

    def _take_batch(self) -> Batch:
        """All that no commit has confirmed: a batch whose writing was broken off is written once more, harmlessly."""
        fresh = self.execution.drain()
        self._unwritten = Batch(self._unwritten.events + fresh.events, self._unwritten.artifacts + fresh.artifacts)
        return self._unwritten

    async def _persist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write, and while the database is out of reach, try again."""
        pause_s = _FIRST_RETRY_S
        while True:
            try:
                await write()
            except StoreUnavailable as error:
                log.warning("run_not_written", run_id=self.run_id, reason=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_RETRY_S)
            else:
                return
