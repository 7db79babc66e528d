"""The one use case that every face calls: run this code in a kernel of its own, and answer once the end is stored.

A run is a short pipeline: claim a kernel, record the run, set the variables, execute, wait for the end within the time
limit, commit, answer; the used kernel is removed behind the answer's back.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import structlog

from sessions.ends import Cause, Died, Done
from sessions.errors import (
    Draining,
    EndNotStored,
    InvalidRequest,
    KernelLost,
    NotFound,
    SandboxLost,
    UnsupportedLanguage,
)
from sessions.execution import Execution
from sessions.kernel import Kernel
from sessions.model import (
    Artifact,
    ArtifactId,
    GatewayId,
    Limits,
    Result,
    Run,
    RunId,
    RunRequest,
    RunStatus,
)
from sessions.pool import PoolSettings
from sessions.ports import Clock, Provisioner, Store, Switchboard
from sessions.recording import Recording
from sessions.supply import KernelSupply
from sessions.watch import Watch

_CLAIM_TIMEOUT_S = 30.0
_INTERRUPT_GRACE_S = 2.0
_KILL_GRACE_S = 5.0
_COMMIT_PATIENCE_S = 30.0
_FILES_PATIENCE_S = 120.0
_HEALTH_PAUSE_S = 2.0
_RETIRE_AFTER_S = 0.01

# By kernelspec. The values come with the request's metadata, never as source text.
_SET_VARIABLES = {
    "python3": 'get_ipython().push(get_ipython().kernel.get_parent("shell")["metadata"]["cellblock"]["variables"])',
}

_INTERNAL_ERROR = "An error inside the gateway lost this run's answer; the code may have run. The gateway's log has it."

_NO_REPLY = "The kernel's reply to this run could not be read, so whether the code raised is unknown."

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether code can run now; `reasons` are sentences that say why not. `warm` counts the kernels that are ready."""

    ready: bool
    reasons: tuple[str, ...]
    warm: int
    engine: str


