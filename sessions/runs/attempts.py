"""Trying until a kernel has taken a run: on the one it has, or the next, or after a while. Then the run is conducted.

Where kernels come from is the caller's: a session has its own, a single run claims one.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from sessions.errors import (
    CellblockError,
    Draining,
    SandboxLost,
    StoreUnavailable,
    TooManyRequests,
    Unavailable,
)
from sessions.kernels.kernel import Kernel
from sessions.model import Result
from sessions.ports import Clock
from sessions.runs.executor import Conductor, NotTaken
from sessions.runs.live_run import LiveRun

_ATTEMPTS = 3

_INTERNAL_ERROR = "An error inside the gateway lost this run's answer; the code may have run. The gateway's log has it."
NOT_RUN = "No kernel took this code, and it was not run: {}"

log = structlog.get_logger()


class NotRun(Exception):
    """No kernel has taken the run, and none will; `why` is the error that says so."""

    def __init__(self, why: CellblockError) -> None:
        super().__init__(str(why))
        self.why = why


class KernelSource(Protocol):
    """Where the kernel for a run comes from."""

    patience_s: float
    """For how long to ask again while none is to be had. Whoever has been queued was promised a kernel."""

    async def take(self, live: LiveRun) -> Kernel:
        """A kernel that answers, and that is recorded to be this run's. Raises Unavailable, TooManyRequests."""
        ...

    def not_taken(self, kernel: Kernel) -> None:
        """This kernel has not taken the run."""
        ...

    def publish_news(self, live: LiveRun, generation: int) -> None:
        """The run is about to be sent to this kernel process, or was: what it has to say of its session."""
        ...


class Attempts:
    """Drives runs to their ends, which are not committed yet."""

    def __init__(self, conductor: Conductor, clock: Clock, pause_s: float) -> None:
        self._conductor = conductor
        self._clock = clock
        self._pause_s = pause_s

    async def drive(self, live: LiveRun, source: KernelSource) -> Result:
        """The answer of a run, which has one final status whatever happens. Raises NotRun."""
        refusals = 0
        until_s = self._clock.monotonic() + source.patience_s
        while True:
            if live.stop is not None and not live.is_resumed:
                return live.fold.finish(live.stop.status, live.stop.reason, None)
            try:
                return await self._attempt(live, source)
            except NotTaken as error:
                refusals += 1
                live.msg_id = ""
                if error.kernel is not None:
                    source.not_taken(error.kernel)
                if refusals == _ATTEMPTS:
                    raise NotRun(SandboxLost()) from None
            except Draining:
                await asyncio.Event().wait()  # the next gateway runs it: this one is about to leave it
            except CellblockError as error:
                if live.stop is None and not self._is_worth_waiting(error, source, until_s):
                    raise NotRun(error) from error
                await asyncio.sleep(self._pause_s)
            except Exception:
                # A bug of ours, but the run has one final status all the same.
                log.exception("run_failed", run_id=live.run_id)
                return live.fold.give_up(_INTERNAL_ERROR)

    def _is_worth_waiting(self, error: CellblockError, source: KernelSource, until_s: float) -> bool:
        """Whether a kernel may be had later: for a run that waits anyway, always once the database is back."""
        if isinstance(error, StoreUnavailable):
            return source.patience_s > 0
        return isinstance(error, (Unavailable, TooManyRequests)) and self._clock.monotonic() < until_s

    async def _attempt(self, live: LiveRun, source: KernelSource) -> Result:
        """Raises NotTaken, and what `KernelSource.take` raises."""
        if live.is_resumed:
            live.is_resumed = False
            return await self._resume(live, source)
        kernel = await source.take(live)
        if live.stop is not None:
            raise NotTaken(None)
        source.publish_news(live, kernel.generation)
        return await self._conductor.perform(live, kernel)

    async def _resume(self, live: LiveRun, source: KernelSource) -> Result:
        """Go on with a run that an earlier gateway has begun."""
        if live.kernel is None or not await self._conductor.find(live, live.kernel):
            return self._conductor.lost(live)
        source.publish_news(live, live.generation)
        began_at = live.run.started_at or live.run.created_at
        elapsed_s = (self._clock.now() - began_at).total_seconds()
        return await self._conductor.resume(live, live.kernel, elapsed_s)
