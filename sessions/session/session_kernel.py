"""The kernel of one session and the session's record: claims a kernel, restarts it, notices its loss, records that.

It does not serialise its callers: the session has the lock. Each write of the record carries a version, so that one
that arrives late changes nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog

from sessions.concurrency import BackgroundTasks
from sessions.errors import KernelLost, NotFound, StoreUnavailable, TooManyRequests, Unavailable
from sessions.kernels.kernel import Kernel, KernelState
from sessions.model import JupyterSession, JupyterSessionId, Result, Session, SessionNews, Usage
from sessions.runs.live_run import LiveRun
from sessions.session.observer import Observers
from sessions.wiring import Wiring

MAX_JUPYTER_SESSIONS = 64
"""How many Jupyter sessions one kernel may have."""

_ATTEMPTS = 3
_NOT_RESTARTED = (
    "The kernel did not restart, and its sandbox was given up: its files are gone. The session's next run gets a fresh "
    "sandbox."
)

log = structlog.get_logger()


class SessionKernel:
    """The mutable state: `record`; the `kernel`; the `run` at work on it; and `is_over`, once the session has ended.

    And of what is used between two runs: when it is written, and what the record had when the last run ended.
    """

    def __init__(self, record: Session, kernel_name: str, wiring: Wiring, observers: Observers) -> None:
        self.record = record
        self.kernel: Kernel | None = None
        self.run: LiveRun | None = None
        self.is_over = False
        self._kernel_name = kernel_name
        self._observers = observers
        self._store = wiring.environment.store
        self._kernel_pool = wiring.kernel_pool
        self._clock = wiring.environment.clock
        self._ready_timeout_s = wiring.environment.timeouts.ready_timeout_s
        self._restart_timeout_s = wiring.environment.timeouts.restart_timeout_s
        self._renewal_pause_s = wiring.environment.timeouts.renewal_pause_s
        self._usage_write: asyncio.TimerHandle | None = None
        self._usage_at_end = record.usage
        self._writing = asyncio.Lock()
        self._tasks = BackgroundTasks("session_kernel")

    def __repr__(self) -> str:
        return f"<SessionKernel {self.kernel!r}, version {self.record.version}, {self.record.news}>"

    def adopt(self, kernel: Kernel | None) -> None:
        """Have the kernel that an earlier gateway gave this session; None if that is gone."""
        if kernel is None:
            self._record_loss()
        else:
            self._attach(kernel)

    async def ensure(self) -> Kernel:
        """A kernel that answers: the session's own, or a fresh one if that is gone.

        Raises NotFound when the session is over, Unavailable in its kinds, TooManyRequests.
        """
        for _ in range(_ATTEMPTS):
            kernel = self.kernel or await self._claim()
            try:
                await kernel.wait_ready(self._ready_timeout_s)
            except KernelLost:
                kernel.abandon("its kernel does not answer")
                self._drop(kernel)
            else:
                return kernel
        raise Unavailable("The session's kernel does not come up; nothing was run: try again in a moment.")

    async def restart(self) -> None:
        """Start a fresh kernel process in the sandbox, which the next run does not report as a loss.

        A sandbox that does not restart is given up, which Unavailable says and the next run too. One that was gone
        before is replaced, and that is still news. Raises as `ensure` does.
        """
        kernel = self.kernel
        if kernel is None:
            await self.ensure()
            return
        deadline_s = self._clock.monotonic() + self._restart_timeout_s
        try:
            await kernel.wait_linked(self._restart_timeout_s)
            before = kernel.generation
            kernel.restart()
            await kernel.wait_restarted(before, max(0.0, deadline_s - self._clock.monotonic()))
        except KernelLost:
            kernel.abandon("it does not restart")
            self._drop(kernel)
            self._check()
            raise Unavailable(_NOT_RESTARTED) from None
        self._change(generation=kernel.generation)
        await self._write()

    async def renew(self, idle_timeout_s: float | None = None, max_lifetime_s: float | None = None) -> None:
        """Record that it is being used now, and the time-outs that are given. Raises StoreUnavailable."""
        async with self._writing:  # in order: the last times that are given stay
            used_at = self._clock.now()
            times: dict[str, Any] = {
                "idle_timeout_s": idle_timeout_s or self.record.idle_timeout_s,
                "max_lifetime_s": max_lifetime_s or self.record.max_lifetime_s,
            }
            await self._store.renew_session(replace(self.record, last_used_at=used_at, **times))
            self.record = replace(self.record, last_used_at=max(used_at, self.record.last_used_at), **times)

    async def put_jupyter(self, jupyter: JupyterSession) -> None:
        """Record one of its Jupyter sessions, new or changed, and that it is being used now.

        Raises TooManyRequests, NotFound when it is over, StoreUnavailable.
        """
        async with self._writing:
            self._check()
            by_id = {**{one.id: one for one in self.record.jupyter}, jupyter.id: jupyter}
            if len(by_id) > max(MAX_JUPYTER_SESSIONS, len(self.record.jupyter)):
                raise TooManyRequests(f"A kernel may have {MAX_JUPYTER_SESSIONS} Jupyter sessions: delete one.")
            await self._write_jupyter(tuple(by_id.values()), self._clock.now())

    async def remove_jupyter(self, jupyter_id: JupyterSessionId) -> None:
        """Record that it no longer has this Jupyter session. Raises NotFound when it is over, StoreUnavailable."""
        async with self._writing:
            self._check()
            rest = tuple(one for one in self.record.jupyter if one.id != jupyter_id)
            await self._write_jupyter(rest, self.record.last_used_at)

    async def _write_jupyter(self, jupyter: tuple[JupyterSession, ...], used_at: datetime) -> None:
        """They have a version of their own, because the kernel's changes may have to wait for a run to end."""
        version = self.record.jupyter_version + 1
        # A write that fails may still arrive late: the next one is above it.
        self.record = replace(self.record, jupyter_version=version + 1)
        changes: dict[str, Any] = {"jupyter": jupyter, "jupyter_version": version}
        await self._store.renew_session(replace(self.record, last_used_at=used_at, **changes))
        self.record = replace(self.record, last_used_at=max(used_at, self.record.last_used_at), **changes)
        self._check()

    def discard(self) -> None:
        """Destroy the kernel."""
        self._cancel_usage_write()
        kernel, self.kernel = self.kernel, None
        if kernel is not None:
            self._kernel_pool.discard(kernel)

    async def hand_over(self) -> Kernel | None:
        """Leave the kernel to the next gateway; returns it. Whoever asks for a kernel from now on is refused one.

        It is no longer this session's here: that its link closes must not be recorded as a loss.
        """
        await self._tasks.cancel()
        kernel, self.kernel = self.kernel, None
        if self._cancel_usage_write():
            await self._write_usage()
        return kernel

    # --- its runs -----------------------------------------------------------------------------------------------------

    def set_session_flags(self, live: LiveRun, generation: int) -> None:
        """Have a run on this kernel process say whether the session is new, and whether it has lost its variables."""
        news = self.record.news
        if news is SessionNews.NONE and generation != self.record.generation:
            news = SessionNews.LOST
        live.fold.session_created = news is not SessionNews.NONE
        live.fold.session_lost = news is SessionNews.LOST

    def after_run(self, live: LiveRun, result: Result) -> Session:
        """The record to commit with this run's end."""
        before, kernel = self.record, self.kernel
        self._usage_at_end = before.usage
        is_gone = kernel is None or kernel.state is KernelState.GONE
        news = SessionNews.LOST if is_gone else SessionNews.NONE
        if live.lost_kernel:  # which this run reports itself
            news = SessionNews.CREATED
        return replace(
            before,
            version=before.version + 1,
            last_used_at=self._clock.now(),
            kernel_id=None if kernel is None or is_gone else kernel.kernel_id,
            generation=live.generation or before.generation,
            news=news,
            runs=before.runs + 1,
            usage=_sum(before.usage, result.usage),
        )

    def settle(self, after: Session) -> None:
        """Have the record that `after_run` made, which is committed."""
        late_ms = self.record.usage.cpu_ms - self._usage_at_end.cpu_ms
        self.record = replace(
            after,
            usage=_sum(after.usage, replace(self.record.usage, wall_ms=0.0, cpu_ms=late_ms)),
            idle_timeout_s=self.record.idle_timeout_s,
            max_lifetime_s=self.record.max_lifetime_s,
            last_used_at=max(after.last_used_at, self.record.last_used_at),
            jupyter=self.record.jupyter,
            jupyter_version=self.record.jupyter_version,
        )
        kernel = self.kernel
        if kernel is not None and kernel.state is KernelState.GONE:
            self.kernel = None
            self._kernel_pool.discard(kernel)

    def skip_version(self) -> None:
        """What `after_run` made may be committed, although `settle` was not called: what is written next is above."""
        self._change()

    # --- claiming and losing ------------------------------------------------------------------------------------------

    async def _claim(self) -> Kernel:
        self._check()
        kernel = await self._kernel_pool.claim(self._kernel_name)
        self._change(kernel_id=kernel.kernel_id, generation=kernel.generation)
        try:
            # Before anything runs there: the next gateway must know whose it is.
            await self._write()
            self._check()
        except BaseException:
            # Not back into the pool: it may be on record as this session's.
            self._change(kernel_id=None)
            self._kernel_pool.discard(kernel)
            raise
        self._attach(kernel)
        self._observers.notify(lambda one: one.kernel_ready())
        return kernel

    def _attach(self, kernel: Kernel) -> None:
        self.kernel = kernel
        kernel.on_usage_between_runs = self._add_usage
        self._observers.notify(lambda one: one.kernel_attached(kernel))
        kernel.watch(self._on_change)

    def _add_usage(self, usage: Usage) -> None:
        """Add what code that was left running has used, and record it in a while."""
        self.record = replace(self.record, usage=_sum(self.record.usage, usage))
        if self._usage_write is None and not self.is_over:
            loop = asyncio.get_running_loop()
            self._usage_write = loop.call_later(self._renewal_pause_s, self._begin_usage_write)

    def _begin_usage_write(self) -> None:
        self._usage_write = None
        if not self.is_over:
            self._tasks.spawn(self._write_usage())

    def _cancel_usage_write(self) -> bool:
        """Returns whether there was something to write."""
        timer, self._usage_write = self._usage_write, None
        if timer is not None:
            timer.cancel()
        return timer is not None

    async def _write_usage(self) -> None:
        """Without the database this is left out: the next write has it too."""
        try:
            async with self._writing:
                await self._store.renew_session(self.record)
        except StoreUnavailable as error:
            log.warning("session_not_written", session_id=self.record.session_id, reason=str(error))

    def _check(self) -> None:
        if self.is_over:
            raise NotFound("This session has been ended.")

    def _on_change(self, kernel: Kernel) -> None:
        """Drop a kernel that is gone. While a run is at work on it, that run's end does this.

        A kernel whose process alone has died stays, and has another `generation`.
        """
        if kernel is not self.kernel:
            return
        if kernel.state is KernelState.READY:
            self._observers.notify(lambda one: one.kernel_ready())
        else:
            self._notify_lost()
        if kernel.state is KernelState.GONE and self.run is None:
            self._drop(kernel)

    def _drop(self, kernel: Kernel) -> None:
        if kernel is self.kernel:
            self.kernel = None
            self._kernel_pool.discard(kernel)
            self._notify_lost()
            self._record_loss()

    def _notify_lost(self) -> None:
        self._observers.notify(lambda one: one.kernel_lost(at_work=self.run is not None))

    def _record_loss(self) -> None:
        news = SessionNews.LOST if self.record.news is SessionNews.NONE else self.record.news
        self._change(kernel_id=None, news=news)
        self._tasks.spawn(self._try_to_write())

    def _change(self, **changes: Any) -> None:
        self.record = replace(self.record, version=self.record.version + 1, **changes)

    async def _write(self) -> None:
        async with self._writing:
            await self._store.update_session(self.record)

    async def _try_to_write(self) -> None:
        """Without the database this is left out: the next gateway finds that the kernel is gone by itself."""
        try:
            await self._write()
        except StoreUnavailable as error:
            log.warning("session_not_written", session_id=self.record.session_id, reason=str(error))


def _sum(total: Usage, one: Usage | None) -> Usage:
    if one is None:
        return total
    return Usage(
        wall_ms=total.wall_ms + one.wall_ms,
        cpu_ms=total.cpu_ms + one.cpu_ms,
        memory_peak_bytes=max(total.memory_peak_bytes, one.memory_peak_bytes),
    )