class Service:
    """Runs. Its state: the runs under way, whether the store answers, and how far it is on its way to the end.

    `_ending` is done when even ends that are not stored yet are given up.
    """

    def __init__(
        self,
        *,
        store: Store,
        provisioner: Provisioner,
        switchboard: Switchboard,
        gateway_id: GatewayId,
        limits: Limits,
        pool: PoolSettings,
        languages: Mapping[str, str],
        preload: tuple[str, ...],
        clock: Clock,
    ) -> None:
        """`languages` maps what clients call a language to a kernelspec name; the first one's kernels are kept warm."""
        names = list(dict.fromkeys(languages.values()))
        self._store = store
        self._provisioner = provisioner
        self._gateway_id = gateway_id
        self._limits = limits
        self._languages = dict(languages)
        self._clock = clock
        self._supply = KernelSupply(
            provisioner=provisioner,
            switchboard=switchboard,
            gateway_id=gateway_id,
            limits=limits,
            pool=pool,
            kernel_names={name: pool.size if name == names[0] else 0 for name in names},
            preload=preload,
            clock=clock,
        )
        self._runs: set[asyncio.Task[Any]] = set()
        self._storing: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._closing = False
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._store_watch = Watch("database", store.ping)
        self._health: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Settle what an earlier gateway on the same data left unfinished, then begin to warm up."""
        lost = await self._store.mark_lost(self._gateway_id, self._clock.now())
        if lost:
            log.warning("runs_lost", count=lost)
        await self._supply.start()
        self._health = asyncio.ensure_future(self._store_watch.keep_asking(_HEALTH_PAUSE_S))

    async def drain(self, timeout_s: float) -> None:
        """Take no more runs, and wait for those under way, but not for longer than this."""
        self._draining = True
        self._supply.stop_refilling()
        if unfinished := self._runs | self._storing:
            log.info("draining", runs=len(unfinished))
            await asyncio.wait(unfinished, timeout=timeout_s)

    async def close(self) -> None:
        """End what is still running, and remove this gateway's containers. The store is not closed."""
        self._draining = self._closing = True
        if self._health is not None:
            self._health.cancel()
        await self._supply.close()  # fails what is still running, which then records its end
        if unfinished := self._runs | self._storing:
            await asyncio.wait(unfinished, timeout=_KILL_GRACE_S)
        if not self._ending.done():
            self._ending.set_result(None)
        if self._runs:
            await asyncio.wait(self._runs, timeout=_KILL_GRACE_S)
        for task in self._runs | self._storing:
            task.cancel()

    def readiness(self) -> Readiness:
        """Whether code can run now."""
        reasons = self._supply.reasons_not_ready()
        if self._store_watch.failure is not None:
            reasons.append(self._store_watch.failure)
        if self._draining:
            reasons.append(str(Draining()))
        return Readiness(not reasons, tuple(reasons), self._supply.warm(), self._provisioner.name)

    def limits_seen(self) -> Mapping[str, Any]:
        """The limits that a connected container really has, as its supervisor reads them; empty when none is there."""
        return self._supply.limits_seen()

    # --- the use cases ------------------------------------------------------------------------------------------------

    async def run(self, request: RunRequest) -> Result:
        """Run code in a fresh kernel and return its answer, which is committed then.

        Raises InvalidRequest, UnsupportedLanguage, TooManyRequests, and Unavailable in its kinds, which mean that
        nothing was run unless they say so. A caller that is cancelled does not stop the run.
        """
        if self._draining:
            raise Draining
        if request.language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise UnsupportedLanguage(f"The language {request.language!r} is not configured here; there is: {known}.")
        if request.variables and self._languages[request.language] not in _SET_VARIABLES:
            raise InvalidRequest(f"`variables` cannot be set in the language {request.language!r}: write them as code.")
        return await asyncio.shield(_track(self._perform(request), self._runs))

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        """An artifact with its bytes. Raises NotFound, StoreUnavailable."""
        artifact = await self._store.get_artifact(artifact_id)
        if artifact is None:
            raise NotFound
        return artifact

    # --- one run ------------------------------------------------------------------------------------------------------

    async def _perform(self, request: RunRequest) -> Result:
        kernel = await self._supply.claim(self._languages[request.language], _CLAIM_TIMEOUT_S)
        run = self._make_run(request, kernel)
        try:
            await self._store.add_run(run)
        except BaseException:
            self._supply.give_back(kernel)
            raise
        execution = Execution(run.run_id, self._limits, lambda: ArtifactId(str(uuid4())))
        recording = Recording(run.run_id, execution, self._store, self._clock)
        unsent: SandboxLost | None = None
        try:
            try:
                result = await self._execute(request, kernel, recording)
            except KernelLost:
                unsent = SandboxLost()
                result = execution.finish(RunStatus.KERNEL_DIED, str(unsent), None)
            except Exception:
                # A bug of ours, but the run has one final status all the same.
                log.exception("run_failed", run_id=run.run_id)
                result = Result(run.run_id, RunStatus.LOST, output="", error=_INTERNAL_ERROR)
            stored = await self._commit(recording, result)
            if unsent is not None:
                raise unsent
            return stored
        finally:
            # Behind the answer's back: removing a container, and starting the next one, is hard work.
            asyncio.get_running_loop().call_later(_RETIRE_AFTER_S, self._supply.retire, kernel)

    def _make_run(self, request: RunRequest, kernel: Kernel) -> Run:
        return Run(
            run_id=RunId(str(uuid4())),
            tenant=request.tenant,
            gateway_id=self._gateway_id,
            language=request.language,
            code=request.code,
            variables=request.variables,
            timeout_s=request.timeout_s,
            created_at=self._clock.now(),
            kernel_id=kernel.kernel_id,
        )

    async def _execute(self, request: RunRequest, kernel: Kernel, recording: Recording) -> Result:
        """Send the code, wait for its end, and fold that into the answer. Raises KernelLost when it was not sent."""
        recording.on_commit(kernel.acknowledge)
        if request.variables:
            metadata = {"cellblock": {"variables": request.variables, "artifacts": False}}
            kernel.execute(_SET_VARIABLES[kernel.kernel_name], _Ignored(), silent=True, metadata=metadata)
        msg_id = kernel.execute(request.code, recording)
        end, timed_out = await self._wait_for_end(kernel, msg_id, recording, request.timeout_s)
        return await self._conclude(kernel, recording, end, request.timeout_s if timed_out else None)

    async def _wait_for_end(
        self, kernel: Kernel, msg_id: str, recording: Recording, timeout_s: float
    ) -> tuple[Done | Died, bool]:
        """The end of the run, and whether the time limit brought it about: by an interrupt first, then by a kill.

        The limit is the code's. What the code has made is brought over and stored in a time of its own.
        """
        in_time, _ = await asyncio.wait([recording.code_ended], timeout=timeout_s)
        if not in_time:
            kernel.interrupt(msg_id, _INTERRUPT_GRACE_S)
            await asyncio.wait([recording.code_ended], timeout=_INTERRUPT_GRACE_S + _KILL_GRACE_S)
        if recording.code_ended.done():
            await asyncio.wait([recording.ended], timeout=_FILES_PATIENCE_S)
        if not recording.ended.done():
            # Not even the supervisor answers; what remains is to end the container with everything in it.
            kernel.abandon("the run did not end in time")
        return await recording.ended, not in_time

    async def _conclude(
        self, kernel: Kernel, recording: Recording, end: Done | Died, passed_limit_s: float | None
    ) -> Result:
        """The run's one final status, and a sentence for it where the traceback says nothing."""
        execution = recording.execution
        execution.take_skipped(end.skipped)
        if isinstance(end, Done) and end.oom_kills:
            execution.notice("a process of this run was killed: the memory limit was reached")
        is_gone = isinstance(end, Died) and end.cause is Cause.GONE
        if is_gone and (recording.is_complete() or recording.has_files or passed_limit_s is not None):
            execution.take_skipped([{"path": "", "bytes": 0, "why": "time"}])
        if passed_limit_s is not None:
            reason = f"The run passed its time limit of {passed_limit_s:g} s and was stopped."
            return execution.finish(RunStatus.TIMEOUT, reason, end.usage)
        if isinstance(end, Done) and not recording.has_reply():
            return execution.finish(RunStatus.ERROR, _NO_REPLY, end.usage)
        if isinstance(end, Done) or recording.is_complete():
            return execution.finish(execution.ended_status(), None, end.usage)
        oom = end.cause is Cause.OOM
        if is_gone and kernel.violation is None and not self._closing:
            fate = await self._supply.fate(kernel)
            oom = fate is not None and fate.oom
        if oom:
            limit_mib = self._limits.memory_bytes / (1 << 20)
            reason = f"The run needed more memory than its limit of {limit_mib:g} MiB, and its kernel was killed."
            return execution.finish(RunStatus.OOM, reason, end.usage)
        return execution.finish(RunStatus.KERNEL_DIED, self._death_sentence(kernel, end), end.usage)

    def _death_sentence(self, kernel: Kernel, died: Died) -> str:
        if kernel.violation is not None:
            return kernel.violation
        if died.cause is Cause.GONE:
            return "The gateway is shutting down." if self._closing else "The sandbox ended before the code did."
        if died.signal is not None:
            try:
                name = signal.Signals(died.signal).name
            except ValueError:
                name = "unknown"
            return f"The kernel was ended by signal {died.signal} ({name}) before the code had ended."
        return f"The kernel ended with exit code {died.exit_code} before the code had ended."

    async def _commit(self, recording: Recording, result: Result) -> Result:
        """Commit the end. The caller waits for a while; the commit is tried for as long as this gateway lives."""
        committing = _track(recording.finish(result), self._storing)
        either: set[asyncio.Future[Any]] = {committing, self._ending}
        done, _ = await asyncio.wait(either, timeout=_COMMIT_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if committing not in done:
            fate = "lost: this gateway is shutting down" if done else "kept, and stored when the database is back"
            raise EndNotStored(
                f"The run {result.run_id} has ended with status {result.status}, but the database is out of reach: "
                f"its result is {fate}. Do not run it again."
            )
        stored: Result = committing.result()
        return stored


def _track(work: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """Begin `work`, which is among `tasks` until it ends."""
    task = asyncio.ensure_future(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


class _Ignored:
    """The listener of a request whose own messages say nothing: the run that follows it tells all."""

    uncommitted_seq = None

    def on_message(self, seq: int, message: object) -> None:
        """Nothing."""

    def on_gap(self, dropped_bytes: int) -> None:
        """Nothing."""

    def on_done(self, done: Done) -> None:
        """Nothing."""

    def on_died(self, died: Died) -> None:
        """Nothing."""
