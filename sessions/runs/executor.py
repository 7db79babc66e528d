"""One run on one kernel: set the variables, send the code, wait for its end within the time limit, say how it ended.

Which kernel that is, and what becomes of it, is decided elsewhere; so is committing the end.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sessions.errors import KernelLost
from sessions.kernels.kernel import Kernel
from sessions.kernels.outcomes import Cause, Died, Done
from sessions.kernels.outstanding import make_msg_id
from sessions.model import Fate, Result, RunStatus
from sessions.runs.live_run import LiveRun, Stop
from sessions.runs.variables import send_variables
from sessions.settings import Limits, Timeouts

_NO_REPLY = "The kernel's reply to this run could not be read, so whether the code raised is unknown."
_OUT_OF_SIGHT = (
    "The gateway stopped while this run was under way, and its sandbox is gone: how far it came is not known."
)


class NotTaken(Exception):
    """The code was not run. `kernel` has been given it and will not take it; None where it was given to none."""

    def __init__(self, kernel: Kernel | None) -> None:
        super().__init__("not taken")
        self.kernel = kernel


@dataclass(frozen=True, slots=True)
class _Ending:
    """How the code ended, and what brought that about if it was not its own doing."""

    end: Done | Died
    stop: Stop | None


class Conductor:
    """Runs code on kernels. `fate` asks the engine about a sandbox that is gone."""

    def __init__(self, limits: Limits, fate: Callable[[Kernel], Awaitable[Fate | None]], timeouts: Timeouts) -> None:
        self._limits = limits
        self._timeouts = timeouts
        self._fate = fate

    async def perform(self, live: LiveRun, kernel: Kernel) -> Result:
        """Run the code; returns the answer, which is not committed yet. Raises NotTaken."""
        live.kernel, live.msg_id = kernel, make_msg_id(live.run_id, kernel.generation)
        live.recorder.on_commit(kernel.acknowledge)
        # A kernel process that dies from here on takes the session's variables along: its successor will not do.
        metadata = {"cellblock": {"generation": kernel.generation}}
        try:
            if live.run.variables and live.stop is None:
                result = await self._set_variables(live, kernel)
                if result is not None:
                    return result
            if live.stop is not None:
                return live.fold.finish(live.stop.status, live.stop.reason, None)
            kernel.execute(
                live.msg_id,
                live.run.code,
                live.recorder,
                allow_stdin=live.run.allow_stdin,
                metadata=metadata,
                jupyter=live.run.jupyter,
            )
        except KernelLost as error:
            raise NotTaken(kernel) from error
        return await self._conclude(live, kernel, await self._wait_for_end(live, kernel, live.run.timeout_s))

    @staticmethod
    def join(live: LiveRun, kernel: Kernel) -> None:
        """Listen for what comes of a run that an earlier gateway began. To be called before the supervisor dials in."""
        live.kernel = kernel
        live.recorder.on_commit(kernel.acknowledge)
        kernel.expect(live.run_id, live.recorder)

    async def find(self, live: LiveRun, kernel: Kernel) -> bool:
        """Wait for the supervisor of a joined run, and see what it has of it. False when it does not come back.

        Raises NotTaken when the code was never sent; then it can be performed, on this kernel too.
        """
        try:
            await kernel.wait_linked(self._timeouts.link_timeout_s)
        except KernelLost:
            kernel.discard("its supervisor did not come back")
            if not live.recorder.ended.done():  # it may have come back, told the end, and gone
                return False
        live.msg_id = kernel.msg_id_of(live.recorder) or live.msg_id
        if live.msg_id or live.recorder.ended.done():
            return True
        if live.recorder.has_begun():
            return False  # the supervisor has started anew, and knows nothing of what it has told before
        raise NotTaken(None)

    async def resume(self, live: LiveRun, kernel: Kernel, elapsed_s: float) -> Result:
        """Go on with a run that was found, and that began `elapsed_s` ago. Raises NotTaken."""
        # It may have passed its limit while nobody could tell it; what it has said since then comes first.
        timeout_s = min(live.run.timeout_s, max(self._timeouts.resumed_min_s, live.run.timeout_s - elapsed_s))
        return await self._conclude(live, kernel, await self._wait_for_end(live, kernel, timeout_s))

    def lost(self, live: LiveRun) -> Result:
        """The answer of a run whose sandbox went while no gateway was there."""
        live.lost_kernel = live.fold.session_lost = True
        return live.fold.finish(RunStatus.LOST, _OUT_OF_SIGHT, None)

    async def _set_variables(self, live: LiveRun, kernel: Kernel) -> Result | None:
        """Set the run's variables; the answer of a run that ends by that. Raises KernelLost if they were not taken."""
        msg_id, ended = send_variables(kernel, live.run.variables)
        stop = await self._bring_to_end(live, kernel, msg_id, ended, live.run.timeout_s)
        end = ended.result()
        if stop is None and isinstance(end, Died):
            raise KernelLost("The sandbox ended before the code was sent to it.")
        if stop is None:
            return None
        live.lost_kernel = isinstance(end, Died)
        live.fold.session_lost = live.fold.session_lost or live.lost_kernel
        return live.fold.finish(stop.status, stop.reason, end.usage)

    async def _wait_for_end(self, live: LiveRun, kernel: Kernel, timeout_s: float) -> _Ending:
        """The end of the code. The limit is the code's: what it has made is brought over in a time of its own."""
        recorder = live.recorder
        stop = await self._bring_to_end(live, kernel, live.msg_id, recorder.code_ended, timeout_s)
        while not recorder.ended.done():
            await asyncio.wait([recorder.ended], timeout=self._timeouts.files_timeout_s)
            if not recorder.ended.done() and not recorder.is_held_up:
                kernel.discard("the run did not end in time")
        return _Ending(recorder.ended.result(), stop)

    async def _bring_to_end(
        self, live: LiveRun, kernel: Kernel, msg_id: str, ended: asyncio.Future[Any], timeout_s: float
    ) -> Stop | None:
        """Wait for the end of a request; returns what has brought it about, if that was not its own doing.

        Past the limit, or told to stop, it is interrupted first, then its kernel killed.
        """
        stopping = asyncio.ensure_future(live.stopping.wait())
        try:
            either: set[asyncio.Future[Any]] = {ended, stopping}
            done, _ = await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if ended.done():
            return None
        limit = f"The run passed its time limit of {live.run.timeout_s:g} s and was stopped."
        stop = live.stop if done else Stop(RunStatus.TIMEOUT, limit)
        grace_s = self._timeouts.interrupt_grace_s
        kernel.interrupt(msg_id, grace_s)
        while not ended.done():
            # While the supervisor is away, the interrupt waits for it, and so does what came of it.
            with suppress(KernelLost):
                await kernel.wait_linked(self._timeouts.link_timeout_s)
            await asyncio.wait([ended], timeout=grace_s + self._timeouts.kill_grace_s)
            if not ended.done() and kernel.is_linked():
                # Not even the supervisor answers; what remains is to end the container with everything in it.
                kernel.discard("the run did not end in time")
        return stop

    async def _conclude(self, live: LiveRun, kernel: Kernel, ending: _Ending) -> Result:
        """The run's one final status, and a sentence for it where the traceback says nothing."""
        fold, recorder, end, stop = live.fold, live.recorder, ending.end, ending.stop
        if isinstance(end, Died) and not end.ran:
            recorder.begin_again()
            raise NotTaken(kernel)
        fold.add_skipped(end.skipped)
        if isinstance(end, Done) and end.oom_kills:
            fold.notice("a process of this run was killed: the memory limit was reached")
        is_gone = isinstance(end, Died) and end.cause is Cause.GONE
        if is_gone and (recorder.is_complete() or recorder.has_files or stop is not None):
            fold.add_skipped([{"path": "", "bytes": 0, "why": "time"}])
        live.lost_kernel = isinstance(end, Died) or fold.leaves
        fold.session_lost = fold.session_lost or live.lost_kernel
        ended_badly = isinstance(end, Died) or fold.ended_status() is not RunStatus.OK
        if stop is not None and (ended_badly or stop.status is RunStatus.TIMEOUT):
            return fold.finish(stop.status, stop.reason, end.usage)
        if isinstance(end, Done) and not recorder.has_reply():
            return fold.finish(RunStatus.ERROR, _NO_REPLY, end.usage)
        if isinstance(end, Done) or recorder.is_complete():
            return fold.finish(fold.ended_status(), None, end.usage)
        oom = end.cause is Cause.OOM
        if is_gone and kernel.violation is None:
            fate = await self._fate(kernel)
            oom = fate is not None and fate.oom
        if oom:
            limit_mib = self._limits.memory_bytes / (1 << 20)
            reason = f"The run needed more memory than its limit of {limit_mib:g} MiB, and its kernel was killed."
            return fold.finish(RunStatus.OOM, reason, end.usage)
        return fold.finish(RunStatus.KERNEL_DIED, _death_sentence(kernel, end), end.usage)


def _death_sentence(kernel: Kernel, died: Died) -> str:
    if kernel.violation is not None:
        return kernel.violation
    match died.cause:
        case Cause.GONE:
            return "The sandbox ended before the code did."
        case Cause.INTERRUPT_IGNORED:
            return "The code ignored an interrupt, and its kernel was killed."
    if died.signal is not None:
        try:
            name = signal.Signals(died.signal).name
        except ValueError:
            name = "unknown"
        return f"The kernel was ended by signal {died.signal} ({name}) before the code had ended."
    return f"The kernel ended with exit code {died.exit_code} before the code had ended."
