"""Taking runs on: checked, told apart from those that were taken on before, given to a session or a kernel, recorded.

A run that is recorded is run, or withdrawn from the record; whether the record was written may be unknown for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import structlog

from sessions.errors import Conflict, Gone, InvalidRequest, StoreUnavailable, TooManyRequests, UnsupportedLanguage
from sessions.kernels.kernel import Kernel
from sessions.kernels.kernel_pool import CLAIM_TIMEOUT_S
from sessions.model import Run, RunId, RunRecord, RunRequest, SessionId, TenantId
from sessions.runs.live_run import LiveRun
from sessions.runs.variables import can_set
from sessions.wiring import Parts

_MAX_SOURCE_BYTES = 64 << 20
"""When one tenant's runs hold more code and variables than this, they may not begin another."""

_MOST_CELLS = 1000
"""A notebook asks for all its cells at once, so that many may wait in one session."""

_WITHDRAWALS = 2
_LAST_WITHDRAWALS_S = 2.0
_BETWEEN_WITHDRAWALS_S = 10.0
_RETRY_S = 0.5

log = structlog.get_logger()


class Admission:
    """The state: the runs that are being recorded, the tasks that withdraw those of which that is unknown, and turns.

    A turn is taken by those who ask with the same `Idempotency-Key`.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._recording: set[RunId] = set()
        self._turns: WeakValueDictionary[tuple[TenantId, str], asyncio.Lock] = WeakValueDictionary()
        self._withdrawing: dict[asyncio.Task[None], RunId] = {}

    def __repr__(self) -> str:
        return f"<Admission {len(self._recording)} being recorded, {len(self._withdrawing)} being withdrawn>"

    def check(self, language: str, variables: Mapping[str, Any]) -> None:
        """Raise UnsupportedLanguage, InvalidRequest."""
        if language not in self._parts.kernel_names:
            known = ", ".join(sorted(self._parts.kernel_names))
            raise UnsupportedLanguage(f"The language {language!r} is not configured here; there is: {known}.")
        if variables and not can_set(self._parts.kernel_names[language]):
            raise InvalidRequest(f"`variables` cannot be set in the language {language!r}: write them as code.")

    async def begin(self, request: RunRequest) -> RunId:
        """Take a run on. Under an `idempotency_key` that is known: the run that has it.

        Raises Conflict, Gone, TooManyRequests, and Unavailable in its kinds; nothing was run then.
        """
        if request.idempotency_key is None:
            return await self._begin(request)
        # One after the other, so that only the first takes a kernel; between gateways `add_run` sees to it.
        turn = self._turns.setdefault((request.tenant, request.idempotency_key), asyncio.Lock())
        async with turn:
            existing = await self._parts.store.find_run(request.tenant, request.idempotency_key)
            if existing is not None and not await self._withdraw_ghost(existing):
                return _same_request(existing, request)
            return await self._begin(request)

    async def _begin(self, request: RunRequest) -> RunId:
        if self._parts.runs.source_bytes(request.tenant) > _MAX_SOURCE_BYTES:
            raise TooManyRequests(
                "Too much code and data waits to be run: try again once some of your runs have ended."
            )
        if request.session_id is None:
            return await self._begin_alone(request)
        async with self._parts.sessions.lock(request.tenant, request.session_id):
            return await self._begin_in_session(request, request.session_id)

    async def stop(self) -> None:
        """Remove once more what was refused and may be on record all the same: a later gateway would run it."""
        withdrawing = dict(self._withdrawing)
        for task in withdrawing:
            task.cancel()
        if withdrawing:
            await asyncio.wait(withdrawing)
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(_LAST_WITHDRAWALS_S):
                for run_id in withdrawing.values():
                    await self._parts.store.withdraw_run(run_id)

    async def _begin_alone(self, request: RunRequest) -> RunId:
        kernel = await self._parts.kernel_pool.claim(self._parts.kernel_names[request.language], CLAIM_TIMEOUT_S)
        try:
            recorded = await self._record(self._make_run(request, kernel))
        except BaseException:
            # Not back into the pool: a later gateway may find it on record as this run's.
            self._parts.kernel_pool.discard(kernel)
            raise
        if isinstance(recorded, RunRecord):
            self._parts.kernel_pool.release(kernel)
            return _same_request(recorded, request)
        self._parts.single.begin(recorded, kernel)
        return recorded.run_id

    async def _begin_in_session(self, request: RunRequest, session_id: SessionId) -> RunId:
        sessions, is_cell = self._parts.sessions, request.jupyter is not None
        if is_cell:
            session = sessions.get(request.tenant, session_id)  # a kernel that is shut down does not come back so
        else:
            session = await sessions.get_or_create(request.tenant, session_id, request.language)
        if session.runs() > (_MOST_CELLS if is_cell else self._parts.limits.queue):
            raise TooManyRequests("This session's queue is full: try again once some of its runs have ended.")
        kernel = None if session.runs() else await session.ensure_kernel()
        recorded = await self._record(self._make_run(request, kernel))
        if isinstance(recorded, RunRecord):
            return _same_request(recorded, request)
        session.enqueue(recorded)
        return recorded.run_id

    async def _record(self, run: Run) -> LiveRun | RunRecord:
        """Record a run, which lives from then on; or the one that has its key."""
        self._recording.add(run.run_id)
        try:
            existing = await self._parts.store.add_run(run)
            if existing is not None:
                return existing
            return self._parts.runs.add(LiveRun(run, self._parts.limits, self._parts.store, self._parts.clock))
        except BaseException:
            # It may be on record all the same, or come to be so, when the database has caught up.
            self._begin_to_withdraw(run.run_id)
            raise
        finally:
            self._recording.discard(run.run_id)

    async def _withdraw_ghost(self, record: RunRecord) -> bool:
        """Whether this is a run that was refused, and came to be recorded all the same: its key is free now."""
        is_ours = record.run.gateway_id == self._parts.gateway_id and record.finished_at is None
        if not is_ours or record.run.run_id in self._recording or self._parts.runs.knows(record.run.run_id):
            return False
        await self._parts.store.withdraw_run(record.run.run_id)
        return True

    async def _withdraw(self, run_id: RunId) -> None:
        """Remove it from the record; twice, since what has added it may still be on its way."""
        for _ in range(_WITHDRAWALS):
            while True:
                try:
                    await self._parts.store.withdraw_run(run_id)
                except StoreUnavailable:
                    await asyncio.sleep(_RETRY_S)
                else:
                    break
            await asyncio.sleep(_BETWEEN_WITHDRAWALS_S)

    def _make_run(self, request: RunRequest, kernel: Kernel | None) -> Run:
        now = self._parts.clock.now()
        return Run(
            run_id=RunId(str(uuid4())),
            tenant=request.tenant,
            gateway_id=self._parts.gateway_id,
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
        )

    def _begin_to_withdraw(self, run_id: RunId) -> None:
        task = asyncio.ensure_future(self._withdraw(run_id))
        self._withdrawing[task] = run_id
        task.add_done_callback(lambda done: self._withdrawing.pop(done, None))


def _same_request(existing: RunRecord, request: RunRequest) -> RunId:
    """The run that has the key already. Raises Conflict when it was asked something else, Gone when it was removed."""
    if existing.run.request_sha256 != request.sha256():
        raise Conflict("This Idempotency-Key was used with another request: use a new key for a new request.")
    if existing.expired_at is not None:
        raise Gone
    return existing.run.run_id
