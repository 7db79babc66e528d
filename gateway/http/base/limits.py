"""What the HTTP face bounds and counts, over all connections: bodies in memory, streams, notebooks, requests in flight.

It knows sizes and numbers. What a client is told beyond these errors, the handlers know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Protocol

from gateway.host.clock import SystemClock
from gateway.host.descriptors import MOST_CONNECTIONS
from gateway.http.base.bodies import BufferedBodies
from gateway.http.base.connections import Places
from gateway.http.base.request_tally import RequestTally
from sessions.concurrency import KeyedLock
from sessions.errors import Draining, TooManyRequests, Unavailable
from sessions.kernels.throttle import SharedTime
from sessions.model import TenantId

_LAST_EVENTS_S = 0.5
_GOODBYE_S = 1.0


@dataclass(frozen=True, slots=True)
class HttpBounds:
    """Time-outs and bounds of the HTTP face. No configuration sets them; tests do."""

    header_timeout_s: float = 30.0
    """How long a connection may be idle, and how long headers may take to arrive."""

    body_timeout_s: float = 60.0

    connections: int = MOST_CONNECTIONS
    """Further ones take the place of those that are silent or slow; where there is none, they are answered with 503."""

    drain_factor: int = 8
    """A body up to this many times the limit is read to its end, so that the client gets to see the 413."""

    buffered_bodies: int = 16
    """Request bodies of the largest allowed size that fit in memory at once; of smaller ones, more fit."""

    send_timeout_s: float = 120.0
    """A client that does not read its answer within this time loses its connection."""

    stall_s: float = 10.0
    """So does one that takes nothing of it for this long; with streams and WebSockets, where others need the memory."""

    answers_bytes: int = 128 << 20
    """Large answers together, while they are made and until they are taken."""

    answer_wait_s: float = 5.0
    """An answer waits this long for room among them; that of code that was just run, as long as a client may take."""

    message_timeout_s: float = 60.0
    """From the first byte of a WebSocket message that arrives in pieces to its last byte."""

    keep_alive_s: float = 15.0
    """After this much silence, a stream sends a comment line, which keeps proxies from closing the connection."""

    ping_s: float = 20.0
    """The time between WebSocket pings, and the time that the other end has to answer one."""

    silence_s: float = 900.0
    """A Jupyter client may read nothing, and answer no ping, for this long: an agent's, while its model thinks."""

    replay_retry_s: float = 1.0
    """The pause before a replay starts again after a failure of the database."""

    streams: int = 512
    streams_per_tenant: int = 128
    """Streams and WebSockets that may be open at once."""

    runs_per_socket: int = 32
    """Runs in flight per connection of `/runcode/ws`."""

    batch_patience_s: float = 90.0
    """An item of a batch that is refused because of the load is tried again for this long: three waits for a kernel."""

    notebooks: int = 2
    """Notebooks that are made at once, over all tenants. One may take half a gigabyte."""

    notebook_runs: int = 1000
    """A notebook holds this many of the newest runs; a text mentions the others."""

    notebook_shown_bytes: int = 64 << 20
    """The images of one notebook, and all its other outputs, may each take this much; a note replaces later ones."""

    notebook_source_bytes: int = 64 << 20

    @classmethod
    def within(cls, connections: int) -> HttpBounds:
        """Those of a server with so many connections: streams, which stay, may take up half of them."""
        usual = cls()
        return cls(
            connections=connections,
            streams=min(usual.streams, connections // 2),
            streams_per_tenant=min(usual.streams_per_tenant, max(1, connections // 8)),
        )


class HttpLimits:
    """One per server; `request_bytes` is `limits.request_bytes`, which all bodies are measured by.

    The mutable state is that of the counters, which tenants make a notebook, and what reading the messages of Jupyter
    clients has used of the gateway's time.
    """

    def __init__(self, request_bytes: int, bounds: HttpBounds) -> None:
        self.bounds = bounds
        self.bodies = BufferedBodies(request_bytes, bounds)
        self.streams = Streams(bounds)
        self.in_flight = InFlight()
        self.requests = RequestTally()
        self.places = Places(bounds.connections, SystemClock().monotonic)
        self.client_time = SharedTime(SystemClock())
        self._tenants: KeyedLock[TenantId] = KeyedLock()
        self._notebooks = asyncio.Semaphore(bounds.notebooks)

    @asynccontextmanager
    async def notebook(self, tenant: TenantId) -> AsyncIterator[None]:
        """Wait until this tenant may make a notebook: one per tenant, a few in all.

        A tenant that waits for its own earlier notebook takes up no place of the others.
        """
        async with self._tenants.hold(tenant), self._notebooks:
            yield


class InFlight:
    """Counts what has not ended: requests without an answer, or streams."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __repr__(self) -> str:
        return f"<InFlight {self.count}>"

    def add(self) -> None:
        self.count += 1
        self._none.clear()

    def remove(self) -> None:
        self.count -= 1
        if self.count == 0:
            self._none.set()

    async def wait_for_none(self, timeout_s: float | None = None) -> None:
        """Return once all have ended, or after `timeout_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), timeout_s)


class Stream(Protocol):
    """An answer that lasts as long as a run or a connection does. It is not counted as in flight."""

    tenant: TenantId
    ends_early: ClassVar[bool]
    """Whether it ends as soon as this gateway is told to stop, rather than after the last run has ended."""

    def end_stream(self) -> None:
        """End it as politely as its protocol allows."""
        ...

    def disconnect(self) -> None:
        """Close its connection."""
        ...

    def is_let_in(self) -> bool:
        """Whether its client would be let in now, as the same tenant."""
        ...

    def turn_away(self) -> None:
        """End it because its client would not be let in."""
        ...


class Streams:
    """The open streams of one server. The mutable state is the set of them, and whether the server is closing."""

    def __init__(self, bounds: HttpBounds) -> None:
        self._bounds = bounds
        self._open: set[Stream] = set()
        self._in_flight = InFlight()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Streams {len(self._open)}{' closed' if self._is_closed else ''}>"

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._open))

    @contextmanager
    def holding(self, stream: Stream) -> Iterator[None]:
        """Count a stream for the length of the block. Raises TooManyRequests, Unavailable and Draining."""
        self._check_room(stream.tenant)
        self._open.add(stream)
        self._in_flight.add()
        try:
            yield
        finally:
            self._open.discard(stream)
            self._in_flight.remove()

    def _check_room(self, tenant: TenantId) -> None:
        if self._is_closed:
            raise Draining
        if len(self._open) >= self._bounds.streams:
            raise Unavailable("Too many streams and WebSockets are open here: try again in a moment.")
        per_tenant = self._bounds.streams_per_tenant
        if sum(stream.tenant == tenant for stream in self._open) >= per_tenant:
            raise TooManyRequests(f"You have {per_tenant} streams and WebSockets open: close one, or try again later.")

    def end_early(self) -> None:
        """End the streams whose clients need not wait for the last run: they reconnect, to the next gateway."""
        for stream in list(self._open):
            if stream.ends_early:
                stream.end_stream()

    def end_refused(self) -> None:
        """End the streams whose tokens are none any more; their runs go on."""
        for stream in list(self._open):
            if not stream.is_let_in():
                stream.turn_away()

    async def close_all(self) -> None:
        """Refuse new streams and end the open ones; their runs go on. Takes two seconds at most.

        Events that have just been committed are still sent.
        """
        self._is_closed = True
        await self._in_flight.wait_for_none(_LAST_EVENTS_S)
        for stream in list(self._open):
            stream.end_stream()
        await self._in_flight.wait_for_none(_GOODBYE_S)
        for stream in list(self._open):
            stream.disconnect()
