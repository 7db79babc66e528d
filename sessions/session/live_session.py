"""One session: the runs that wait in it, in order, and for how long it is kept.

Which sessions there are is registry.py's; what becomes of its kernel, and what is said of that, session_kernel.py's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from sessions.errors import EndNotStored, KernelLost, StoreUnavailable
from sessions.kernels.kernel import Kernel
from sessions.kernels.kernel_pool import KernelPool
from sessions.model import JupyterSession, Result, RunId, RunStatus, Session, SessionState, SessionView
from sessions.ports import Clock, KernelFiles, Store
from sessions.runs.attempts import NOT_RUN, Attempts, NotRun
from sessions.runs.live_run import INTERRUPT_GRACE_S, LiveRun, Stop
from sessions.session.observer import Observers
from sessions.session.session_kernel import SessionKernel

_RESTARTED = "The session was restarted while this {}."
_ABORTED = "This was not run, because what the same Jupyter client had asked for before it failed."
_NOT_ENDED = "An error inside the gateway lost the end of the run {}. Do not run it again: the code may have run."
_RENEWAL_PAUSE_S = 30.0
_ANSWER_TIMEOUT_S = 10.0

log = structlog.get_logger()


class LiveSession:
    """A session of this gateway.

    The state: its kernel and record; the waiting runs, of which the first is `current` while it is at work; when it was
    last used, by the monotonic clock; whose turn it is with the kernel; and whether it is over. `audience` are the
    Jupyter clients of its kernel, `_behind` what waited behind the last run whose reply one of them was told.
    """

    patience_s = 120.0

    def __init__(
        self,
        record: Session,
        kernel_name: str,
        *,
        store: Store,
        kernel_pool: KernelPool,
        attempts: Attempts,
        clock: Clock,
    ) -> None:
        self.current: LiveRun | None = None
        self.is_over = False
        self._kernel_name = kernel_name
        self.observers = Observers()
        self._kernel = SessionKernel(
            record, kernel_name, store=store, kernel_pool=kernel_pool, observers=self.observers, clock=clock
        )
        self._store = store
        self._attempts = attempts
        self._clock = clock
        now_s, now = clock.monotonic(), clock.now()
        # What is left of its times is measured by a clock that nobody sets.
        self._born_s = now_s - max(0.0, (now - record.created_at).total_seconds())
        self._used_s = now_s - max(0.0, (now - record.last_used_at).total_seconds())
        self._touched_s = now_s
        self._queue: deque[LiveRun] = deque()
        self._behind: tuple[RunId | None, list[LiveRun]] = (None, [])
        self._turn = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<LiveSession {self.record.session_id} {self.view().state}, {len(self._queue)} runs>"

    # --- questions ----------------------------------------------------------------------------------------------------

    @property
    def record(self) -> Session:
        """What is recorded of it, or about to be."""
        return self._kernel.record

    @property
    def kernel(self) -> Kernel | None:
        """Its kernel of the moment."""
        return self._kernel.kernel

    def view(self) -> SessionView:
        """As it is now."""
        if self.current is not None:
            state = SessionState.BUSY
        elif self.kernel is None:
            state = SessionState.STARTING if self._turn.locked() else SessionState.DEAD
        else:
            state = SessionState.IDLE if self.kernel.is_ready() else SessionState.STARTING
        return SessionView(self.record, state, self._kernel_name, last_activity=self.record.last_used_at)

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
        self._kernel.adopt(kernel)

    async def ensure_kernel(self) -> Kernel:
        """A kernel that answers, once what runs has ended. Raises as `SessionKernel.ensure` does."""
        async with self._turn:
            return await self._kernel.ensure()

    async def answering_kernel(self) -> Kernel:
        """The kernel that a run is at work on, once it answers; else one that does. Raises as `ensure_kernel` does."""
        kernel = self.kernel
        if kernel is not None and self.current is not None:
            with suppress(KernelLost):
                await kernel.wait_ready(_ANSWER_TIMEOUT_S)
                return kernel
        return await self.ensure_kernel()

    async def files(self) -> KernelFiles:
        """The files below its working directory. Raises as `ensure_kernel` does."""
        kernel = self.kernel
        if kernel is None or not kernel.is_linked():
            kernel = await self.ensure_kernel()
        await self.renew()
        return kernel.files

    async def renew(self, idle_timeout_s: float | None = None, max_lifetime_s: float | None = None) -> None:
        """It is being used now; change the time-outs that are given. Raises StoreUnavailable."""
        await self._kernel.renew(idle_timeout_s, max_lifetime_s)
        self._used_s = self._clock.monotonic()

    def touch(self) -> None:
        """It is being used now, which is recorded now and then."""
        self._used_s = self._clock.monotonic()
        if self._used_s - self._touched_s >= _RENEWAL_PAUSE_S:
            self._touched_s = self._used_s
            self._spawn(self._try_to_renew())

    async def _try_to_renew(self) -> None:
        with suppress(StoreUnavailable):
            await self.renew()

    async def name_for_jupyter(self, jupyter: JupyterSession, above: int) -> None:
        """See `SessionKernel.name_for_jupyter`. It is being used now."""
        await self._kernel.name_for_jupyter(jupyter, above)
        self._used_s = self._clock.monotonic()

    def interrupt(self) -> None:
        """Interrupt what runs, as Ctrl-C would; a kernel that ignores it is killed."""
        if self.current is not None:
            self.current.interrupt(INTERRUPT_GRACE_S)

    async def restart(self) -> None:
        """Give it a fresh kernel process; files stay. What runs ends as cancelled, what waits goes on afterwards.

        Raises as `ensure_kernel` does.
        """
        self.observers.notify(lambda one: one.restart_requested())
        for live in list(self._queue):
            # What a notebook has queued is meant for the kernel that is there now.
            if live is self.current or live.run.jupyter is not None:
                did = "ran" if live is self.current else "waited"
                self.cancel(live, Stop(RunStatus.CANCELLED, _RESTARTED.format(did)))
        try:
            async with self._turn:
                await self._kernel.restart()
                await self.renew()
        finally:
            self.observers.notify(lambda one: one.restart_finished())

    # --- its runs -----------------------------------------------------------------------------------------------------

    def enqueue(self, live: LiveRun) -> None:
        """Run it once those before it have ended."""
        if live.is_resumed:
            if self.kernel is None and live.kernel is not None:  # it was given that one a moment before the crash
                self._kernel.adopt(live.kernel)
            self._kernel.publish_news(
                live, self.record.generation
            )  # before its first event, if none has been committed
        self.observers.notify(lambda one: one.run_queued(live.run_id, live.run.jupyter))
        self._queue.append(live)
        if self._worker is None:
            self._worker = asyncio.ensure_future(self._work())

    def cancel(self, live: LiveRun, stop: Stop) -> None:
        """Have a run end: at once where it only waits, and no earlier gateway can have sent it."""
        live.request_stop(stop)
        if live is not self.current and live in self._queue and not live.is_resumed:
            self._queue.remove(live)
            self._spawn(self._commit(live, live.fold.finish(stop.status, stop.reason, None)))

    def stop(self, reason: str) -> None:
        """It is over: tell what runs and what waits to end."""
        self.is_over = self._kernel.is_over = True
        for live in list(self._queue):
            self.cancel(live, Stop(RunStatus.CANCELLED, reason))

    async def wait_ended(self) -> None:
        """Return once the last run of a stopped session has ended, and its kernel is given up."""
        while waiting := {task for task in (self._worker, *self._tasks) if task is not None}:
            await asyncio.wait(waiting)
        self.observers.notify(lambda one: one.session_ended())
        self._kernel.give_up()  # whoever is waiting for it now hears that the session is over

    async def hand_over(self) -> Kernel | None:
        """Leave everything to a later gateway; returns the kernel to keep."""
        was_over, self.is_over = self.is_over, True
        tasks = {task for task in (self._worker, *self._tasks) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for live in self._queue:
            await live.recorder.break_off()
        kernel = await self._kernel.hand_over()
        return kernel if self._queue or not was_over else None

    # --- where its runs have their kernels from: `KernelSource` -------------------------------------------------------

    async def take(self, live: LiveRun) -> Kernel:
        """The session's kernel, once that is recorded: a later gateway asks it whether it has taken the run."""
        kernel = await self._kernel.ensure()
        if live.run.kernel_id != kernel.kernel_id:
            started_at = self._clock.now()
            await self._store.start_run(live.run_id, kernel.kernel_id, started_at)
            live.run = replace(live.run, kernel_id=kernel.kernel_id, started_at=started_at)
        return kernel

    def not_taken(self, kernel: Kernel) -> None:
        """The next process of the same kernel may take it."""

    def publish_news(self, live: LiveRun, generation: int) -> None:
        """What a run has to say of the session."""
        self._kernel.publish_news(live, generation or self.record.generation)

    # --- working ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            while self._queue:
                async with self._turn:
                    if self._queue:
                        self.current = self._queue[0]
                        self._kernel.is_at_work = True
                        await self._work_on(self.current)
                        self.current = None
                        self._kernel.is_at_work = False
                        self.observers.notify(lambda one: one.kernel_idle())
        finally:
            self._worker = None

    async def _work_on(self, live: LiveRun) -> None:
        """Run the first of the queue, and remove it from there whatever happens, so that nothing runs twice."""
        result: Result | None = None
        try:
            result = await self._serve(live)
        except Exception:
            # A bug of ours; but the code may have run.
            log.exception("run_not_ended", run_id=live.run_id)
            live.fail(EndNotStored(_NOT_ENDED.format(live.run_id)))
        self._queue.popleft()
        if result is not None:
            self._abort_behind(live, result)

    async def _serve(self, live: LiveRun) -> Result:
        """Have it run, and commit its end with what it has changed of the session."""
        try:
            result = await self._attempts.drive(live, self)
        except NotRun as error:
            # What it was to tell of the session, the next run will.
            live.fold.session_created = live.fold.session_lost = False
            result = live.fold.finish(RunStatus.KERNEL_DIED, NOT_RUN.format(error.why), None)
        if not live.msg_id and not live.lost_kernel:
            await self._commit(live, result)
            return result
        after = self._kernel.after_run(live, result)
        self._used_s = self._clock.monotonic()
        await self._commit(live, result, after)
        self._kernel.settle(after)
        return result

    async def _commit(self, live: LiveRun, result: Result, after: Session | None = None) -> None:
        await live.commit(result, after)
        stored = result if live.answer.exception() is None else None
        self.observers.notify(lambda one: one.run_ended(live, stored))

    def note_reply(self, run_id: RunId) -> None:
        """A client is about to be sent the kernel's reply to this run: what it asks for from now on knows that."""
        self._behind = (run_id, list(self._queue)[1:])

    def _abort_behind(self, failed: LiveRun, result: Result) -> None:
        """Where a cell has failed, what the same notebook has queued behind it does not run, as in any Jupyter."""
        jupyter = failed.run.jupyter
        if jupyter is None or result.status is RunStatus.OK or not jupyter.stops_others:
            self._behind = (None, [])
            return
        # Whoever has heard the reply may ask for the next cell: that one is not meant.
        replied_id, behind = self._behind
        self._behind = (None, [])
        for live in behind if replied_id == failed.run_id else list(self._queue):
            other = live.run.jupyter
            if other is not None and other.header.get("session") == jupyter.header.get("session"):
                self._abort(live)

    def _abort(self, live: LiveRun) -> None:
        self.observers.notify(lambda one: one.run_aborted(live.run_id))
        self.cancel(live, Stop(RunStatus.CANCELLED, _ABORTED))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
