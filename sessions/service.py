"""The one use case that every face calls: run this code, in a kernel of its own or a session's, and lose nothing of it.

A run is a short pipeline: record it, have a kernel take it, fold what comes of it, commit the end, answer. What is
specific to sessions is in registry.py, to runs outside of them in single_runs.py; how code is run on a kernel is in
conduct.py; how a run is waited for in live_runs.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import structlog

from sessions.conduct import Conductor
from sessions.errors import (
    Conflict,
    Draining,
    Gone,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    TooManyRequests,
    UnsupportedLanguage,
)
from sessions.execution import Execution
from sessions.kernel import Kernel
from sessions.live_run import LiveRun, Stop
from sessions.live_runs import LiveRuns
from sessions.live_session import LiveSession
from sessions.model import (
    Artifact,
    ArtifactId,
    Event,
    GatewayId,
    KernelId,
    Limits,
    Progress,
    Result,
    Run,
    RunId,
    RunQuery,
    RunRecord,
    RunRequest,
    RunStatus,
    RunSummary,
    SessionId,
    SessionLimits,
    SessionRequest,
    SessionView,
    TenantId,
)
from sessions.pool import PoolSettings
from sessions.ports import Clock, KernelFiles, Provisioner, Store, Switchboard
from sessions.recovery import Recovery
from sessions.registry import Registry, SessionParts
from sessions.single_runs import SingleRuns
from sessions.supply import KernelSupply
from sessions.variables import can_set
from sessions.watch import Watch

_CLAIM_TIMEOUT_S = 30.0
_INTERRUPT_GRACE_S = 2.0
_HEALTH_PAUSE_S = 2.0
_EVENTS_PER_PAGE = 200
_WITHDRAWAL_PAUSES_S = (0.5, 5.0)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether code can run now; `reasons` are sentences that say why not. `warm` counts the kernels that are ready."""

    ready: bool
    reasons: tuple[str, ...]
    warm: int
    engine: str


