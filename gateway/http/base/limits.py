"""What the HTTP face bounds and counts, over all connections: bodies in memory, streams, notebooks, requests in flight.

It knows sizes and numbers. What a client is told beyond these errors, the handlers know.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tornado.httputil import HTTPHeaders

from gateway.host.clock import SystemClock
from gateway.host.descriptors import MOST_CONNECTIONS
from gateway.http.base.connections import KEPT_FOR_OTHERS, Monotonic, Pace, Places
from gateway.http.base.request_tally import RequestTally
from sessions.concurrency import KeyedLock
from sessions.errors import Draining, TooManyRequests, Unavailable
from sessions.kernels.throttle import SharedTime
from sessions.model import TenantId

_LAST_EVENTS_S = 0.5
_GOODBYE_S = 1.0
_SMALL_PART = 160


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


# --- request bodies ---------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Arrival:
    """A body or message that is coming in: whose it is, how quickly, and how to drop it and release what it holds."""

    client: str
    pace: Pace
    drop: Callable[[], None]
    held_bytes: int = 0


class BufferedBodies:
    """Counts the bytes of request bodies and WebSocket messages that are in memory, over all connections.

    The large ones of one client may take seven eighths of what there is room for, so that its small ones still have
    some, and others too. Whoever is slow makes room for others. The mutable state: how many bytes there are, of each
    client, and which bodies are coming in.
    """

    def __init__(self, request_bytes: int, bounds: HttpBounds, monotonic: Monotonic | None = None) -> None:
        self.drained_bytes = bounds.drain_factor * request_bytes
        self._small_bytes = request_bytes // _SMALL_PART
        self.limit_bytes = bounds.buffered_bodies * request_bytes
        self._largest_bytes = self.limit_bytes - self.limit_bytes // KEPT_FOR_OTHERS
        self._monotonic = monotonic or SystemClock().monotonic
        self.size_bytes = 0
        self._of_client: Counter[str] = Counter()
        self._arrivals: dict[Arrival, None] = {}

    def __repr__(self) -> str:
        return f"<BufferedBodies {self.size_bytes}>"

    def reserve(self, size_bytes: int, client: str, arrival: Arrival | None = None) -> bool:
        """Count these bytes too; False, and nothing is counted, when there is no room for them."""
        is_small = size_bytes + (arrival.held_bytes if arrival is not None else 0) <= self._small_bytes
        while not is_small and self._of_client[client] + size_bytes > self._largest_bytes:
            if not self._drop_one(arrival, client):
                return False
        while self.size_bytes + size_bytes > self.limit_bytes:
            if not self._drop_one(arrival):
                return False
        self._count(size_bytes, client, arrival)
        return True

    def release(self, size_bytes: int, client: str, arrival: Arrival | None = None) -> None:
        self._count(-size_bytes, client, arrival)
        if not self._of_client[client]:
            del self._of_client[client]

    def begin(self, client: str, drop: Callable[[], None]) -> Arrival:
        """A body begins to come in; `drop` releases what it holds, at once."""
        arrival = Arrival(client, Pace(self._monotonic), drop)
        self._arrivals[arrival] = None
        return arrival

    def end(self, arrival: Arrival | None) -> None:
        """It is there, or no longer wanted."""
        if arrival is not None:
            self._arrivals.pop(arrival, None)

    def _count(self, size_bytes: int, client: str, arrival: Arrival | None) -> None:
        self.size_bytes += size_bytes
        self._of_client[client] += size_bytes
        if arrival is not None:
            arrival.held_bytes += size_bytes

    def _drop_one(self, asking: Arrival | None, client: str | None = None) -> bool:
        """Drop the slow body that holds most: of this client, or of the one that holds most."""
        slow = [
            arrival
            for arrival in self._arrivals
            if arrival is not asking
            and client in (None, arrival.client)
            and arrival.held_bytes
            and arrival.pace.is_slow()
        ]
        if slow:
            dropped = max(slow, key=lambda arrival: (self._of_client[arrival.client], arrival.held_bytes))
            self.end(dropped)
            dropped.drop()
        return bool(slow)


def no_room() -> Unavailable:
    """The error when a body or a message finds no room."""
    return Unavailable("Too many requests are being read; nothing was run: try again in a moment.")


class IncomingBody:
    """The body of one request. The mutable state is the part that is kept, and how many bytes have arrived."""

    def __init__(self, bodies: BufferedBodies, drop: Callable[[], None]) -> None:
        self._bodies = bodies
        self._drop = drop
        self._client = ""
        self._arrival: Arrival | None = None
        self._kept = bytearray()
        self.received_bytes = 0

    def __bytes__(self) -> bytes:
        return bytes(self._kept)

    def is_drained(self, size_bytes: int) -> bool:
        """Whether an unwanted body of this size is read to its end."""
        return size_bytes <= self._bodies.drained_bytes

    def count(self, chunk: bytes) -> None:
        self.received_bytes += len(chunk)

    def keep(self, chunk: bytes, client: str) -> bool:
        """Append a piece; False, and it is dropped, when all bodies, or this client's, would take too much memory."""
        if self._arrival is None:
            self._client = client
            self._arrival = self._bodies.begin(client, self._drop)
        self._arrival.pace.count(len(chunk))
        if not self._bodies.reserve(len(chunk), self._client, self._arrival):
            return False
        self._kept += chunk
        return True

    def end(self) -> None:
        """The whole body is there."""
        self._bodies.end(self._arrival)

    def discard(self) -> None:
        """Drop what was kept, and release its memory."""
        self.end()
        self._bodies.release(len(self._kept), self._client, self._arrival)
        self._kept.clear()


def declared_bytes(headers: HTTPHeaders) -> int:
    """Content-Length, or 0 where there is none; tornado refuses malformed ones after this."""
    length = headers.get("Content-Length", "0")
    return int(length[:18]) if length.isascii() and length[:18].isdigit() else 0


# --- requests and streams ---------------------------------------------------------------------------------------------


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
