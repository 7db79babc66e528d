"""The one use case that every face calls: run code, in a session or in a kernel of its own, and lose nothing of it.

A run is a short pipeline: admit and record it (admission.py), run it on a kernel (runs/executor.py), fold the kernel's
messages (output/fold.py), commit the end, answer (runs/active_runs.py). Runs outside of sessions are driven by
runs/stateless_runs.py, runs in sessions by session/live_session.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from sessions.admission import Admission
from sessions.concurrency import BackgroundTasks
from sessions.errors import Conflict, Draining, Gone, NotFound
from sessions.figures import Figures
from sessions.jupyter.client import ClientConnection, JupyterClients
from sessions.kernels.files import SupervisorFiles
from sessions.kernels.health import HealthCheck
from sessions.measures.stages import Stages
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactRef,
    Event,
    JupyterSession,
    JupyterSessionId,
    Progress,
    Result,
    RunId,
    RunQuery,
    RunRecord,
    RunRequest,
    RunStatus,
    RunSummary,
    SessionId,
    SessionRequest,
    SessionView,
    TenantId,
)
from sessions.output.fold import RunFold
from sessions.recovery import recover
from sessions.runs.live_run import Stop
from sessions.session.registry import Registry
from sessions.settings import SessionLimits
from sessions.wiring import Wiring

_RUNS_PER_PAGE = 500

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether code can run now; `reasons` are sentences that say why not. `warm` counts the kernels that are ready.

    `warnings` say what is not as it should be, whether or not code can run.
    """

    ready: bool
    reasons: tuple[str, ...]
    warm: int
    engine: str
    warnings: tuple[str, ...] = ()


