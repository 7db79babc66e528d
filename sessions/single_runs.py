"""Runs outside of sessions: each has a kernel of its own, which is removed behind its answer's back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import structlog

from sessions.conduct import INTERNAL_ERROR, Conductor, NotTaken
from sessions.errors import CellblockError, Draining, SandboxLost, StoreUnavailable
from sessions.kernel import Kernel
from sessions.live_run import LiveRun
from sessions.model import Result, RunStatus
from sessions.ports import Clock, Store
from sessions.supply import KernelSupply

_CLAIM_TIMEOUT_S = 30.0
_RETIRE_AFTER_S = 0.01
_ATTEMPTS = 3
_RETRY_S = 0.5

log = structlog.get_logger()


class SingleRuns:
    """The state: the runs under way, with the task that drives each."""

    def __init__(
        self, store: Store, supply: KernelSupply, conductor: Conductor, kernel_names: Mapping[str, str], clock: Clock
    ) -> None:
        """`kernel_names` maps languages to kernelspecs."""
        self._store = store
        self._supply = supply
        self._conductor = conductor
        self._kernel_names = kernel_names
        self._clock = clock
        self._under_way: dict[asyncio.Task[None], LiveRun] = {}
        self._is_suspended = False

    def __repr__(self) -> str:
        return f"<SingleRuns {len(self._under_way)}>"

    def begin(self, live: LiveRun, kernel: Kernel | None) -> None:
        """Run it on this kernel, which was claimed for it; without one the sandbox is gone that it was sent to."""
        task = asyncio.ensure_future(self._perform(live, kernel))
        self._under_way[task] = live
        task.add_done_callback(lambda ended: self._under_way.pop(ended, None))

    async def suspend(self) -> list[Kernel]:
        """Leave what is under way to a later gateway; returns the kernels to keep."""
        self._is_suspended = True
        left = dict(self._under_way)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        for live in left.values():
            await live.recording.break_off()
        return [live.kernel for live in left.values() if live.kernel is not None and not live.answer.done()]

    async def _perform(self, live: LiveRun, kernel: Kernel | None) -> None:
        """Run it on this kernel, or on the next one where that has not taken it; commit its end; remove the kernel."""
        try:
            for _ in range(_ATTEMPTS):
                try:
                    result = await self._attempt(live, kernel)
                except NotTaken:
                    self._retire(kernel)
                    kernel = live.kernel = None
                    try:
                        kernel = await self._claim_for(live)
                    except Draining:
                        await asyncio.Event().wait()  # the next gateway finds out: this one is about to suspend
                    except CellblockError as error:
                        await self._not_run(live, error)
                        return
                    continue
                except Exception:
                    # A bug of ours, but the run has one final status all the same.
                    log.exception("run_failed", run_id=live.run_id)
                    result = Result(live.run_id, RunStatus.LOST, output="", error=INTERNAL_ERROR)
                await live.commit(result)
                return
            await self._not_run(live, SandboxLost())
        finally:
            if not self._is_suspended:
                # Behind the answer's back: removing a container, and starting the next one, is hard work.
                asyncio.get_running_loop().call_later(_RETIRE_AFTER_S, self._retire, kernel)

    async def _attempt(self, live: LiveRun, kernel: Kernel | None) -> Result:
        if kernel is None and not live.is_resumed:
            reason = "The session was ended before this had its turn."
            return live.execution.finish(RunStatus.CANCELLED, reason, None)
        if kernel is None:
            return self._conductor.lost(live)
        if live.is_resumed:
            live.is_resumed = False
            if not await self._conductor.find(live, kernel):
                return self._conductor.lost(live)
            began_at = live.run.started_at or live.run.created_at
            return await self._conductor.resume(live, kernel, (self._clock.now() - began_at).total_seconds())
        return await self._conductor.perform(live, kernel)

    async def _claim_for(self, live: LiveRun) -> Kernel:
        """Another kernel, recorded before the code is sent there."""
        kernel = await self._supply.claim(self._kernel_names[live.run.language], _CLAIM_TIMEOUT_S)
        started_at = self._clock.now()
        try:
            await self._store.start_run(live.run_id, kernel.kernel_id, started_at)
        except BaseException:
            self._supply.give_back(kernel)
            raise
        live.run = replace(live.run, kernel_id=kernel.kernel_id, started_at=started_at)
        return kernel

    async def _not_run(self, live: LiveRun, error: CellblockError) -> None:
        """Nothing was run, and the one who asked is told so; whoever follows its events sees an end of them."""
        if live.recording.feed.followed.is_set():
            sentence = f"No kernel took this code, and it was not run: {error}"
            await live.commit(live.execution.finish(RunStatus.KERNEL_DIED, sentence, None))
            return
        live.fail(error)
        while True:
            try:
                await self._store.withdraw_run(live.run_id)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def _retire(self, kernel: Kernel | None) -> None:
        if kernel is not None:
            self._supply.retire(kernel)
