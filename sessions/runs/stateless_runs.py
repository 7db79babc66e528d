"""Runs outside of sessions: each has a kernel of its own, which is removed behind its answer's back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from sessions.errors import CellblockError, StoreUnavailable
from sessions.kernels.kernel import Kernel
from sessions.kernels.kernel_pool import KernelPool
from sessions.model import RunStatus
from sessions.ports import Clock, Store
from sessions.runs.attempts import NOT_RUN, Attempts, NotRun
from sessions.runs.executor import NotTaken
from sessions.runs.live_run import LiveRun, Stop
from sessions.settings import Timeouts

_ENDED_SESSION = "The session was ended before this had its turn."


class StatelessRuns:
    """The state: the runs under way, with the task that drives each, and the kernels that have not taken theirs."""

    patience_s = 0.0

    def __init__(
        self,
        *,
        store: Store,
        kernel_pool: KernelPool,
        attempts: Attempts,
        kernel_names: Mapping[str, str],
        clock: Clock,
        timeouts: Timeouts,
    ) -> None:
        """`kernel_names` maps languages to kernelspecs."""
        self._store = store
        self._kernel_pool = kernel_pool
        self._attempts = attempts
        self._kernel_names = kernel_names
        self._clock = clock
        self._timeouts = timeouts
        self._under_way: dict[asyncio.Task[None], LiveRun] = {}
        self._unwilling: set[Kernel] = set()
        self._is_handed_over = False

    def __repr__(self) -> str:
        return f"<StatelessRuns {len(self._under_way)}>"

    def begin(self, live: LiveRun, kernel: Kernel | None) -> None:
        """Run it on this kernel, which was claimed for it; without one the sandbox is gone that it was sent to."""
        live.kernel = kernel
        task = asyncio.ensure_future(self._perform(live))
        self._under_way[task] = live
        task.add_done_callback(lambda ended: self._under_way.pop(ended, None))

    async def hand_over(self) -> list[Kernel]:
        """Leave what is under way to a later gateway; returns the kernels to keep."""
        self._is_handed_over = True
        left = dict(self._under_way)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        for live in left.values():
            await live.recorder.break_off()
        return [live.kernel for live in left.values() if live.kernel is not None and not live.answer.done()]

    # --- the kernels of one run after the other: `KernelSource` -------------------------------------------------------

    async def take(self, live: LiveRun) -> Kernel:
        """The kernel that was claimed for it; or another, recorded before the code is sent there.

        Only then the first is removed: a later gateway asks the one on record whether it has taken the run.
        """
        if live.run.session_id is not None:  # of a session that was ended since: what was not sent yet, never will be
            live.request_stop(Stop(RunStatus.CANCELLED, _ENDED_SESSION))
            raise NotTaken(None)
        before = live.kernel
        if before is not None and before not in self._unwilling:
            return before
        kernel = await self._kernel_pool.claim(self._kernel_names[live.run.language])
        started_at = self._clock.now()
        try:
            await self._store.start_run(live.run_id, kernel.kernel_id, started_at)
        except BaseException:
            self._kernel_pool.discard(kernel)  # whose it is, a later gateway may read otherwise
            raise
        live.run = replace(live.run, kernel_id=kernel.kernel_id, started_at=started_at)
        live.kernel = kernel
        if before is not None:
            self._remove(before)
        return kernel

    def not_taken(self, kernel: Kernel) -> None:
        """It is of no use any more."""
        self._unwilling.add(kernel)

    def _remove(self, kernel: Kernel) -> None:
        self._unwilling.discard(kernel)
        self._kernel_pool.discard(kernel)

    def publish_news(self, live: LiveRun, generation: int) -> None:
        """There is no session to tell of."""

    # --- one run ------------------------------------------------------------------------------------------------------

    async def _perform(self, live: LiveRun) -> None:
        """Have it run, commit its end, and remove the kernel."""
        try:
            if live.kernel is None and not live.is_resumed:
                live.request_stop(Stop(RunStatus.CANCELLED, _ENDED_SESSION))
            try:
                result = await self._attempts.drive(live, self)
            except NotRun as error:
                await self._not_run(live, error.why)
            else:
                await live.commit(result)
        finally:
            if not self._is_handed_over and live.kernel is not None:
                # Behind the answer's back: removing a container, and starting the next one, is hard work.
                asyncio.get_running_loop().call_later(self._timeouts.removal_delay_s, self._remove, live.kernel)

    async def _not_run(self, live: LiveRun, error: CellblockError) -> None:
        """Nothing was run, and the one who asked is told so; whoever follows its events sees an end of them."""
        if live.recorder.feed.followed.is_set():
            await live.commit(live.fold.finish(RunStatus.KERNEL_DIED, NOT_RUN.format(error), None))
            return
        live.fail(error)
        while True:
            try:
                await self._store.withdraw_run(live.run_id)
            except StoreUnavailable:
                await asyncio.sleep(self._timeouts.withdrawal_retry_s)
            else:
                return