class Service:
    """Runs and sessions.

    Its own mutable state: the tasks that callers wait for, whether the store answers, and whether it is draining.
    """

    def __init__(self, wiring: Wiring, session_limits: SessionLimits) -> None:
        self._wiring = wiring
        self._environment = wiring.environment
        self._store = wiring.environment.store
        self._runs = wiring.active_runs
        self._kernel_pool = wiring.kernel_pool
        self._sessions = Registry(wiring, session_limits)
        self._admission = Admission(wiring, self._sessions)
        self._jupyter_clients = JupyterClients(wiring, self._sessions, self.begin)
        self._tasks = BackgroundTasks("service")
        self._draining = False
        self._has_recovered = False
        self._store_watch = HealthCheck("database", self._store.ping)
        self._health: asyncio.Task[None] | None = None
        self.figures = Figures(wiring, self._sessions, self._store_watch)

    @property
    def stages(self) -> Stages:
        """How long the stages of its runs have taken."""
        return self._environment.stages

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what an earlier gateway on the same data left, then start to warm kernels up."""
        await recover(self._wiring, self._sessions)
        self._has_recovered = True
        self._kernel_pool.start()
        self._sessions.start()
        self._health = asyncio.ensure_future(self._store_watch.poll(self._environment.timeouts.store_check_pause_s))

    async def drain(self, timeout_s: float) -> None:
        """Admit no more runs, and wait for those under way, for `timeout_s` at most."""
        self._draining = True
        self._kernel_pool.stop_refilling()
        until_s = asyncio.get_running_loop().time() + timeout_s
        unfinished = self._unfinished()
        if unfinished:
            log.info("draining", runs=len(unfinished))
        # Again, for what was being admitted in the moment of the signal has become a run.
        while unfinished and (left_s := until_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(unfinished, timeout=left_s)
            unfinished = self._unfinished()

    def _unfinished(self) -> set[asyncio.Future[Any]]:
        """What callers wait for: runs, and what is being admitted."""
        either = {*(live.answer for live in self._runs), *self._tasks}
        return {waited_for for waited_for in either if not waited_for.done()}

    async def close(self) -> None:
        """Hand over sessions, and runs that have not ended, to the next gateway; remove all other containers.

        The supervisors wait for that gateway, and end by themselves when none comes. The store is not closed.
        """
        self._draining = True
        if self._health is not None:
            self._health.cancel()
        self._kernel_pool.stop_refilling()
        await self.figures.close()
        grace_s = self._environment.timeouts.stop_grace_s
        await self._tasks.wait(grace_s)  # most requests end by themselves, or soon fail
        await self._tasks.cancel(grace_s)  # to undo what they have done may take the database a while
        await self._admission.stop()
        kept = [*await self._sessions.hand_over(), *await self._wiring.stateless_runs.hand_over()]
        self._runs.stop()
        if not self._has_recovered:
            # Which kernels of the earlier gateway are needed is not known: all are kept.
            await self._kernel_pool.hand_over_all()
            return
        if kept:
            log.info("kernels_kept", count=len(kept), consequence="they end by themselves unless a gateway comes back")
        await self._kernel_pool.close(kept)

    def readiness(self) -> Readiness:
        """Whether code can run now."""
        reasons = self._kernel_pool.reasons_not_ready()
        if self._store_watch.failure is not None:
            reasons.append(self._store_watch.failure)
        if self._draining:
            reasons.append(str(Draining()))
        return Readiness(
            not reasons,
            tuple(reasons),
            self._kernel_pool.warm(),
            self._environment.provisioner.name,
            tuple(self._kernel_pool.warnings()),
        )

    # --- runs ---------------------------------------------------------------------------------------------------------

    async def run(self, request: RunRequest) -> Result:
        """Run code and return its answer once that is committed. Raises as `begin` and `result` do."""
        return await self.result(await self.begin(request))

    async def begin(self, request: RunRequest) -> RunId:
        """Admit a run, record it, and return its id; or that of the run that has the same `idempotency_key` already.

        Raises InvalidRequest, UnsupportedLanguage, Conflict, TooManyRequests, and the kinds of Unavailable: nothing was
        run then. The run goes on if the caller is cancelled.
        """
        await self._check(request.language, request.variables, {} if request.inputs is None else request.inputs.env)
        return await self._tasks.shielded(self._admission.begin(request))

    async def result(self, run_id: RunId) -> Result:
        """Wait for the end of a run. Raises NotFound; Gone when retention has removed it; EndNotStored.

        If it could not be run, raises why, which is one of the kinds of Unavailable.
        """
        return await self._runs.result(run_id)

    def follow(self, run_id: RunId, after: int) -> AsyncIterator[Sequence[Event]]:
        """The committed events above `after`, as they come, up to and with `end`.

        Ends without `end` when this gateway stops, or the run was never run. Raises NotFound, StoreUnavailable.
        """
        return self._runs.follow(run_id, after)

    async def get_run(self, tenant: TenantId, run_id: RunId) -> RunRecord:
        """A run. Until it ends, `result` is what it has made so far. Raises NotFound, Gone."""
        record = await self._store.get_run(run_id)
        if record is None or record.run.tenant != tenant:
            raise NotFound("There is no run by that id.")
        if record.expired_at is not None:
            raise Gone
        if record.result is not None:
            return record
        if (live := self._runs.get(run_id)) is not None:
            return replace(record, result=live.fold.result(record.status))
        fold = RunFold(run_id, self._environment.limits, record.run.session_id)
        progress = record.progress or Progress(0, None, {})
        fold.resume(await self._runs.events(run_id), progress.state.get("execution", {}))
        return replace(record, result=fold.result(record.status))

    async def run_bytes(self, run_id: RunId) -> int:
        """About how many bytes of text this run has, of those that a live one has so far. Raises StoreUnavailable."""
        if (live := self._runs.get(run_id)) is not None:
            return live.text_bytes + live.fold.size_bytes
        return await self._store.run_bytes(run_id)

    async def stored_bytes(self, run_id: RunId) -> int:
        """The same of a run that has to be read from the store; 0 for a live one. Raises StoreUnavailable."""
        return 0 if self._runs.get(run_id) is not None else await self._store.run_bytes(run_id)

    async def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Runs, newest first."""
        return await self._store.list_runs(query)

    async def cancel(self, tenant: TenantId, run_id: RunId) -> None:
        """End a run as `cancelled`; one that has ended stays as it is. Raises NotFound, Conflict."""
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
        if live is None or live.kernel is None or live.concluded.done():
            raise Conflict("This run is not running: there is nothing to interrupt.")
        live.interrupt()

    async def answer_input(self, tenant: TenantId, run_id: RunId, value: str) -> None:
        """Answer the `input()` in which a run waits. Raises NotFound, Conflict when it does not wait in one."""
        live = await self._runs.own(tenant, run_id)
        if live is None or live.kernel is None or not live.awaits_input:
            raise Conflict("This run does not wait for input.")
        live.kernel.answer_input(value)
        live.fold.awaits_input = False

    def waits_for_input(self, run_id: RunId) -> bool:
        """Whether a run of this gateway waits in `input()` now."""
        live = self._runs.get(run_id)
        return live is not None and live.awaits_input

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        """An artifact with its bytes. Raises NotFound, StoreUnavailable."""
        artifact = await self._store.get_artifact(artifact_id)
        if artifact is None:
            raise NotFound
        return artifact

    async def artifact_ref(self, artifact_id: ArtifactId) -> ArtifactRef:
        """An artifact without its bytes. Raises NotFound, StoreUnavailable."""
        ref = await self._store.find_artifact(artifact_id)
        if ref is None:
            raise NotFound
        return ref

    async def artifact_piece(self, artifact_id: ArtifactId, offset: int, size_bytes: int) -> bytes:
        """Some of its bytes; fewer at its end, or where retention has removed it. Raises StoreUnavailable."""
        return await self._store.read_artifact(artifact_id, offset, size_bytes)

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def create_session(self, asked: SessionRequest) -> SessionView:
        """Make a session. Raises Conflict when there is one with its id, TooManyRequests, Unavailable.

        And what keeps one of its files from being written: InvalidRequest, TooLarge.
        """
        await self._check(asked.language, asked.variables)
        session = await self._tasks.shielded(self._sessions.create(asked))
        return self._jupyter_clients.view(session)

    def list_sessions(self, tenant: TenantId) -> list[SessionView]:
        """A tenant's sessions, oldest first."""
        return [self._jupyter_clients.view(session) for session in self._sessions.of_tenant(tenant)]

    def get_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        """One of them. Raises NotFound, as all that follow do."""
        return self._jupyter_clients.view(self._sessions.get(tenant, session_id))

    def session_of_kernel(self, tenant: TenantId, kernel_id: str) -> SessionView:
        """The session of this public kernel id, or of this `session_id`."""
        session = self._sessions.find_kernel(tenant, kernel_id)
        if session is None:
            raise NotFound("There is no kernel by that id.")
        return self._jupyter_clients.view(session)

    async def put_jupyter_session(
        self, tenant: TenantId, session_id: SessionId, jupyter: JupyterSession
    ) -> SessionView:
        """Record one of its Jupyter sessions, new or changed. Raises TooManyRequests."""
        session = self._sessions.get(tenant, session_id)
        await session.put_jupyter(jupyter)
        return self._jupyter_clients.view(session)

    async def remove_jupyter_session(
        self, tenant: TenantId, session_id: SessionId, jupyter_id: JupyterSessionId
    ) -> None:
        """Have it no longer have this Jupyter session."""
        await self._sessions.get(tenant, session_id).remove_jupyter(jupyter_id)

    async def renew_session(
        self, tenant: TenantId, session_id: SessionId, *, idle_timeout_s: float | None, max_lifetime_s: float | None
    ) -> SessionView:
        """Restart its idle time, and change the time-outs that are given."""
        session = self._sessions.get(tenant, session_id)
        await session.renew(idle_timeout_s, max_lifetime_s)
        return self._jupyter_clients.view(session)

    async def delete_session(self, tenant: TenantId, session_id: SessionId) -> None:
        """End it; its runs are cancelled."""
        reason = "The session was deleted before this had ended."
        await self._tasks.shielded(self._sessions.delete(tenant, session_id, reason))

    async def interrupt_session(self, tenant: TenantId, session_id: SessionId) -> None:
        """Interrupt what runs in it, as Ctrl-C would."""
        self._jupyter_clients.interrupt(self._sessions.get(tenant, session_id))

    async def restart_session(self, tenant: TenantId, session_id: SessionId) -> SessionView:
        """Start a fresh kernel process; files stay. The run at work is cancelled; those that wait run afterwards."""
        session = self._sessions.get(tenant, session_id)
        await self._tasks.shielded(session.restart())
        return self._jupyter_clients.view(session)

    async def session_runs(self, tenant: TenantId, session_id: SessionId, newest: int) -> list[RunSummary]:
        """The `newest` of its ended runs, oldest first."""
        created_at = self._sessions.get(tenant, session_id).record.created_at
        ended: list[RunSummary] = []
        before: int | None = None
        while len(ended) < newest:
            query = RunQuery(
                tenant, _RUNS_PER_PAGE, session_id=session_id, created_from=created_at, before_number=before
            )
            page = await self._store.list_runs(query)
            if not page:
                break
            ended += [summary for summary in page if summary.status.is_final()]
            before = page[-1].number
        return ended[:newest][::-1]

    async def get_events(self, tenant: TenantId, run_id: RunId) -> tuple[RunRecord, Sequence[Event]]:
        """A run with all that is committed of its events. Raises as `get_run` does."""
        return await self.get_run(tenant, run_id), await self._runs.events(run_id)

    async def attach(
        self, tenant: TenantId, session_id: SessionId, client: str | None, *, traceparent: str | None = None
    ) -> ClientConnection:
        """Connect a Jupyter client; a name in `client` lets it reconnect as the same. Raises TooManyRequests.

        Its cells belong to the trace of `traceparent`.
        """
        if self._draining:
            raise Draining
        return await self._jupyter_clients.attach(self._sessions.get(tenant, session_id), client, traceparent)

    async def session_files(self, tenant: TenantId, session_id: SessionId) -> SupervisorFiles:
        """The files below its working directory. Raises Unavailable when its sandbox is out of reach."""
        return await self._sessions.get(tenant, session_id).files()

    async def _check(self, language: str, variables: Mapping[str, Any], env: Mapping[str, str] | None = None) -> None:
        if self._draining:
            raise Draining
        self._admission.check(language, variables, env or {})
        if self._store_watch.failure is not None:
            await self._store.ping()  # raises before a kernel is claimed in vain
