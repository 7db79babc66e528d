"""What one MCP client works in: a session for each language, made at the first call and ended with the conversation.

A client of the 2026 protocol over HTTP has no conversation that the server knows of: it names the session in each call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass

import anyio
from mcp.types import Resource

from gateway.client import AsyncClient, AsyncSession, ClientError, NotFound, RunResult

_STOP_S = 10.0
_END_S = 5.0
_LINKS_KEPT = 100
_LINE_CHARACTERS = 200

Connected = Callable[[], Awaitable[AsyncClient]]
OnOutput = Callable[[int, str], Awaitable[None]]
"""Called with how often it was called, and the last line of output."""


@dataclass(frozen=True, slots=True)
class Made:
    """An image or file that a run made, without its content."""

    content_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that has ended. `made` says more of what is in the result's `images` and `files`.

    `found_nothing` says that the session had none of the variables that the client may believe in.
    """

    result: RunResult[Awaitable[bytes]]
    made: dict[str, Made]
    found_nothing: bool


class Conversation:
    """The mutable state is the sessions, by language, the one that was used last, and what the runs have made.

    So are those that are known to be `_fresh`, because they were made or reset and nothing has run there since.

    All methods raise ClientError, and CellblockError where a gateway had to be started and could not be.
    """

    def __init__(self, connected: Connected, *, is_lasting: bool) -> None:
        """`is_lasting` says that there will be further calls here, for which a session can be kept."""
        self.client = connected
        self.is_lasting = is_lasting
        self.links: deque[Resource] = deque(maxlen=_LINKS_KEPT)
        self._sessions: dict[str | None, AsyncSession] = {}
        self._latest: str | None = None
        self._fresh: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._opening = asyncio.Lock()

    async def run(
        self, code: str, on_output: OnOutput, *, session_id: str | None, language: str | None, timeout_s: float | None
    ) -> Ran:
        """Run code to its end; one that is cancelled here is cancelled there."""
        async with AsyncExitStack() as stack:
            if self.is_lasting:
                await stack.enter_async_context(self._one_at_a_time)
            session = await self.session(session_id, language)
            client = await self.client()
            run_id: str | None = None
            made: dict[str, Made] = {}
            outputs = 0
            # The language counts where the session has expired, and is made anew.
            stream = session.stream(code, language=language, timeout=timeout_s)
            try:
                async with aclosing(stream) as events:
                    async for event in events:
                        run_id, fields = event.run_id, event.fields
                        if event.type in ("stdout", "stderr") and (text := fields["text"].rstrip()):
                            outputs += 1
                            await on_output(outputs, text.rpartition("\n")[2][-_LINE_CHARACTERS:])
                        elif event.type in ("image", "file"):
                            made[fields["name"]] = Made(fields["content_type"], fields["bytes"])
                        elif event.type == "end":
                            return self._ran(client.result_of(event), made)
            except asyncio.CancelledError:
                with anyio.move_on_after(_STOP_S, shield=True), suppress(ClientError):
                    await self._stop(client, session, run_id)
                raise
            raise AssertionError("Streams end with an `end`, or raise.")

    def _ran(self, result: RunResult[Awaitable[bytes]], made: dict[str, Made]) -> Ran:
        session_id = result.session_id or ""
        found_nothing = result.session_created and session_id not in self._fresh
        self._fresh.discard(session_id)
        return Ran(result, made, found_nothing)

    async def _stop(self, client: AsyncClient, session: AsyncSession, run_id: str | None) -> None:
        if run_id is None and self.is_lasting:  # nobody else runs anything in this session
            latest = await client.runs(session_id=session.session_id, limit=1)
            run_id = latest[0].run_id if latest and latest[0].finished_at is None else None
        if run_id is not None:
            await client.cancel(run_id)

    async def session(self, session_id: str | None = None, language: str | None = None) -> AsyncSession:
        """The session that is named, else that of the conversation, made where there is none."""
        client = await self.client()
        if session_id is not None:
            return await client.session(session_id, language=language)
        if not self.is_lasting:
            return await self._new(client, language)
        self._latest = language
        async with self._opening:
            if language not in self._sessions:
                self._sessions[language] = await self._new(client, language)
        return self._sessions[language]

    async def _new(self, client: AsyncClient, language: str | None) -> AsyncSession:
        session = await client.session(language=language)
        self._fresh.add(session.session_id)
        return session

    async def files_session(self, session_id: str | None) -> AsyncSession:
        """The session whose files are meant: the one in which code ran last. One that has expired is replaced."""
        session = await self.session(session_id, self._latest)
        if session_id is None and self.is_lasting:
            try:
                await session.refresh()
            except NotFound:
                self._sessions.pop(self._latest, None)
                return await self.session(None, self._latest)
        return session

    async def reset(self, session_id: str | None) -> int:
        """Start fresh kernels; returns how many."""
        sessions: Iterable[AsyncSession] = list(self._sessions.values())
        if session_id is not None:
            sessions = [await self.session(session_id)]
        count = 0
        for session in sessions:
            with suppress(NotFound):  # it has expired, and the next run makes a new one
                await session.restart()
                self._fresh.add(session.session_id)
                count += 1
        return count

    async def end(self) -> None:
        """End the sessions. What cannot be ended now will end after its idle time."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        with anyio.move_on_after(_END_S, shield=True):
            for session in sessions:
                with suppress(ClientError):
                    await session.end()
