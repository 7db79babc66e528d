"""One session: its kernel, and the runs that wait for it in order.

Which sessions there are, and for how long, is registry.py's. The kernel may come and go; what is said of that to the
client is `Session.news`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import structlog

from sessions.conduct import INTERNAL_ERROR, Conductor, NotTaken
from sessions.errors import CellblockError, Draining, KernelLost, StoreUnavailable, Unavailable
from sessions.kernel import Kernel, KernelState
from sessions.live_run import LiveRun, Stop
from sessions.model import Result, RunStatus, Session, SessionNews, SessionState, SessionView, Usage
from sessions.ports import Clock, KernelFiles, Store
from sessions.supply import KernelSupply

_CLAIM_TIMEOUT_S = 30.0
_READY_TIMEOUT_S = 60.0
_INTERRUPT_GRACE_S = 2.0
_ATTEMPTS = 3
_RETRY_S = 0.5

_NOT_RUN = "No kernel took this code, and it was not run: {}"

log = structlog.get_logger()


class LiveSession:
    """A session of this gateway.

    The state: `record`, as it was last committed or is about to be; the kernel of the moment; the waiting runs, of
    which the first is `current` while it is at work; when it was last used, by the monotonic clock; and whether it is
    over.
    """

    def __init__(
        self,
        record: Session,
        kernel_name: str,
        *,
        store: Store,
        supply: KernelSupply,
        conductor: Conductor,
        clock: Clock,
    ) -> None:
        self.record = record
        self.kernel_name = kernel_name
        self.kernel: Kernel | None = None
        self.current: LiveRun | None = None
        self.is_over = False
        self._store = store
        self._supply = supply
        self._conductor = conductor
        self._clock = clock
        now_s, now = clock.monotonic(), clock.now()
        # What is left of its times is measured by a clock that nobody sets.
        self._born_s = now_s - max(0.0, (now - record.created_at).total_seconds())
        self._used_s = now_s - max(0.0, (now - record.last_used_at).total_seconds())
        self._queue: deque[LiveRun] = deque()
        self._turn = asyncio.Lock()
        self._claiming = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return (
            f"<LiveSession {self.record.session_id} {self.view().state}, {len(self._queue)} runs, {self.record.news}>"
        )

    # --- questions ----------------------------------------------------------------------------------------------------

    def view(self) -> SessionView:
        """As it is now."""
        if self.kernel is None:
            state = SessionState.DEAD
        elif self.current is not None:
            state = SessionState.BUSY
        else:
            state = SessionState.IDLE if self.kernel.is_ready() else SessionState.STARTING
        return SessionView(self.record, state)

    def runs(self) -> int:
        """How many runs are at work or wait."""
        return len(self._queue)

    def has_expired(self) -> str | None:
        """Why it should end now, as a sentence; None when it should not. A session at work is not idle."""
        now_s = self._clock.monotonic()
        if now_s - self._born_s >= self.record.max_lifetime_s:
            return f"The session reached its max_lifetime of {self.record.max_lifetime_s:g} s."
        if not self._queue and now_s - self._used_s >= self.record.idle_timeout_s:
            return f"The session was idle for {self.record.idle_timeout_s:g} s."
        return None

    # --- its kernel ---------------------------------------------------------------------------------------------------

    def adopt(self, kernel: Kernel | None) -> None:
        """Take over the kernel that an earlier gateway gave this session, or learn that it is gone."""
        if kernel is None:
            self._note_loss()
        else:
            self.kernel = kernel
            kernel.watch(self._on_change)

    async def ensure_kernel(self) -> Kernel:
        """A kernel that answers: the session's own, or where that is gone a fresh one.

        Raises Unavailable in its kinds, TooManyRequests.
        """
        async with self._claiming:
            for _ in range(_ATTEMPTS):
                kernel = self.kernel or await self._claim()
                try:
                    await kernel.wait_ready(_READY_TIMEOUT_S)
                except KernelLost:
                    kernel.abandon("its kernel does not answer")
                    self._drop(kernel)
                else:
                    return kernel
        raise Unavailable("The session's kernel does not come up; nothing was run: try again in a moment.")

    async def files(self) -> KernelFiles:
        """The files below its working directory. Raises as `ensure_kernel` does."""
        kernel = await self.ensure_kernel()
        await self.renew()
        return kernel.files

    async def renew(self, idle_timeout_s: float | None = None, max_lifetime_s: float | None = None) -> None:
        """It is being used now; change the time-outs that are given. Raises StoreUnavailable."""
        record = replace(
            self.record,
            last_used_at=self._clock.now(),
            idle_timeout_s=idle_timeout_s or self.record.idle_timeout_s,
            max_lifetime_s=max_lifetime_s or self.record.max_lifetime_s,
        )
        await self._store.update_session(record)
        self._used_s = self._clock.monotonic()
        self.record = replace(
            self.record,
            last_used_at=record.last_used_at,
            idle_timeout_s=record.idle_timeout_s,
            max_lifetime_s=record.max_lifetime_s,
        )

    def interrupt(self) -> None:
        """Interrupt what runs, as Ctrl-C would; a kernel that ignores it is killed."""
        if self.current is not None:
            self.current.interrupt(_INTERRUPT_GRACE_S)

    async def restart(self) -> None:
        """Give it a fresh kernel process; files stay. What runs ends as cancelled, what waits goes on afterwards.

        Raises Unavailable.
        """
        if self.current is not None:
            self.current.request_stop(Stop(RunStatus.CANCELLED, "The session was restarted while this ran."))
        before = self.kernel.generation if self.kernel is not None else 0
        if self.kernel is not None:
            self.kernel.restart()
        async with self._turn:
            kernel = self.kernel
            if kernel is not None:
                try:
                    await kernel.wait_restarted(before, _READY_TIMEOUT_S)
                except KernelLost:
                    kernel.abandon("it does not restart")
                    self._drop(kernel)
            kernel = await self.ensure_kernel()
            self.record = replace(self.record, generation=kernel.generation, news=SessionNews.NONE)
            await self.renew()

    async def _claim(self) -> Kernel:
        kernel = await self._supply.claim(self.kernel_name, _CLAIM_TIMEOUT_S)
        record = replace(self.record, kernel_id=kernel.kernel_id, generation=kernel.generation)
        try:
            # Before anything runs there: a gateway that starts later must know whose it is.
            await self._store.update_session(record)
        except BaseException:
            self._supply.give_back(kernel)
            raise
        # It may have been renewed meanwhile.
        self.record = replace(self.record, kernel_id=record.kernel_id, generation=record.generation)
        self.kernel = kernel
        kernel.watch(self._on_change)
        return kernel

    def _on_change(self, kernel: Kernel) -> None:
        """A kernel that goes while it runs nothing takes the variables along unseen: the next run will say so.

        One whose process alone died has another `generation` then.
        """
        if kernel is self.kernel and kernel.state is KernelState.GONE and self.current is None:
            self._drop(kernel)

    def _drop(self, kernel: Kernel) -> None:
        if kernel is self.kernel:
            self.kernel = None
            self._supply.retire(kernel)
            self._note_loss()

    def _note_loss(self) -> None:
        news = SessionNews.LOST if self.record.news is SessionNews.NONE else self.record.news
        self.record = replace(self.record, kernel_id=None, news=news)
        self._spawn(self._try_to_store())

    async def _try_to_store(self) -> None:
        """Record it for a later gateway, which would find out by itself as well: the kernel is not there."""
        try:
            await self._store.update_session(self.record)
        except StoreUnavailable as error:
            log.warning("session_not_written", session_id=self.record.session_id, reason=str(error))

    # --- its runs -----------------------------------------------------------------------------------------------------

    def enqueue(self, live: LiveRun) -> None:
        """Run it once those before it have ended."""
        if live.is_resumed:
            self._tell_news(live, self.record.generation)  # before its first event, if none has been committed
        self._queue.append(live)
        if self._worker is None:
            self._worker = asyncio.ensure_future(self._work())

    def cancel(self, live: LiveRun, stop: Stop) -> None:
        """Have a run end: at once where it only waits."""
        live.request_stop(stop)
        if live is not self.current and live in self._queue:
            self._queue.remove(live)
            self._spawn(self._end(live, live.execution.finish(stop.status, stop.reason, None), None))

    async def end(self, reason: str) -> None:
        """Stop what runs and what waits, and give the kernel up."""
        self.is_over = True
        stop = Stop(RunStatus.CANCELLED, reason)
        for live in list(self._queue):
            self.cancel(live, stop)
        while waiting := {task for task in (self._worker, *self._tasks) if task is not None}:
            await asyncio.wait(waiting)
        if self.kernel is not None:
            kernel, self.kernel = self.kernel, None
            self._supply.retire(kernel)

    async def suspend(self) -> Kernel | None:
        """Leave everything to a later gateway; returns the kernel to keep."""
        self.is_over = True
        tasks = {task for task in (self._worker, *self._tasks) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for live in self._queue:
            await live.recording.break_off()
        return self.kernel

    async def _work(self) -> None:
        try:
            while self._queue:
                async with self._turn:
                    if self._queue:
                        self.current = self._queue[0]
                        try:
                            await self._serve(self.current)
                        except Exception:
                            # Its end is not stored, but it has been run, and must not be run again.
                            log.exception("run_not_ended", run_id=self.current.run_id)
                        self._queue.popleft()
                        self.current = None
        finally:
            self._worker = None

    async def _serve(self, live: LiveRun) -> None:
        """Run it on the session's kernel, or on the next one where that has not taken it; then commit its end."""
        kernel: Kernel | None = None
        why = "the kernel ended again and again"
        for _ in range(_ATTEMPTS):
            if live.stop is not None and not live.is_resumed:
                await self._end(live, live.execution.finish(live.stop.status, live.stop.reason, None), None)
                return
            try:
                kernel = self.kernel if live.is_resumed else await self.ensure_kernel()
                if live.stop is not None and not live.is_resumed:
                    continue
                result = await self._attempt(live, kernel)
            except NotTaken:
                continue
            except Draining:
                await asyncio.Event().wait()  # the next gateway runs it: this one is about to suspend the session
            except CellblockError as error:
                why = str(error)
                break
            except Exception:
                # A bug of ours, but the run has one final status all the same.
                log.exception("run_failed", run_id=live.run_id)
                result = Result(live.run_id, RunStatus.LOST, output="", error=INTERNAL_ERROR)
            await self._end(live, result, kernel)
            return
        await self._end(live, live.execution.finish(RunStatus.KERNEL_DIED, _NOT_RUN.format(why), None), None)

    async def _attempt(self, live: LiveRun, kernel: Kernel | None) -> Result:
        if live.is_resumed:
            live.is_resumed = False
            return await self._resume(live, kernel)
        assert kernel is not None  # noqa: S101 - only a resumed run is served without one
        if live.run.kernel_id != kernel.kernel_id:
            await self._record_start(live, kernel)
        self._tell_news(live, kernel.generation)
        return await self._conductor.perform(live, kernel)

    async def _resume(self, live: LiveRun, kernel: Kernel | None) -> Result:
        """Go on with a run that an earlier gateway has begun."""
        if kernel is None or live.kernel is not kernel or not await self._conductor.find(live, kernel):
            return self._conductor.lost(live)
        self._tell_news(live, live.generation or self.record.generation)
        began_at = live.run.started_at or live.run.created_at
        return await self._conductor.resume(live, kernel, (self._clock.now() - began_at).total_seconds())

    def _tell_news(self, live: LiveRun, generation: int) -> None:
        """What this run, which is sent to this kernel process, has to say of the session."""
        news = self.record.news
        if news is SessionNews.NONE and generation != self.record.generation:
            news = SessionNews.LOST
        live.execution.session_created = news is not SessionNews.NONE
        live.execution.session_lost = news is SessionNews.LOST

    async def _record_start(self, live: LiveRun, kernel: Kernel) -> None:
        """Before it is sent: a later gateway asks this kernel whether it has taken it. Waits for the database."""
        started_at = self._clock.now()
        while True:
            try:
                await self._store.start_run(live.run_id, kernel.kernel_id, started_at)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)
            else:
                break
        live.run = replace(live.run, kernel_id=kernel.kernel_id, started_at=started_at)

    async def _end(self, live: LiveRun, result: Result, kernel: Kernel | None) -> None:
        """Commit the end, with what it has changed of the session where it was run on this kernel."""
        if kernel is None and not live.lost_kernel:
            await live.commit(result)
            return
        before = self.record
        is_gone = kernel is None or kernel.state is KernelState.GONE
        news = SessionNews.LOST if is_gone else SessionNews.NONE
        if live.lost_kernel:  # which this run itself has said
            news = SessionNews.CREATED
        self.record = replace(
            before,
            last_used_at=self._clock.now(),
            kernel_id=None if kernel is None or is_gone else kernel.kernel_id,
            generation=live.generation or before.generation,
            news=news,
            runs=before.runs + 1,
            usage=_sum(before.usage, result.usage),
        )
        self._used_s = self._clock.monotonic()
        await live.commit(result, self.record)
        if kernel is not None and is_gone and kernel is self.kernel:
            self.kernel = None
            self._supply.retire(kernel)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _sum(total: Usage, one: Usage | None) -> Usage:
    if one is None:
        return total
    return Usage(
        wall_ms=total.wall_ms + one.wall_ms,
        cpu_ms=total.cpu_ms + one.cpu_ms,
        memory_peak_bytes=max(total.memory_peak_bytes, one.memory_peak_bytes),
    )
