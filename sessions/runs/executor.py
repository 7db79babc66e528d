"""Executes a run: finds a kernel that takes it, sends the code, and waits for its end within the time limit.

Where kernels come from is the business of a `KernelSource`: a session has its own, a stateless run claims one. Which
status an end means is decided in conclusion.py; committing the result is the caller's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import structlog

from sessions.environment import Environment
from sessions.errors import (
    CellblockError,
    Draining,
    KernelLost,
    SandboxLost,
    StoreUnavailable,
    TooManyRequests,
    Unavailable,
)
from sessions.kernels.kernel import Kernel
from sessions.kernels.outcomes import Cause, Died
from sessions.kernels.pending_requests import make_msg_id
from sessions.measures.stages import Stage
from sessions.model import Result, RunStatus
from sessions.ports import Fate
from sessions.runs.conclusion import conclude, conclude_death, conclude_lost
from sessions.runs.input_files import NotWritten, write_files
from sessions.runs.live_run import LiveRun, Stop, retrieve
from sessions.runs.variables import send_variables

_MAX_REFUSALS = 3
_INTERNAL_ERROR = "An error inside the gateway lost this run's answer; the code may have run. The gateway's log has it."
_NOT_SENT = "The sandbox ended before the code was sent to it."
_CODE_NOT_RUN = "The code was not run."
NOT_RUN = "No kernel took this code, and it was not run: {}"

log = structlog.get_logger()


class NotTaken(Exception):
    """The code was not run. `kernel` was sent it and refused it; None when it was sent to no kernel."""

    def __init__(self, kernel: Kernel | None) -> None:
        super().__init__("not taken")
        self.kernel = kernel


class NotRun(Exception):
    """No kernel took the run, and none will; `why` is the error that says so."""

    def __init__(self, why: CellblockError) -> None:
        super().__init__(str(why))
        self.why = why


class KernelSource(Protocol):
    """Where the kernel for a run comes from."""

    patience_s: float
    """How long to ask again while there is no kernel. A queued run was promised one."""

    async def kernel_for(self, live: LiveRun) -> Kernel:
        """A kernel that answers, recorded as this run's. Raises NotTaken, Unavailable, TooManyRequests."""
        ...

    def on_refused(self, kernel: Kernel) -> None:
        """This kernel did not take the run."""
        ...

    def set_session_flags(self, live: LiveRun, generation: int) -> None:
        """Have the run say what there is to say of its session; this kernel process is sent the run, or was."""
        ...


