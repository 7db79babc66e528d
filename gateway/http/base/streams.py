"""Answers that go on for as long as a run or a connection does: how many there may be, and how they end at shutdown.

Requests with one answer are not counted here, but by `context.InFlight`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar, Protocol

from sessions.errors import Draining, TooManyRequests, Unavailable
from sessions.model import TenantId

MAX_STREAMS = 512
MAX_STREAMS_PER_TENANT = 128
_LAST_EVENTS_S = 0.5
_GOODBYE_S = 1.0


class Stream(Protocol):
    """One of them."""

    tenant: TenantId
    ends_early: ClassVar[bool]
    """Whether it ends when this gateway is told to stop, rather than once what runs has ended."""

    def end_stream(self) -> None:
        """End it as politely as its protocol allows."""
        ...

    def disconnect(self) -> None:
        """Close its connection."""
        ...


class Streams:
    """Its state: those that are open, and whether all has come to its end."""

    def __init__(self) -> None:
        self._open: set[Stream] = set()
        self._none = asyncio.Event()
        self._none.set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Streams {len(self._open)}{' closed' if self._is_closed else ''}>"

    def enter(self, stream: Stream) -> None:
        """One more. Raises TooManyRequests, Unavailable and Draining."""
        if self._is_closed:
            raise Draining
        if len(self._open) >= MAX_STREAMS:
            raise Unavailable("Too many streams and WebSockets are open here: try again in a moment.")
        if sum(other.tenant == stream.tenant for other in self._open) >= MAX_STREAMS_PER_TENANT:
            raise TooManyRequests(
                f"You have {MAX_STREAMS_PER_TENANT} streams and WebSockets open: close one, or try again later."
            )
        self._open.add(stream)
        self._none.clear()

    def leave(self, stream: Stream) -> None:
        """One less."""
        self._open.discard(stream)
        if not self._open:
            self._none.set()

    @contextmanager
    def holding(self, stream: Stream) -> Iterator[None]:
        """Be one of them for a while. Raises as `enter` does."""
        self.enter(stream)
        try:
            yield
        finally:
            self.leave(stream)

    def end_early(self) -> None:
        """End those that would only find that nothing new is taken: their clients come back, to the next gateway."""
        for stream in list(self._open):
            if stream.ends_early:
                stream.end_stream()

    async def close_all(self) -> None:
        """Take no more and end those that are open; their runs go on. Takes two seconds at most.

        Events that have just been committed still go out.
        """
        self._is_closed = True
        await self._wait_for_none(_LAST_EVENTS_S)
        for stream in list(self._open):
            stream.end_stream()
        await self._wait_for_none(_GOODBYE_S)
        for stream in list(self._open):
            stream.disconnect()

    async def _wait_for_none(self, patience_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), patience_s)
