"""One session: its queue of runs, of which one at a time is at work, and how long it is kept.

Which sessions there are is registry.py's; its kernel and its record are session_kernel.py's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta

from sessions.concurrency import BackgroundTasks
from sessions.errors import KernelLost, StoreUnavailable, Unavailable
from sessions.kernels.files import SupervisorFiles
from sessions.kernels.kernel import Kernel
from sessions.model import (
    JupyterSession,
    JupyterSessionId,
    Result,
    RunId,
    RunStatus,
    Session,
    SessionState,
    SessionView,
)
from sessions.runs.executor import NOT_RUN, NotRun
from sessions.runs.live_run import LiveRun, Stop
from sessions.session.observer import Observers
from sessions.session.session_kernel import SessionKernel
from sessions.wiring import Wiring

_AT_ONCE = timedelta(seconds=1)
"""How long before a run is sent it may have been recorded with its kernel."""

_RESTARTED = "The session was restarted while this {}."
_STILL_AT_WORK = (
    "The run at work was cancelled, but has not ended, so the kernel was not restarted: try again in a moment."
)
_STILL_STARTING = "The session's kernel is being started already: try again in a moment."
_ABORTED = "This was not run, because what the same Jupyter client had asked for before it failed."


class LiveSession:
    """A session of this gateway.

    The mutable state: its `SessionKernel`, which has the record, the run at work, and whether the session is over; the
    queue, whose first run is the one at work; when it was last used, by the monotonic clock; the lock of the kernel;
    and `_behind`: the runs that waited behind the last one whose reply a Jupyter client was sent.
    """

    def __init__(self, record: Session, kernel_name: str, wiring: Wiring) -> None:
        self.kernel_name = kernel_name
        self.observers = Observers()
        self._kernel = SessionKernel(record, kernel_name, wiring, self.observers)
        self._store = wiring.environment.store
        self._executor = wiring.executor
        self._clock = wiring.environment.clock
        self._timeouts = wiring.environment.timeouts
        self.patience_s = wiring.environment.timeouts.queued_patience_s
        now_s, now = self._clock.monotonic(), self._clock.now()
        # By the monotonic clock from here on: nobody sets that.
        self._born_s = now_s - max(0.0, (now - record.created_at).total_seconds())
        self._used_s = now_s - max(0.0, (now - record.last_used_at).total_seconds())
        self._touched_s = now_s
        self._queue: deque[LiveRun] = deque()
        self._behind: tuple[RunId | None, list[LiveRun]] = (None, [])
        self._kernel_lock = asyncio.Lock()
        self._is_working = False
        self._tasks = BackgroundTasks("session")

    def __repr__(self) -> str:
        return f"<LiveSession {self.record.session_id} {self.view().state}, {len(self._queue)} runs>"

    # --- questions ----------------------------------------------------------------------------------------------------

    @property
    def record(self) -> Session:
        """Its record, as it is stored or about to be."""
        return self._kernel.record

    @property
    def is_over(self) -> bool:
        """Whether it has ended; its last run may still be about to."""
        return self._kernel.is_over

    @property
    def current(self) -> LiveRun | None:
        """The run at work."""
        return self._kernel.run

    @property
    def kernel(self) -> Kernel | None:
        """Its kernel, if it has one now."""
        return self._kernel.kernel

    def view(self) -> SessionView:
        """The session as it is now. What Jupyter clients make of it, `JupyterClients.view` adds."""
        if self.current is not None:
            state = SessionState.BUSY
        elif self.kernel is None:
            state = SessionState.STARTING if self._kernel_lock.locked() else SessionState.DEAD
        else:
            state = SessionState.IDLE if self.kernel.is_ready() else SessionState.STARTING
        return SessionView(self.record, state, self.kernel_name, last_activity=self.record.last_used_at)

    def runs(self) -> int:
        """How many runs wait, including the one at work."""
        return len(self._queue)

    def has_expired(self) -> str | None:
        """Why it should end now, as a sentence; None when it should not. A session with runs is not idle."""
        now_s = self._clock.monotonic()
        if now_s - self._born_s >= self.record.max_lifetime_s:
            return f"The session reached its max_lifetime of {self.record.max_lifetime_s:g} s."
        if not self._queue and now_s - self._used_s >= self.record.idle_timeout_s:
            return f"The session was idle for {self.record.idle_timeout_s:g} s."
        return None

    # --- its kernel ---------------------------------------------------------------------------------------------------

    def adopt(self, kernel: Kernel | None) -> None:
        """Have the kernel that an earlier gateway gave this session; None if that is gone."""
        self._kernel.adopt(kernel)

    async def ensure_kernel(self) -> Kernel:
        """A kernel that answers, once the run at work has ended. Raises as `SessionKernel.ensure` does."""
        async with self._kernel_lock:
            return await self._kernel.ensure()

    async def kernel_for_next(self) -> Kernel | None:
        """The kernel that the next run goes to at once; None when that has to wait. Raises as `ensure_kernel` does.

        A run whose end is only being committed is not waited for: Jupyter clients have its answer, and go on.
        """
        if not self._queue:
            return await self.ensure_kernel()
        is_ending = len(self._queue) == 1 and self._queue[0].concluded.done()
        return self.kernel if is_ending and self.kernel is not None and self.kernel.is_ready() else None

    async def answering_kernel(self) -> Kernel:
        """A kernel that answers, if possible without waiting for the run at work. Raises as `ensure_kernel` does."""
        kernel = self.kernel
        if kernel is not None and self.current is not None:
            with suppress(KernelLost):
                await kernel.wait_ready(self._timeouts.restarting_timeout_s)
                return kernel
        return await self.ensure_kernel()

    async def files(self) -> SupervisorFiles:
        """The files below its working directory. Raises as `ensure_kernel` does."""
        kernel = self.kernel
        if kernel is None or not kernel.is_linked():
            kernel = await self.ensure_kernel()
        await self.renew()
        return kernel.files

    async def renew(self, idle_timeout_s: float | None = None, max_lifetime_s: float | None = None) -> None:
        """Record that it is being used now, and the time-outs that are given. Raises StoreUnavailable."""
        await self._kernel.renew(idle_timeout_s, max_lifetime_s)
        self._used_s = self._clock.monotonic()

    def touch(self) -> None:
        """It is being used now; record that every half a minute."""
        self._used_s = self._clock.monotonic()
        if self._used_s - self._touched_s >= self._timeouts.renewal_pause_s:
            self._touched_s = self._used_s
            self._tasks.spawn(self._try_to_renew())

    async def _try_to_renew(self) -> None:
        with suppress(StoreUnavailable):
            await self.renew()

    async def put_jupyter(self, jupyter: JupyterSession) -> None:
        """See `SessionKernel.put_jupyter`. It is being used now."""
        await self._kernel.put_jupyter(jupyter)
        self._used_s = self._clock.monotonic()

    async def remove_jupyter(self, jupyter_id: JupyterSessionId) -> None:
        """See `SessionKernel.remove_jupyter`."""
        await self._kernel.remove_jupyter(jupyter_id)

    def interrupt(self) -> None:
        """Interrupt the run at work, as Ctrl-C would; a kernel that ignores it is killed."""
        if self.current is not None:
            self.current.interrupt()

    async def restart(self) -> None:
        """Start a fresh kernel process; files stay. The run at work is cancelled; those that wait run afterwards.

        Cells of notebooks that wait are cancelled, too: they were meant for the process that is there now.

        Raises as `SessionKernel.restart` does, and Unavailable when the run at work does not end.
        """
        self.observers.notify(lambda one: one.restart_requested())
        for live in list(self._queue):
            if live is self.current or live.run.jupyter is not None:
                did = "ran" if live is self.current else "waited"
                self.cancel(live, Stop(RunStatus.CANCELLED, _RESTARTED.format(did)))
        try:
            async with self._kernel_within(self._timeouts.restart_timeout_s):
                await self._kernel.restart()
                await self.renew()
        finally:
            self.observers.notify(lambda one: one.restart_finished())

    @asynccontextmanager
    async def _kernel_within(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold the kernel's lock. Raises Unavailable when the run at work, or a start, keeps it for so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._kernel_lock.acquire()
        except TimeoutError:
            raise Unavailable(_STILL_STARTING if self.current is None else _STILL_AT_WORK) from None
        try:
            yield
        finally:
            self._kernel_lock.release()

    # --- its runs -----------------------------------------------------------------------------------------------------

    def enqueue(self, live: LiveRun) -> None:
        """Run it once those before it have ended."""
        if live.is_resumed:
            if self.kernel is None and live.kernel is not None:  # claimed for it just before the crash
                self._kernel.adopt(live.kernel)
            # Before its first event, if none has been committed.
            self._kernel.set_session_flags(live, self.record.generation)
        self.observers.notify(lambda one: one.run_queued(live.run_id, live.run.jupyter))
        self._queue.append(live)
        if not self._is_working:
            self._is_working = True
            self._tasks.spawn(self._work())

    def cancel(self, live: LiveRun, stop: Stop) -> None:
        """Have a run end: at once if it only waits, and no earlier gateway can have sent it."""
        live.request_stop(stop)
        if live is not self.current and live in self._queue and not live.is_resumed:
            self._queue.remove(live)
            self._tasks.spawn(self._commit(live, live.fold.finish(stop.status, stop.reason, live.usage(None))))

    def stop(self, reason: str) -> None:
        """The session is over: cancel the run at work and those that wait."""
        self._kernel.is_over = True
        for live in list(self._queue):
            self.cancel(live, Stop(RunStatus.CANCELLED, reason))

    async def wait_ended(self) -> None:
        """Return once the last run of a stopped session has ended, and its kernel is discarded."""
        await self._tasks.wait()
        self.observers.notify(lambda one: one.session_ended())
        self._kernel.discard()

    async def hand_over(self) -> Kernel | None:
        """Leave everything to the next gateway; returns the kernel to keep."""
        await self._tasks.cancel()
        for live in self._queue:
            await live.recorder.stop_writing()
        kernel = await self._kernel.hand_over()
        return kernel if self._queue or not self.is_over else None

    # --- where its runs get their kernels from: `KernelSource` -------------------------------------------------------

    async def kernel_for(self, live: LiveRun) -> Kernel:
        """The session's kernel, once it is recorded as this run's: the next gateway asks it whether it has the run.

        So is the time, from which that gateway counts the run's time limit, unless the one on record is about right.
        """
        kernel = await self._kernel.ensure()
        started_at = self._clock.now()
        if live.run.kernel_id != kernel.kernel_id or started_at - (live.run.started_at or started_at) > _AT_ONCE:
            await self._store.start_run(live.run_id, kernel.kernel_id, started_at)
            live.run = replace(live.run, kernel_id=kernel.kernel_id, started_at=started_at)
        return kernel

    def on_refused(self, kernel: Kernel) -> None:
        """The same kernel is asked again: its next process may take the run."""

    def set_session_flags(self, live: LiveRun, generation: int) -> None:
        """Have a run say whether the session is new, and whether it has lost its variables."""
        self._kernel.set_session_flags(live, generation or self.record.generation)

    # --- the worker ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            while self._queue:
                async with self._kernel_lock:
                    if self._queue:
                        self._kernel.run = self._queue[0]
                        await self._work_on(self._kernel.run)
                        self._kernel.run = None
                        self.observers.notify(lambda one: one.run_settled())
        finally:
            self._is_working = False

    async def _work_on(self, live: LiveRun) -> None:
        """Run the first of the queue, and remove it from there whatever happens, so that nothing runs twice."""
        result: Result | None = None
        with live.always_answered():
            result = await self._serve(live)
        if result is None:
            self._kernel.skip_version()
            # The end may have been committed before the error.
            result = live.answer.result() if live.answer.exception() is None else None
            self.observers.notify(lambda one: one.run_ended(live, result))
        self._queue.popleft()
        self._abort_behind(live, result)

    async def _serve(self, live: LiveRun) -> Result:
        """Run it, and commit its end together with what it has changed of the session."""
        try:
            result = await self._executor.execute(live, self)
        except NotRun as error:
            # It was not run: the next run says what has become of the session.
            live.fold.session_created = live.fold.session_lost = False
            result = live.fold.finish(RunStatus.KERNEL_DIED, NOT_RUN.format(error.why), live.usage(None))
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

    def _abort_behind(self, failed: LiveRun, result: Result | None) -> None:
        """When a cell has failed, do not run those that the same notebook has queued behind it, as in any Jupyter.

        One whose end is lost, without a `result`, has failed for its notebook.
        """
        jupyter = failed.run.jupyter
        has_failed = result is None or result.status is not RunStatus.OK
        if jupyter is None or not has_failed or not jupyter.stops_others:
            self._behind = (None, [])
            return
        # A cell that was requested once the reply had been sent is run.
        replied_id, behind = self._behind
        self._behind = (None, [])
        for live in behind if replied_id == failed.run_id else list(self._queue):
            other = live.run.jupyter
            if other is not None and other.header.get("session") == jupyter.header.get("session"):
                self._abort(live)

    def _abort(self, live: LiveRun) -> None:
        self.observers.notify(lambda one: one.run_aborted(live.run_id))
        self.cancel(live, Stop(RunStatus.CANCELLED, _ABORTED))
