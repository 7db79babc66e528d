"""Request bodies and WebSocket messages in memory, over all connections: counted, bounded, and who makes room for whom.

It knows sizes and whose they are. The answers to those that find no room are the handlers'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornado.httputil import HTTPHeaders

from gateway.host.clock import SystemClock
from gateway.http.base.connections import KEPT_FOR_OTHERS, Monotonic, Pace
from sessions.errors import Unavailable

if TYPE_CHECKING:
    from gateway.http.base.limits import HttpBounds

_SMALL_PART = 160
_STAYING_SHARE = 2
_STAYING_OF_CLIENT = 4


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
    some, and others too. Whoever is slow makes room for others. What stays for minutes, such as the items of batches,
    may take half of the room in all, and a quarter of one client; small bodies are free of that. The mutable state: how
    many bytes there are, of each client, how many of them stay, and which bodies are coming in.
    """

    def __init__(self, request_bytes: int, bounds: HttpBounds, monotonic: Monotonic | None = None) -> None:
        self.drained_bytes = bounds.drain_factor * request_bytes
        self._small_bytes = request_bytes // _SMALL_PART
        self.limit_bytes = bounds.buffered_bodies * request_bytes
        self._largest_bytes = self.limit_bytes - self.limit_bytes // KEPT_FOR_OTHERS
        self._monotonic = monotonic or SystemClock().monotonic
        self.size_bytes = 0
        self._of_client: Counter[str] = Counter()
        self._staying_of_client: Counter[str] = Counter()
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

    def stay(self, size_bytes: int, client: str) -> bool:
        """Let bytes that are counted stay for minutes; False when too many do already."""
        in_all, of_client = self._staying_of_client.total() + size_bytes, self._staying_of_client[client] + size_bytes
        is_little = in_all <= self.limit_bytes // _STAYING_SHARE and of_client <= self.limit_bytes // _STAYING_OF_CLIENT
        if not is_little and size_bytes > self._small_bytes:
            return False
        self._staying_of_client[client] = of_client
        return True

    def stay_no_longer(self, size_bytes: int, client: str) -> None:
        """So many of those that stayed are released."""
        self._staying_of_client[client] -= size_bytes
        if not self._staying_of_client[client]:
            del self._staying_of_client[client]
        self.release(size_bytes, client)

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
    """The body of one request.

    The mutable state is the part that is kept, how many bytes have arrived, and how many stay counted for what was made
    from it.
    """

    def __init__(self, bodies: BufferedBodies, drop: Callable[[], None]) -> None:
        self._bodies = bodies
        self._drop = drop
        self._client = ""
        self._arrival: Arrival | None = None
        self._kept = bytearray()
        self._staying_bytes = 0
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

    def give_way(self) -> bool:
        """Drop the bytes, and count as many for what was made from them, until `release`; False where too many stay."""
        if not self._bodies.stay(len(self._kept), self._client):
            return False
        self._staying_bytes = len(self._kept)
        self._kept.clear()
        return True

    def release(self, size_bytes: int) -> None:
        """So many bytes' worth of what was made from it is gone."""
        released = min(size_bytes, self._staying_bytes)
        self._staying_bytes -= released
        if released:
            self._bodies.stay_no_longer(released, self._client)

    def discard(self) -> None:
        """Drop what was kept, and release its memory."""
        self.end()
        self.release(self._staying_bytes)
        self._bodies.release(len(self._kept), self._client, self._arrival)
        self._kept.clear()


def declared_bytes(headers: HTTPHeaders) -> int:
    """Content-Length, or 0 where there is none; tornado refuses malformed ones after this."""
    length = headers.get("Content-Length", "0")
    return int(length[:18]) if length.isascii() and length[:18].isdigit() else 0