class Service:
    """Runs and sessions.

    Its own state: what callers have begun, the runs that may turn up in the store although their callers were told that
    nothing was run (`_disowned`), whether the store answers, and whether it is to end.
    """

    def __init__(
        self,
        *,
        store: Store,
        provisioner: Provisioner,
        switchboard: Switchboard,
        gateway_id: GatewayId,
        limits: Limits,
        session_limits: SessionLimits,
        pool: PoolSettings,
        languages: Mapping[str, str],
        preload: tuple[str, ...],
        credential_of: Callable[[KernelId], str],
        clock: Clock,
    ) -> None:
        """`languages` maps what clients call a language to a kernelspec name; the first one's kernels are kept warm.

        `credential_of` gives a kernel's secret, the same in every life of this gateway.
        """
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
            credential_of=credential_of,
            clock=clock,
        )
        self._conductor = Conductor(limits, self._supply.fate)
        self._sessions = Registry(
            SessionParts(store, self._supply, self._conductor, clock), gateway_id, session_limits, self._languages
        )
        self._runs = LiveRuns(store)
        self._single = SingleRuns(store, self._supply, self._conductor, self._languages, clock)
        self._recovery = Recovery(
            gateway_id=gateway_id,
            kernel_names=self._languages,
            limits=limits,
            store=store,
            clock=clock,
            supply=self._supply,
            conductor=self._conductor,
            sessions=self._sessions,
            runs=self._runs,
            single=self._single,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._disowned: set[RunId] = set()
        self._draining = False
        self._store_watch = Watch("database", store.ping)
        self._health: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what an earlier gateway on the same data has left, then begin to warm up."""
        await self._recovery.recover()
        self._supply.start()
        self._sessions.start()
        self._health = asyncio.ensure_future(self._store_watch.keep_asking(_HEALTH_PAUSE_S))

    async def drain(self, timeout_s: float) -> None:
        """Take no more runs, and wait for those under way, but not for longer than this."""
        self._draining = True
        self._supply.stop_refilling()
        if unfinished := [live.answer for live in self._runs]:
            log.info("draining", runs=len(unfinished))
            await asyncio.wait(unfinished, timeout=timeout_s)

    async def close(self) -> None:
        """Leave sessions, and runs that have not ended, to a later gateway; remove all other containers.

        Their supervisors wait for it, and end by themselves when none comes. The store is not closed.
        """
        self._draining = True
        if self._health is not None:
            self._health.cancel()
        self._supply.stop_refilling()
        kept = [*await self._sessions.suspend(), *await self._single.suspend()]
        self._runs.stop()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if kept:
            log.info("kernels_kept", count=len(kept), consequence="they end by themselves unless a gateway comes back")
        await self._supply.close(kept)

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

    # --- runs ---------------------------------------------------------------------------------------------------------

    async def run(self, request: RunRequest) -> Result:
        """Run code and return its answer, which is committed then. Raises as `begin` and `result` do."""
        return await self.result(await self.begin(request))

    async def begin(self, request: RunRequest) -> RunId:
        """Take a run on; it is recorded then. Under an `idempotency_key` that is known: the run that has it.

        Raises InvalidRequest, UnsupportedLanguage, Conflict, TooManyRequests, and Unavailable in its kinds; nothing was
        run then. A caller that is cancelled does not stop the run.
        """
        self._check(request.language, request.variables)
        return await asyncio.shield(self._track(self._begin(request)))

    async def result(self, run_id: RunId) -> Result:
        """Wait for the end of a run. Raises NotFound; Gone when retention has removed it; EndNotStored.

        Also what kept it from being run, which is always one of the kinds of Unavailable.
        """
        return await self._runs.result(run_id)

    def follow(self, run_id: RunId, after: int) -> AsyncIterator[Sequence[Event]]:
        """The committed events above `after`, as they come, up to and with `end`.

        Ends without `end` when this gateway stops, or the run was never run. Raises NotFound, StoreUnavailable.
        """
        return self._runs.follow(run_id, after)

    async def get_run(self, tenant: TenantId, run_id: RunId) -> RunRecord:
        """A run. While it lives, `result` is what has come of it so far. Raises NotFound, Gone."""
        record = await self._store.get_run(run_id)
        if record is None or record.run.tenant != tenant:
            raise NotFound("There is no run by that id.")
        if record.expired_at is not None:
            raise Gone
        if record.result is not None:
            return record
        if (live := self._runs.get(run_id)) is not None:
            return replace(record, result=live.execution.result(record.status))
        execution = Execution(run_id, self._limits, _new_artifact_id, record.run.session_id)
        progress = record.progress or Progress(0, None, {})
        execution.resume(await self._runs.events(run_id), progress.state.get("execution", {}))
        return replace(record, result=execution.result(record.status))

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Runs, newest first."""
        return await self._store.list_runs(query)

    async def cancel(self, tenant: TenantId, run_id: RunId) -> None:
        """Have a run end as `cancelled`; one that has ended stays as it is. Raises NotFound, Conflict."""
        live = await self._runs.own(tenant, run_id)
        if live is None:
            return
        stop = Stop(RunStatus.CANCELLED, "The run was cancelled.")
        session = self._sessions.find(tenant, live.run.session_id) if live.run.session_id is not None else None
        if session is not None:
            session.cancel(live, stop)
        else:
            live.request_stop(stop)

    async def interrupt(self, tenant: TenantId, run_id: RunId) -> None:
        """Interrupt a run, as Ctrl-C would. Raises NotFound, Conflict when it is not running."""
        live = await self._runs.own(tenant, run_id)
        if live is None or live.kernel is None or live.concluded.is_set():
            raise Conflict("This run is not running: there is nothing to interrupt.")
        live.interrupt(_INTERRUPT_GRACE_S)

    async def answer_input(self, tenant: TenantId, run_id: RunId, value: str) -> None:
        """Answer the `input()` that a run waits in. Raises NotFound, Conflict when it does not wait in one."""
        live = await self._runs.own(tenant, run_id)
        if live is None or live.kernel is None or not live.execution.awaits_input:
            raise Conflict("This run does not wait for input.")
        live.execution.awaits_input = False
        live.kernel.answer_input(value)

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        """An artifact with its bytes. Raises NotFound, StoreUnavailable."""
        artifact = await self._store.get_artifact(artifact_id)
        if artifact is None:
            raise NotFound
        return artifact

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def create_session(self, asked: SessionRequest) -> SessionView:
        """Make a session. Raises Conflict when there is one with its id, TooManyRequests, Unavailable."""
        self._check(asked.language, asked.variables)
        session: LiveSession = await asyncio.shield(self._track(self._sessions.create(asked)))
        return session.view()

    def list_sessions(self, tenant: TenantId) -> list[SessionView]:
        """A tenant's sessions, oldest first."""
        return [session.view() for session in self._sessions.of_tenant(tenant)]

    def get_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        """One of them. Raises NotFound, as all that follow do."""
        return self._sessions.get(tenant, session_id).view()

    async def renew_session(
        self, tenant: TenantId, session_id: SessionId, *, idle_timeout_s: float | None, max_lifetime_s: float | None
    ) -> SessionView:
        """Start its idle time anew, and change the time-outs that are given."""
        session = self._sessions.get(tenant, session_id)
        await session.renew(idle_timeout_s, max_lifetime_s)
        return session.view()

    async def delete_session(self, tenant: TenantId, session_id: SessionId) -> None:
        """End it; what runs in it is cancelled."""
        await asyncio.shield(
            self._track(self._sessions.delete(tenant, session_id, "The session was deleted before this had ended."))
        )

    async def interrupt_session(self, tenant: TenantId, session_id: SessionId) -> None:
        """Interrupt what runs in it, as Ctrl-C would."""
        self._sessions.get(tenant, session_id).interrupt()

    async def restart_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        """Give it a fresh kernel; files stay. What runs is cancelled, what waits goes on afterwards."""
        session = self._sessions.get(tenant, session_id)
        await asyncio.shield(self._track(session.restart()))
        return session.view()

    async def session_runs(
        self, tenant: TenantId, session_id: SessionId
    ) -> AsyncIterator[tuple[RunRecord, Sequence[Event]]]:
        """Its ended runs with all their events, oldest first."""
        created_at = self._sessions.get(tenant, session_id).record.created_at
        found: list[RunSummary] = []
        while page := await self._store.list_runs(
            RunQuery(
                tenant,
                _EVENTS_PER_PAGE,
                session_id=session_id,
                created_from=created_at,
                before_number=found[-1].number if found else None,
            )
        ):
            found += page
        for summary in reversed(found):
            record = await self._store.get_run(summary.run_id)
            if record is not None and record.result is not None:
                yield record, await self._runs.events(summary.run_id)

    async def session_files(self, tenant: TenantId, session_id: SessionId) -> KernelFiles:
        """The files below its working directory. Raises Unavailable when its sandbox is out of reach."""
        return await self._sessions.get(tenant, session_id).files()

    # --- beginning a run ----------------------------------------------------------------------------------------------

    def _check(self, language: str, variables: Mapping[str, Any]) -> None:
        if self._draining:
            raise Draining
        if language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise UnsupportedLanguage(f"The language {language!r} is not configured here; there is: {known}.")
        if variables and not can_set(self._languages[language]):
            raise InvalidRequest(f"`variables` cannot be set in the language {language!r}: write them as code.")

    async def _begin(self, request: RunRequest) -> RunId:
        if request.idempotency_key is not None:
            # Before a kernel is taken; that nobody else is about to add the same is seen to by `add_run`.
            existing = await self._store.find_run(request.tenant, request.idempotency_key)
            if existing is not None:
                return self._same_request(existing, request)
        if request.session_id is None:
            return await self._begin_alone(request)
        async with self._sessions.turn(request.tenant, request.session_id):
            return await self._begin_in_session(request, request.session_id)

    async def _begin_alone(self, request: RunRequest) -> RunId:
        kernel = await self._supply.claim(self._languages[request.language], _CLAIM_TIMEOUT_S)
        run = self._make_run(request, kernel)
        try:
            existing = await self._add(run)
        except BaseException:
            self._supply.give_back(kernel)
            raise
        if existing is not None:
            self._supply.give_back(kernel)
            return self._same_request(existing, request)
        live = self._runs.add(LiveRun(run, self._limits, self._store, self._clock))
        self._single.begin(live, kernel)
        return run.run_id

    async def _begin_in_session(self, request: RunRequest, session_id: SessionId) -> RunId:
        session = await self._sessions.get_or_create(request.tenant, session_id, request.language)
        if session.runs() > self._limits.queue:
            raise TooManyRequests("This session's queue is full: try again once some of its runs have ended.")
        kernel = None if session.runs() else await session.ensure_kernel()
        run = self._make_run(request, kernel)
        existing = await self._add(run)
        if existing is not None:
            return self._same_request(existing, request)
        session.enqueue(self._runs.add(LiveRun(run, self._limits, self._store, self._clock)))
        return run.run_id

    async def _add(self, run: Run) -> RunRecord | None:
        """Record a run. One that the store did not answer for is not run, and must not turn up there later."""
        try:
            return await self._store.add_run(run)
        except StoreUnavailable:
            self._disowned.add(run.run_id)
            self._track(self._withdraw(run.run_id))
            raise

    async def _withdraw(self, run_id: RunId) -> None:
        """Twice: a database that hung, and goes on, may take the run in after it has been asked to remove it."""
        for pause_s in _WITHDRAWAL_PAUSES_S:
            while True:
                await asyncio.sleep(pause_s)
                with suppress(StoreUnavailable):
                    await self._store.withdraw_run(run_id)
                    break
        self._disowned.discard(run_id)

    def _make_run(self, request: RunRequest, kernel: Kernel | None) -> Run:
        now = self._clock.now()
        return Run(
            run_id=RunId(str(uuid4())),
            tenant=request.tenant,
            gateway_id=self._gateway_id,
            language=request.language,
            code=request.code,
            variables=request.variables,
            timeout_s=request.timeout_s,
            created_at=now,
            kernel_id=kernel.kernel_id if kernel is not None else None,
            started_at=now if kernel is not None else None,
            session_id=request.session_id,
            allow_stdin=request.allow_stdin,
            idempotency_key=request.idempotency_key,
            request_sha256=request.sha256() if request.idempotency_key is not None else None,
        )

    def _track(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin `work`, which is among the tasks until it ends."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _same_request(self, existing: RunRecord, request: RunRequest) -> RunId:
        """The run that has the key already. Raises Conflict when it was asked something else."""
        if existing.run.run_id in self._disowned:
            raise StoreUnavailable
        if existing.run.request_sha256 != request.sha256():
            raise Conflict("This Idempotency-Key was used with another request: use a new key for a new request.")
        return existing.run.run_id


def _new_artifact_id() -> ArtifactId:
    return ArtifactId(str(uuid4()))
