"""Runs outside of sessions. Each has a kernel of its own, which is removed once the answer is out.

How code is run on a kernel is the executor's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from itertools import repeat

from sessions.concurrency import BackgroundTasks, retry
from sessions.environment import Environment
from sessions.errors import CellblockError, StoreUnavailable
from sessions.kernels.kernel import Kernel
from sessions.kernels.kernel_pool import KernelPool
from sessions.model import RunStatus
from sessions.runs.executor import NOT_RUN, NotRun, NotTaken, RunExecutor
from sessions.runs.live_run import LiveRun, Stop

_ENDED_SESSION = "The session was ended before this had its turn."


class StatelessRuns:
    """The mutable state: the live runs, the tasks that execute them, and the kernels that refused a run."""

    patience_s = 0.0

    def __init__(
        self, environment: Environment, kernel_pool: KernelPool, executor: RunExecutor, kernel_names: Mapping[str, str]
    ) -> None:
        """`kernel_names` maps languages to kernelspecs."""
        self._store = environment.store
        self._kernel_pool = kernel_pool
        self._executor = executor
        self._kernel_names = kernel_names
        self._clock = environment.clock
        self._timeouts = environment.timeouts
        self._live: set[LiveRun] = set()
        self._tasks = BackgroundTasks("stateless_runs")
        self._refused_by: set[Kernel] = set()
        self._is_handed_over = False

    def __repr__(self) -> str:
        return f"<StatelessRuns {len(self._live)}>"

    def begin(self, live: LiveRun, kernel: Kernel | None) -> None:
        """Run it on this kernel, which was claimed for it. None: the sandbox that it was sent to is gone."""
        live.kernel = kernel
        self._live.add(live)
        self._tasks.spawn(self._perform(live))

    async def hand_over(self) -> list[Kernel]:
        """Leave the live runs to the next gateway; returns the kernels to keep."""
        self._is_handed_over = True
        left = list(self._live)
        await self._tasks.cancel()
        for live in left:
            await live.recorder.stop_writing()
        return [live.kernel for live in left if live.kernel is not None and not live.answer.done()]

    # --- where its runs get their kernels from: `KernelSource` --------------------------------------------------------

    async def kernel_for(self, live: LiveRun) -> Kernel:
        """The kernel that was claimed for it; or another, recorded before the code is sent there.

        The first is removed only then: the next gateway asks the kernel on record whether it has the run.
        """
        if live.run.session_id is not None:  # its session was ended since: what was not sent yet is not sent any more
            live.request_stop(Stop(RunStatus.CANCELLED, _ENDED_SESSION))
            raise NotTaken(None)
        before = live.kernel
        if before is not None and before not in self._refused_by:
            return before
        kernel = await self._kernel_pool.claim(self._kernel_names[live.run.language])
        started_at = self._clock.now()
        try:
            await self._store.start_run(live.run_id, kernel.kernel_id, started_at)
        except BaseException:
            self._kernel_pool.discard(kernel)  # it may be on record as this run's
            raise
        live.run = replace(live.run, kernel_id=kernel.kernel_id, started_at=started_at)
        live.kernel = kernel
        if before is not None:
            self._remove(before)
        return kernel

    def on_refused(self, kernel: Kernel) -> None:
        """The run needs another kernel."""
        self._refused_by.add(kernel)

    def _remove(self, kernel: Kernel) -> None:
        self._refused_by.discard(kernel)
        self._kernel_pool.discard(kernel)

    def set_session_flags(self, live: LiveRun, generation: int) -> None:
        """There is no session."""

    # --- one run ------------------------------------------------------------------------------------------------------

    async def _perform(self, live: LiveRun) -> None:
        """Execute it, commit its end, and remove the kernel."""
        try:
            with live.always_answered():
                await self._bring_to_end(live)
        finally:
            self._live.discard(live)
            # Two runs have one kernel where a session was deleted while the end of its last run was being committed.
            is_shared = any(other.kernel is live.kernel for other in self._live)
            if not self._is_handed_over and live.kernel is not None and not is_shared:
                # Once the answer is out: to remove a container, and to start the next one, takes much CPU.
                asyncio.get_running_loop().call_later(self._timeouts.removal_delay_s, self._remove, live.kernel)

    async def _bring_to_end(self, live: LiveRun) -> None:
        if live.kernel is None and not live.is_resumed:
            live.request_stop(Stop(RunStatus.CANCELLED, _ENDED_SESSION))
        try:
            result = await self._executor.execute(live, self)
        except NotRun as error:
            await self._not_run(live, error.why)
        else:
            await live.commit(result)

    async def _not_run(self, live: LiveRun, error: CellblockError) -> None:
        """Nothing was run: tell the caller so, and forget the run. If somebody follows its events, they end."""
        if live.recorder.feed.followed.is_set():
            await live.commit(live.fold.finish(RunStatus.KERNEL_DIED, NOT_RUN.format(error), live.usage(None)))
            return
        live.fail(error)
        pauses = repeat(self._timeouts.withdrawal_retry_s)
        await retry(lambda: self._store.withdraw_run(live.run_id), on=StoreUnavailable, pauses=pauses)