class RunExecutor:
    """Executes runs. `fate` asks the engine how a sandbox that is gone ended."""

    def __init__(self, environment: Environment, fate: Callable[[Kernel], Awaitable[Fate | None]]) -> None:
        self._memory_bytes = environment.limits.memory_bytes
        timeouts = environment.timeouts
        largest_mib = environment.limits.files_bytes / (1 << 20)
        self._files_timeout_s = timeouts.files_timeout_s + timeouts.files_s_per_mib * largest_mib
        self._timeouts = environment.timeouts
        self._clock = environment.clock
        self._fate = fate

    async def execute(self, live: LiveRun, source: KernelSource) -> Result:
        """Return the run's result, which has one final status whatever happens. Raises NotRun."""
        refusals = 0
        until_s = self._clock.monotonic() + source.patience_s
        while True:
            if live.stop is not None and not live.is_resumed:
                return live.fold.finish(live.stop.status, live.stop.reason, live.usage(None))
            try:
                return await (self._resume if live.is_resumed else self._attempt)(live, source)
            except NotTaken as error:
                refusals += 1
                live.msg_id = ""
                if error.kernel is not None:
                    source.on_refused(error.kernel)
                if refusals == _MAX_REFUSALS:
                    raise NotRun(SandboxLost()) from None
            except Draining:
                await asyncio.Event().wait()  # the next gateway runs it: this one is about to hand it over
            except CellblockError as error:
                if live.stop is None and not self._is_worth_waiting(error, source, until_s):
                    raise NotRun(error) from error
                await asyncio.sleep(self._timeouts.attempt_pause_s)
            except Exception:
                # A bug of ours, but the run has one final status all the same.
                log.exception("run_failed", **live.run.log_fields())
                return live.fold.finish_internal_error(_INTERNAL_ERROR)

    def _is_worth_waiting(self, error: CellblockError, source: KernelSource, until_s: float) -> bool:
        """Whether there may be a kernel later. A queued run waits for the store however long that takes."""
        if isinstance(error, StoreUnavailable):
            return source.patience_s > 0
        return isinstance(error, (Unavailable, TooManyRequests)) and self._clock.monotonic() < until_s

    # --- one attempt --------------------------------------------------------------------------------------------------

    async def _attempt(self, live: LiveRun, source: KernelSource) -> Result:
        """Send the code to one kernel. Raises NotTaken, and what `KernelSource.kernel_for` raises."""
        kernel = await source.kernel_for(live)
        live.trace.end(Stage.QUEUE)
        if live.stop is not None:
            raise NotTaken(None)
        live.kernel = kernel
        self._address(live, kernel, source)
        live.begun_s = asyncio.get_running_loop().time()
        live.recorder.on_commit(kernel.acknowledge, kernel.acknowledge_soon)
        try:
            if live.run.inputs is not None and (result := await self._write_files(live, kernel)) is not None:
                return result
            if kernel.generation != live.generation:  # its process has died while files were written
                self._address(live, kernel, source)
            if live.run.variables and (result := await self._set_variables(live, kernel)) is not None:
                return result
            if live.stop is not None:
                return live.fold.finish(live.stop.status, live.stop.reason, live.usage(None))
            kernel.execute(
                live.msg_id,
                live.run.code,
                live.recorder,
                allow_stdin=live.run.allow_stdin,
                metadata=_metadata(live, kernel),
                jupyter=live.run.jupyter,
            )
            live.trace.end(Stage.FRAME_OUT)
        except KernelLost as error:
            raise NotTaken(kernel) from error
        return await self._wait_for_end(live, kernel, self._left_s(live))

    @staticmethod
    def _address(live: LiveRun, kernel: Kernel, source: KernelSource) -> None:
        """Have the run be one of the kernel process that there is now."""
        source.set_session_flags(live, kernel.generation)
        live.msg_id = make_msg_id(live.run_id, kernel.generation)

    @staticmethod
    def _left_s(live: LiveRun) -> float:
        """What is left of the run's time; what files and variables take is part of it."""
        now_s = asyncio.get_running_loop().time()
        return max(0.0, live.run.timeout_s - (now_s - (live.begun_s or now_s)))

    async def _write_files(self, live: LiveRun, kernel: Kernel) -> Result | None:
        """Write the run's files. Returns the result of a run that cannot have them, or is stopped meanwhile.

        Raises NotTaken when they may be written the next time: nothing has run.
        """
        files = {} if live.run.inputs is None else live.run.inputs.files
        if not files:
            return None
        writing = asyncio.ensure_future(write_files(kernel.files, files))
        writing.add_done_callback(retrieve)
        live.is_preparing = True
        try:
            either: set[asyncio.Future[Any]] = {writing, live.stopping}
            await asyncio.wait(either, timeout=self._left_s(live), return_when=asyncio.FIRST_COMPLETED)
        finally:
            live.is_preparing = False
            writing.cancel()
        await asyncio.wait([writing])
        if writing.cancelled():
            stop = live.stop or _past_limit(live)
            return live.fold.finish(stop.status, stop.reason, live.usage(None))
        try:
            writing.result()
        except NotWritten as error:
            return live.fold.finish(RunStatus.ERROR, f"{error} {_CODE_NOT_RUN}", live.usage(None))
        except Unavailable as error:
            raise NotTaken(kernel) from error
        return None

    async def _set_variables(self, live: LiveRun, kernel: Kernel) -> Result | None:
        """Set the run's variables. Returns the result of a run that is stopped meanwhile. Raises KernelLost."""
        msg_id, ended = send_variables(kernel, live.run.variables)
        stop = await self._bring_to_end(live, kernel, msg_id, ended, self._left_s(live))
        end = ended.result()
        if stop is None and isinstance(end, Died):
            raise KernelLost(_NOT_SENT)
        if stop is None:
            return None
        live.lost_kernel = isinstance(end, Died)
        live.fold.session_lost = live.fold.session_lost or live.lost_kernel
        return live.fold.finish(stop.status, stop.reason, live.usage(end.usage))

    # --- a run that an earlier gateway began --------------------------------------------------------------------------

    @staticmethod
    def join(live: LiveRun, kernel: Kernel) -> None:
        """Listen for a run that an earlier gateway may have sent. To be called before the supervisor dials in."""
        live.kernel = kernel
        live.recorder.on_commit(kernel.acknowledge, kernel.acknowledge_soon)
        kernel.expect(live.run_id, live.recorder)

    async def _resume(self, live: LiveRun, source: KernelSource) -> Result:
        """Go on with a joined run. Raises NotTaken when its code was never sent."""
        live.is_resumed = False
        live.begun_s = asyncio.get_running_loop().time() - self._age_s(live)
        kernel = live.kernel
        if kernel is None or not await self._find(live, kernel):
            return conclude_lost(live)
        source.set_session_flags(live, live.generation)
        left_s = live.run.timeout_s - self._age_s(live)
        # It may have passed its limit while no gateway was there; what it has said since then comes first.
        return await self._wait_for_end(
            live, kernel, min(live.run.timeout_s, max(self._timeouts.resumed_min_s, left_s))
        )

    def _age_s(self, live: LiveRun) -> float:
        began_at = live.run.started_at or live.run.created_at
        return max(0.0, (self._clock.now() - began_at).total_seconds())

    async def _find(self, live: LiveRun, kernel: Kernel) -> bool:
        """Wait for the supervisor, and see whether it has the run. False when it does not come back, or forgot it.

        Raises NotTaken when the code was never sent; then it can be sent, to this kernel too.
        """
        try:
            await kernel.wait_linked(self._timeouts.link_timeout_s)
        except KernelLost:
            kernel.abandon("its supervisor did not come back")
            if not live.recorder.ended.done():  # it may have come back, reported the end, and gone
                return False
        live.msg_id = kernel.msg_id_of(live.recorder) or live.msg_id
        if live.msg_id or live.recorder.ended.done():
            return True
        if live.recorder.has_begun():
            return False  # the supervisor has restarted, and knows nothing of what it has said before
        raise NotTaken(None)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _wait_for_end(self, live: LiveRun, kernel: Kernel, timeout_s: float) -> Result:
        """Wait for the code to end, then for its files, which have a time limit of their own. Raises NotTaken."""
        recorder = live.recorder
        stop = await self._bring_to_end(live, kernel, live.msg_id, recorder.code_ended, timeout_s)
        await self._wait_for_files(live, kernel)
        end = recorder.ended.result()
        if isinstance(end, Died) and not end.ran:
            recorder.begin_again()
            raise NotTaken(kernel)
        outcome = conclude(live, end, stop)
        if isinstance(outcome, Result):
            return outcome
        fate = await self._fate(kernel) if outcome.cause is Cause.GONE and kernel.violation is None else None
        oom = fate is not None and fate.oom
        return conclude_death(live, outcome, violation=kernel.violation, oom=oom, memory_bytes=self._memory_bytes)

    async def _wait_for_files(self, live: LiveRun, kernel: Kernel) -> None:
        """Wait for the files; past their time, have those that are left skipped. The store's delays do not count."""
        recorder = live.recorder
        is_stopped = False
        while not recorder.ended.done():
            await asyncio.wait([recorder.ended], timeout=self._files_timeout_s)
            if recorder.ended.done() or recorder.is_held_up:
                continue
            if is_stopped or not kernel.is_linked():
                kernel.abandon("the run did not end in time")
            else:
                log.warning("files_cut", **live.run.log_fields(), after_s=self._files_timeout_s)
                kernel.stop_files(live.msg_id)
                is_stopped = True

    async def _bring_to_end(
        self, live: LiveRun, kernel: Kernel, msg_id: str, ended: asyncio.Future[Any], timeout_s: float
    ) -> Stop | None:
        """Wait for a request to end. Past the limit, or told to stop, interrupt it, then kill its kernel.

        Returns why it was stopped; None when it ended by itself.
        """
        either: set[asyncio.Future[Any]] = {ended, live.stopping}
        done, _ = await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return None
        stop = live.stop if done else _past_limit(live)
        grace_s = self._timeouts.interrupt_grace_s
        kernel.interrupt(msg_id, grace_s)
        while not ended.done():
            # While the supervisor is away, neither the interrupt nor what came of it can arrive.
            with suppress(KernelLost):
                await kernel.wait_linked(self._timeouts.link_timeout_s)
            await asyncio.wait([ended], timeout=grace_s + self._timeouts.kill_grace_s)
            if not ended.done() and kernel.is_linked():
                # Not even the supervisor answers: the container goes, with everything in it.
                kernel.abandon("the run did not end in time")
        return stop


def _past_limit(live: LiveRun) -> Stop:
    return Stop(RunStatus.TIMEOUT, f"The run passed its time limit of {live.run.timeout_s:g} s and was stopped.")


def _metadata(live: LiveRun, kernel: Kernel) -> dict[str, Any]:
    # When this kernel process dies, the session's variables die with it: its successor must not run the code.
    options: dict[str, Any] = {"generation": kernel.generation}
    if (inputs := live.run.inputs) is not None:
        options |= {"fetch": inputs.fetch} if inputs.fetch else {}
        options |= {"env": dict(inputs.env)} if inputs.env else {}
    return {"cellblock": options}
