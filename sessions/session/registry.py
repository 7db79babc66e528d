"""The sessions of this gateway: makes, finds, ends and restores them, and looks for those whose time has run out.

What happens inside a session is live_session.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from uuid import uuid4

import structlog

from sessions.concurrency import BackgroundTasks, KeyedLock
from sessions.errors import CellblockError, Conflict, NotFound, TooManyRequests, Unavailable
from sessions.kernels.kernel import Kernel
from sessions.model import KernelId, Session, SessionId, SessionNews, SessionRequest, TenantId
from sessions.runs.input_files import NotWritten, write_files
from sessions.runs.variables import set_variables
from sessions.session.live_session import LiveSession
from sessions.session.observer import SessionObserver
from sessions.settings import SessionLimits
from sessions.wiring import Wiring

_TAKEN_OVER = 1000

Key = tuple[TenantId, SessionId]

log = structlog.get_logger()


class Registry:
    """The mutable state: the live sessions, a lock for each, those that are ending, and the tasks that end them."""

    def __init__(self, wiring: Wiring, limits: SessionLimits) -> None:
        self._wiring = wiring
        self._limits = limits
        self._sessions: dict[Key, LiveSession] = {}
        self._observers: list[Callable[[LiveSession], SessionObserver]] = []
        self._locks: KeyedLock[Key] = KeyedLock()
        self._ending: set[LiveSession] = set()
        self._culled: set[LiveSession] = set()
        self._tasks = BackgroundTasks("registry")

    def __repr__(self) -> str:
        return f"<Registry {len(self._sessions)} sessions>"

    def observe_each(self, make_observer: Callable[[LiveSession], SessionObserver]) -> None:
        """Have each session that is made from now on observed by what `make_observer` returns."""
        self._observers.append(make_observer)

    def lock(self, tenant: TenantId, session_id: SessionId) -> AbstractAsyncContextManager[None]:
        """The lock that is held to make a session, to enqueue a run in it, or to end it."""
        return self._locks.hold((tenant, session_id))

    def get(self, tenant: TenantId, session_id: SessionId) -> LiveSession:
        """A tenant's session. Raises NotFound."""
        session = self.find(tenant, session_id)
        if session is None:
            raise NotFound("There is no session by that id.")
        return session

    def find(self, tenant: TenantId, session_id: SessionId) -> LiveSession | None:
        """A tenant's session, or None."""
        session = self._sessions.get((tenant, session_id))
        return None if session is None or session.is_over else session

    def find_kernel(self, tenant: TenantId, kernel_id: str) -> LiveSession | None:
        """A tenant's session by its public kernel id, or by its own id; or None."""
        session = self.find(tenant, SessionId(kernel_id))
        if session is not None:
            return session
        return next((one for one in self.of_tenant(tenant) if one.record.public_kernel_id == kernel_id), None)

    def of_tenant(self, tenant: TenantId) -> list[LiveSession]:
        """A tenant's sessions, oldest first."""
        sessions = [session for (owner, _), session in self._sessions.items() if owner == tenant]
        return sorted((session for session in sessions if not session.is_over), key=lambda one: one.record.created_at)

    def living(self) -> list[LiveSession]:
        """The sessions of all tenants."""
        return [session for session in self._sessions.values() if not session.is_over]

    # --- life of a session --------------------------------------------------------------------------------------------

    async def get_or_create(self, tenant: TenantId, session_id: SessionId, language: str) -> LiveSession:
        """The session with this id, or a new one, whose first run says that it is new. The caller holds its `lock`.

        Raises as `create` does.
        """
        session = self.find(tenant, session_id)
        if session is None:
            session = await self._make(
                SessionRequest(
                    tenant=tenant,
                    session_id=session_id,
                    language=language,
                    variables={},
                    idle_timeout_s=self._limits.idle_timeout_s,
                    max_lifetime_s=self._limits.max_lifetime_s,
                ),
                SessionNews.CREATED,
            )
        elif session.kernel_name != self._wiring.kernel_names[language]:  # a kernel may be several languages
            raise Conflict(f"This session runs {session.record.language}: use another session_id for {language}.")
        return session

    async def create(self, asked: SessionRequest) -> LiveSession:
        """Make a session, with a kernel that has the variables and the files.

        Raises Conflict when there is one with its id, TooManyRequests, Unavailable; InvalidRequest and TooLarge when a
        file cannot be written.
        """
        session_id = asked.session_id or SessionId(uuid4().hex)
        async with self.lock(asked.tenant, session_id):
            if self.find_kernel(asked.tenant, session_id) is not None:
                raise Conflict("There is a session with this id already: use it, delete it, or choose another id.")
            session = await self._make(asked, SessionNews.NONE, session_id)
            try:
                if asked.files or asked.variables:
                    await self._prepare(await session.ensure_kernel(), asked)
            except CellblockError:
                await self._end(session, "Its files could not be written, or its variables not be set.")
                raise
            return session

    async def _prepare(self, kernel: Kernel, asked: SessionRequest) -> None:
        timeout_s = self._wiring.environment.timeouts.variables_timeout_s
        if asked.files:
            try:
                async with asyncio.timeout(timeout_s):
                    await write_files(kernel.files, asked.files)
            except NotWritten as error:
                raise error.as_error() from error
            except TimeoutError:
                raise Unavailable("The session's files could not be written in time; try again.") from None
        if asked.variables:
            await set_variables(kernel, asked.variables, timeout_s)

    async def delete(self, tenant: TenantId, session_id: SessionId, reason: str) -> None:
        """End a session; returns when its last run has ended, or after a while. Raises NotFound, StoreUnavailable."""
        async with self.lock(tenant, session_id):
            ending = await self._end(self.get(tenant, session_id), reason)
        await asyncio.wait([ending], timeout=self._wiring.environment.timeouts.end_timeout_s)

    async def _make(self, asked: SessionRequest, news: SessionNews, session_id: SessionId | None = None) -> LiveSession:
        if len(self.of_tenant(asked.tenant)) >= self._limits.max_per_tenant:
            raise TooManyRequests(
                f"There are {self._limits.max_per_tenant} sessions already, which is as many as one tenant may have: "
                "delete one, or let one expire."
            )
        now = self._wiring.environment.clock.now()
        record = Session(
            tenant=asked.tenant,
            session_id=session_id or asked.session_id or SessionId(uuid4().hex),
            gateway_id=self._wiring.environment.gateway_id,
            language=asked.language,
            idle_timeout_s=asked.idle_timeout_s,
            max_lifetime_s=asked.max_lifetime_s,
            created_at=now,
            last_used_at=now,
            news=news,
            jupyter=() if asked.jupyter is None else (asked.jupyter,),
        )
        session = self._live(record)
        # Before anything is awaited: sessions that are being made count too.
        self._sessions[record.tenant, record.session_id] = session
        try:
            await self._add(record)
            await session.ensure_kernel()
        except BaseException:
            session.stop("The session could not be made.")
            self._sessions.pop((record.tenant, record.session_id), None)  # all are gone after a hand-over
            with suppress(CellblockError):
                await self._wiring.environment.store.remove_session(record)
            raise
        return session

    async def _add(self, record: Session) -> None:
        existing = await self._wiring.environment.store.add_session(record)
        if existing is None:
            return
        if existing.gateway_id != self._wiring.environment.gateway_id:
            raise Conflict("This session belongs to another gateway on the same database: ask that one.")
        # One of ours that has ended; that could not be recorded.
        await self._wiring.environment.store.remove_session(existing)
        await self._wiring.environment.store.add_session(record)

    async def _end(self, session: LiveSession, reason: str) -> asyncio.Task[None]:
        """End a session, whose id is free then. The task returned is done once its last run has ended."""
        record = session.record
        await self._wiring.environment.store.remove_session(record)
        session.stop(reason)
        self._sessions.pop((record.tenant, record.session_id), None)
        log.info("session_ended", session_id=record.session_id, reason=reason)
        self._ending.add(session)
        return self._tasks.spawn(self._finish(session))

    async def _finish(self, session: LiveSession) -> None:
        try:
            await session.wait_ended()
        finally:
            self._ending.discard(session)

    def _live(self, record: Session) -> LiveSession:
        session = LiveSession(record, self._wiring.kernel_names[record.language], self._wiring)
        for make_observer in self._observers:
            session.observers.add(make_observer(session))
        return session

    # --- life of the registry -----------------------------------------------------------------------------------------

    def restore(self, records: list[Session], kernels: Mapping[KernelId, Kernel]) -> None:
        """Take over the sessions of an earlier gateway; `kernels` are those that are still there."""
        for record in records:
            if record.language not in self._wiring.kernel_names:
                log.warning(
                    "session_dropped", session_id=record.session_id, reason="its language is configured no more"
                )
                continue
            # Above the version of any write of the earlier gateway that is still on its way.
            version, jupyter_version = record.version + _TAKEN_OVER, record.jupyter_version + _TAKEN_OVER
            session = self._live(replace(record, version=version, jupyter_version=jupyter_version))
            session.adopt(kernels.get(record.kernel_id) if record.kernel_id is not None else None)
            self._sessions[record.tenant, record.session_id] = session

    def start(self) -> None:
        """Start to end sessions whose time has run out."""
        self._tasks.spawn(self._cull())

    async def hand_over(self) -> list[Kernel]:
        """Leave all sessions to the next gateway; returns the kernels to keep."""
        sessions = [*self._sessions.values(), *self._ending]
        self._sessions.clear()
        await self._tasks.cancel()
        return [kernel for session in sessions if (kernel := await session.hand_over()) is not None]

    async def _cull(self) -> None:
        while True:
            for session in self._sessions.values():
                if (reason := session.has_expired()) is not None and session not in self._culled:
                    self._culled.add(session)
                    self._tasks.spawn(self._cull_one(session, reason))
            await asyncio.sleep(self._wiring.environment.timeouts.cull_pause_s)

    async def _cull_one(self, session: LiveSession, reason: str) -> None:
        record = session.record
        try:
            async with self.lock(record.tenant, record.session_id):
                if not session.is_over and session.has_expired() is not None:
                    await self._end(session, reason)
        except CellblockError as error:
            log.warning("session_not_ended", session_id=record.session_id, reason=str(error))
        except Exception:
            log.exception("session_not_ended", session_id=record.session_id)
        finally:
            self._culled.discard(session)
