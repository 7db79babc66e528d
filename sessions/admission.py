"""Admits runs: checks a request, finds the run that has its `Idempotency-Key` already, claims a kernel, records it.

A run that is recorded is run, or withdrawn from the store. While the store is out of reach, whether a run is recorded
may be unknown. How runs are run is not decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from itertools import repeat
from typing import Any
from uuid import uuid4

from sessions.concurrency import BackgroundTasks, KeyedLock, retry
from sessions.errors import Conflict, Gone, InvalidRequest, StoreUnavailable, TooManyRequests, UnsupportedLanguage
from sessions.kernels.kernel import Kernel
from sessions.languages import traits_of
from sessions.measures.stages import RunTrace, Stage
from sessions.model import Run, RunId, RunRecord, RunRequest, SessionId, TenantId
from sessions.runs.live_run import LiveRun
from sessions.session.registry import Registry
from sessions.wiring import Wiring

_MAX_SOURCE_BYTES = 64 << 20
"""A tenant whose runs hold more code, variables and files than this may not begin another."""

_MOST_CELLS = 1000
"""How many cells may wait in one session: a notebook requests all its cells at once."""

_WITHDRAWALS = 2


class Admission:
    """The mutable state: runs that are being recorded, runs that are being withdrawn, a lock per `Idempotency-Key`.

    The runs that are withdrawn were refused, and may be on record all the same.
    """

    def __init__(self, wiring: Wiring, sessions: Registry) -> None:
        self._wiring = wiring
        self._sessions = sessions
        self._recording: set[RunId] = set()
        self._withdrawing: set[RunId] = set()
        self._tasks = BackgroundTasks("admission")
        self._locks: KeyedLock[tuple[TenantId, str]] = KeyedLock()

    def __repr__(self) -> str:
        return f"<Admission {len(self._recording)} being recorded, {len(self._withdrawing)} being withdrawn>"

    def check(self, language: str, variables: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Raise UnsupportedLanguage, InvalidRequest."""
        if language not in self._wiring.kernel_names:
            known = ", ".join(sorted(self._wiring.kernel_names))
            raise UnsupportedLanguage(f"The language {language!r} is not configured here; there is: {known}.")
        traits = traits_of(self._wiring.kernel_names[language])
        if variables and traits.variables is None:
            raise InvalidRequest(f"`variables` cannot be set in the language {language!r}: write them as code.")
        if env and not traits.sets_env:
            raise InvalidRequest(f"`env` cannot be set in the language {language!r}: leave it out.")

    async def begin(self, request: RunRequest) -> RunId:
        """Admit a run, and return its id; or that of the run that has the same `idempotency_key` already.

        Raises Conflict, Gone, TooManyRequests, and Unavailable in its kinds; nothing was run then.
        """
        trace = RunTrace(self._wiring.environment.stages)
        if request.idempotency_key is None:
            return await self._begin(request, trace)
        # One at a time, so that only the first claims a kernel; between gateways `add_run` decides.
        async with self._locks.hold((request.tenant, request.idempotency_key)):
            existing = await self._wiring.environment.store.find_run(request.tenant, request.idempotency_key)
            if existing is not None and not await self._withdraw_ghost(existing):
                return _same_request(existing, request)
            return await self._begin(request, trace)

    async def _begin(self, request: RunRequest, trace: RunTrace) -> RunId:
        if self._wiring.active_runs.source_bytes(request.tenant) > _MAX_SOURCE_BYTES:
            raise TooManyRequests(
                "Too much code and data waits to be run: try again once some of your runs have ended."
            )
        if request.session_id is None:
            return await self._begin_stateless(request, trace)
        async with self._sessions.lock(request.tenant, request.session_id):
            return await self._begin_in_session(request, request.session_id, trace)

    async def stop(self) -> None:
        """Withdraw once more the runs that were refused and may be on record: the next gateway would run them."""
        withdrawing = list(self._withdrawing)
        await self._tasks.cancel()
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(self._wiring.environment.timeouts.last_withdrawals_s):
                for run_id in withdrawing:
                    await self._wiring.environment.store.withdraw_run(run_id)

    async def _begin_stateless(self, request: RunRequest, trace: RunTrace) -> RunId:
        trace.end(Stage.ADMISSION)
        kernel = await self._wiring.kernel_pool.claim(self._wiring.kernel_names[request.language])
        trace.end(Stage.CLAIM)
        try:
            recorded = await self._record(self._make_run(request, kernel), trace)
        except BaseException:
            # Not back into the pool: it may be on record as this run's.
            self._wiring.kernel_pool.discard(kernel)
            raise
        if isinstance(recorded, RunRecord):
            self._wiring.kernel_pool.release(kernel)
            return _same_request(recorded, request)
        self._wiring.stateless_runs.begin(recorded, kernel)
        return recorded.run_id

    async def _begin_in_session(self, request: RunRequest, session_id: SessionId, trace: RunTrace) -> RunId:
        is_cell = request.jupyter is not None
        if is_cell:
            # A cell does not bring back a kernel that is shut down.
            session = self._sessions.get(request.tenant, session_id)
        else:
            session = await self._sessions.get_or_create(request.tenant, session_id, request.language)
        if session.runs() > (_MOST_CELLS if is_cell else self._wiring.environment.limits.queue):
            raise TooManyRequests("This session's queue is full: try again once some of its runs have ended.")
        trace.end(Stage.ADMISSION)
        kernel = await session.kernel_for_next()
        trace.end(Stage.CLAIM)
        recorded = await self._record(self._make_run(request, kernel), trace)
        if isinstance(recorded, RunRecord):
            return _same_request(recorded, request)
        session.enqueue(recorded)
        return recorded.run_id

    async def _record(self, run: Run, trace: RunTrace) -> LiveRun | RunRecord:
        """Record a run and make it live; or return the run that has its key."""
        self._recording.add(run.run_id)
        try:
            existing = await self._wiring.environment.store.add_run(run)
            if existing is not None:
                return existing
            trace.end(Stage.RECORD)
            return self._wiring.active_runs.add(LiveRun(run, self._wiring.environment, trace))
        except BaseException:
            # It may be on record all the same, or still come to be.
            self._withdrawing.add(run.run_id)
            self._tasks.spawn(self._withdraw(run.run_id))
            raise
        finally:
            self._recording.discard(run.run_id)

    async def _withdraw_ghost(self, record: RunRecord) -> bool:
        """Whether this run was refused, and came to be recorded all the same. It is withdrawn: its key is free."""
        is_ours = record.run.gateway_id == self._wiring.environment.gateway_id and record.finished_at is None
        if not is_ours or record.run.run_id in self._recording or self._wiring.active_runs.knows(record.run.run_id):
            return False
        await self._wiring.environment.store.withdraw_run(record.run.run_id)
        return True

    async def _withdraw(self, run_id: RunId) -> None:
        """Remove it from the store; twice, since the write that adds it may still be on its way."""
        store, timeouts = self._wiring.environment.store, self._wiring.environment.timeouts
        try:
            for _ in range(_WITHDRAWALS):
                pauses = repeat(timeouts.withdrawal_retry_s)
                await retry(lambda: store.withdraw_run(run_id), on=StoreUnavailable, pauses=pauses)
                await asyncio.sleep(timeouts.withdrawal_pause_s)
        finally:
            self._withdrawing.discard(run_id)

    def _make_run(self, request: RunRequest, kernel: Kernel | None) -> Run:
        now = self._wiring.environment.clock.now()
        return Run(
            run_id=RunId(str(uuid4())),
            tenant=request.tenant,
            gateway_id=self._wiring.environment.gateway_id,
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
            jupyter=request.jupyter,
            inputs=request.inputs,
            traceparent=request.traceparent,
        )


def _same_request(existing: RunRecord, request: RunRequest) -> RunId:
    """The run that has the key already. Raises Conflict when its request was another, Gone when it was removed."""
    if existing.run.request_sha256 != request.sha256():
        raise Conflict("This Idempotency-Key was used with another request: use a new key for a new request.")
    if existing.expired_at is not None:
        raise Gone
    return existing.run.run_id
