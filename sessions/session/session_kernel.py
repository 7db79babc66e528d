"""The kernel of one session, and the record that says so: taken from the supply, lost, restarted, and told about.

Only one at a time may ask for changes: whose turn it is, the session knows. What is written of the record is always its
newest, and carries a version, so that a write that comes late changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import structlog

from sessions.errors import Conflict, KernelLost, NotFound, StoreUnavailable, Unavailable
from sessions.kernels.kernel import Kernel, KernelState
from sessions.kernels.kernel_pool import CLAIM_TIMEOUT_S, KernelPool
from sessions.model import JupyterSession, Result, Session, SessionNews, Usage
from sessions.ports import Clock, Store
from sessions.runs.live_run import LiveRun
from sessions.session.observer import Observers

_READY_TIMEOUT_S = 60.0
_ATTEMPTS = 3

log = structlog.get_logger()


class SessionKernel:
    """The state: `record`, the kernel of the moment, whether a run is at work on it, whether the session is over."""

    def __init__(
        self,
        record: Session,
        kernel_name: str,
        *,
        store: Store,
        kernel_pool: KernelPool,
        observers: Observers,
        clock: Clock,
    ) -> None:
        self.record = record
        self._observers = observers
        self.kernel: Kernel | None = None
        self.is_at_work = False
        self.is_over = False
        self._kernel_name = kernel_name
        self._store = store
        self._kernel_pool = kernel_pool
        self._clock = clock
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<SessionKernel {self.kernel!r}, version {self.record.version}, {self.record.news}>"

    def adopt(self, kernel: Kernel | None) -> None:
        """Take over the kernel that an earlier gateway gave this session, or learn that it is gone."""
        if kernel is None:
            self._note_loss()
        else:
            self._take(kernel)

    async def ensure(self) -> Kernel:
        """A kernel that answers: the session's own, or where that is gone a fresh one.

        Raises NotFound when the session is over, Unavailable in its kinds, TooManyRequests.
        """
        for _ in range(_ATTEMPTS):
            kernel = self.kernel or await self._claim()
            try:
                await kernel.wait_ready(_READY_TIMEOUT_S)
            except KernelLost:
                kernel.discard("its kernel does not answer")
                self._drop(kernel)
            else:
                return kernel
        raise Unavailable("The session's kernel does not come up; nothing was run: try again in a moment.")

    async def restart(self) -> None:
        """Have a fresh kernel process; a client that asks for it need not be told. Raises as `ensure` does."""
        kernel = self.kernel
        if kernel is not None:
            try:
                await kernel.wait_linked(_READY_TIMEOUT_S)
                before = kernel.generation
                kernel.restart()
                await kernel.wait_restarted(before, _READY_TIMEOUT_S)
            except KernelLost:
                kernel.discard("it does not restart")
                self._drop(kernel)
        kernel = await self.ensure()
        self._change(generation=kernel.generation, news=SessionNews.NONE)
        await self._write()

    async def renew(self, idle_timeout_s: float | None = None, max_lifetime_s: float | None = None) -> None:
        """It is being used now; change the time-outs that are given. Raises StoreUnavailable."""
        async with self._writing:  # so that the times that are kept are the last ones asked for
            used_at = self._clock.now()
            times: dict[str, Any] = {
                "idle_timeout_s": idle_timeout_s or self.record.idle_timeout_s,
                "max_lifetime_s": max_lifetime_s or self.record.max_lifetime_s,
            }
            await self._store.renew_session(replace(self.record, last_used_at=used_at, **times))
            self.record = replace(self.record, last_used_at=max(used_at, self.record.last_used_at), **times)

    async def name_for_jupyter(self, jupyter: JupyterSession, above: int) -> None:
        """Record what Jupyter's REST API calls it, under a version above this one too; it is being used now.

        Not with the kernel's changes, whose turn may come only once what runs has ended. Raises Conflict when it has
        another Jupyter session, NotFound when it is over, StoreUnavailable.
        """
        async with self._writing:
            self._check()
            known = self.record.jupyter
            if known is not None and known.id != jupyter.id:
                raise Conflict("This kernel has a Jupyter session already: use that one, or another kernel.")
            version = max(self.record.jupyter_version, above) + 1
            # If the write below is refused, it may still come late; what is written next is above it then.
            self.record = replace(self.record, jupyter_version=version + 1)
            changes: dict[str, Any] = {"jupyter": jupyter, "jupyter_version": version}
            used_at = self._clock.now()
            await self._store.renew_session(replace(self.record, last_used_at=used_at, **changes))
            self.record = replace(self.record, last_used_at=max(used_at, self.record.last_used_at), **changes)
            self._check()

    def give_up(self) -> None:
        """The session is over: so is its kernel."""
        self.is_over = True
        kernel, self.kernel = self.kernel, None
        if kernel is not None:
            self._kernel_pool.discard(kernel)

    async def hand_over(self) -> Kernel | None:
        """Leave the kernel to a later gateway."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        return self.kernel

    # --- what runs tell of it, and do to it ---------------------------------------------------------------------------

    def publish_news(self, live: LiveRun, generation: int) -> None:
        """What this run, which is sent to this kernel process, has to say of the session."""
        news = self.record.news
        if news is SessionNews.NONE and generation != self.record.generation:
            news = SessionNews.LOST
        live.fold.session_created = news is not SessionNews.NONE
        live.fold.session_lost = news is SessionNews.LOST

    def after_run(self, live: LiveRun, result: Result) -> Session:
        """The record as it is once this run's end is committed."""
        before, kernel = self.record, self.kernel
        is_gone = kernel is None or kernel.state is KernelState.GONE
        news = SessionNews.LOST if is_gone else SessionNews.NONE
        if live.lost_kernel:  # which this run itself has said
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
        """What `after_run` said is committed."""
        self.record = replace(
            after,
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

    # --- claiming and losing ------------------------------------------------------------------------------------------

    async def _claim(self) -> Kernel:
        self._check()
        kernel = await self._kernel_pool.claim(self._kernel_name, CLAIM_TIMEOUT_S)
        self._change(kernel_id=kernel.kernel_id, generation=kernel.generation)
        try:
            # Before anything runs there: a gateway that starts later must know whose it is.
            await self._write()
            self._check()
        except BaseException:
            # Not back into the pool: who owns it, a later gateway may read otherwise.
            self._change(kernel_id=None)
            self._kernel_pool.discard(kernel)
            raise
        self._take(kernel)
        self._observers.notify(lambda one: one.kernel_ready())
        return kernel

    def _take(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._observers.notify(lambda one: one.kernel_attached(kernel))
        kernel.watch(self._on_change)

    def _check(self) -> None:
        if self.is_over:
            raise NotFound("This session has been ended.")

    def _on_change(self, kernel: Kernel) -> None:
        """A kernel that goes while it runs nothing takes the variables along unseen: the next run will say so.

        One whose process alone died has another `generation` then.
        """
        if kernel is not self.kernel:
            return
        if kernel.state is KernelState.READY:
            self._observers.notify(lambda one: one.kernel_ready())
        else:
            self._notify_lost()
        if kernel.state is KernelState.GONE and not self.is_at_work:
            self._drop(kernel)

    def _drop(self, kernel: Kernel) -> None:
        if kernel is self.kernel:
            self.kernel = None
            self._kernel_pool.discard(kernel)
            self._notify_lost()
            self._note_loss()

    def _notify_lost(self) -> None:
        self._observers.notify(lambda one: one.kernel_lost(at_work=self.is_at_work))

    def _note_loss(self) -> None:
        news = SessionNews.LOST if self.record.news is SessionNews.NONE else self.record.news
        self._change(kernel_id=None, news=news)
        self._spawn(self._try_to_write())

    def _change(self, **changes: Any) -> None:
        self.record = replace(self.record, version=self.record.version + 1, **changes)

    async def _write(self) -> None:
        async with self._writing:
            await self._store.update_session(self.record)

    async def _try_to_write(self) -> None:
        """Record it for a later gateway, which would find out by itself as well: the kernel is not there."""
        try:
            await self._write()
        except StoreUnavailable as error:
            log.warning("session_not_written", session_id=self.record.session_id, reason=str(error))

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
