"""The places for connections: how many there are, who has to leave when they are used up, and who gets none.

It decides from what a connection is doing, and for whom. Reading and writing are the stream's.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

KEPT_FOR_OTHERS = 8
"""One client gets all but this part, an eighth, of what there is for all clients."""

_ON_THE_DOORSTEP = 16
_PATIENCE_S = 5.0
_SLOW_BYTES_PER_S = 64 << 10
_NETWORK_BITS = 64

Monotonic = Callable[[], float]


class Phase(Enum):
    """What a connection is doing."""

    WAITING = "waiting"
    """It is silent, or in the middle of headers: no request of its is known."""
    RECEIVING = "receiving"
    """The body of a request comes in."""
    SERVING = "serving"
    """Its request is at work or being answered, or it is a stream or WebSocket."""


class Pace:
    """How quickly bytes arrive: over the last five seconds, or over the five before them while these are not over.

    The mutable state: when these began, what has come since then, and whether that was little the time before.
    """

    def __init__(self, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._since_s = monotonic()
        self._bytes = 0
        self._was_slow = False

    def count(self, size_bytes: int) -> None:
        self._turn()
        self._bytes += size_bytes

    def pause(self) -> None:
        """Nothing was read, so that nothing could come."""
        self._since_s, self._bytes, self._was_slow = self._monotonic(), 0, False

    def is_slow(self) -> bool:
        """Whether less than 64 KiB a second have come; nothing is slow in its first five seconds."""
        self._turn()
        return self._was_slow

    def _turn(self) -> None:
        now_s = self._monotonic()
        if now_s - self._since_s >= _PATIENCE_S:
            self._was_slow = self._bytes < _SLOW_BYTES_PER_S * (now_s - self._since_s)
            self._since_s, self._bytes = now_s, 0


@dataclass(eq=False, slots=True)
class Place:
    """The place of one connection, and what it is doing. `stalled_s` says how long it has not taken its answer."""

    client: str
    close: Callable[[], None]
    stalled_s: Callable[[], float]
    places: Places
    is_on_the_doorstep: bool = False
    phase: Phase = Phase.WAITING
    pace: Pace | None = None

    def wait(self) -> None:
        """The next request may come."""
        self.places.enter(self, Phase.WAITING)

    def receive(self) -> None:
        """The headers of a request are there."""
        self.pace = Pace(self.places.monotonic)
        self.places.enter(self, Phase.RECEIVING)

    def count(self, size_bytes: int) -> None:
        """A piece of the body is there."""
        if self.pace is not None:
            self.pace.count(size_bytes)

    def serve(self) -> None:
        """The whole request is there."""
        self.places.enter(self, Phase.SERVING)

    def come_in(self) -> bool:
        """Whether it has a real place, or gets one now."""
        return not self.is_on_the_doorstep or self.places.let_in(self)

    def leave(self) -> None:
        """The connection is closed."""
        self.places.leave(self)

    def is_slow(self) -> bool:
        """Whether it is slow over a body, or does not take its answer."""
        if self.phase is Phase.RECEIVING:
            return self.pace is not None and self.pace.is_slow()
        return self.phase is Phase.SERVING and self.stalled_s() >= _PATIENCE_S


@dataclass(slots=True)
class Places:
    """The places of one server. The mutable state: which ones are taken, and who is waiting.

    When they are used up, a newcomer gets the place of the connection that has been waiting for a request longest, of
    the client with the most connections; where none is waiting, of one that is slow. One client may have seven eighths
    of them. Who gets none may stand on the doorstep, where health is told and nothing else.
    """

    limit: int
    monotonic: Monotonic
    _taken: set[Place] = field(default_factory=set)
    _numbers: Counter[str] = field(default_factory=Counter)
    _waiting: dict[str, dict[Place, None]] = field(default_factory=dict)
    _doorstep: dict[Place, None] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Places {len(self._taken)} of {self.limit}, {len(self._doorstep)} on the doorstep>"

    def __len__(self) -> int:
        return len(self._taken) + len(self._doorstep)

    def take(self, client: str, close: Callable[[], None], stalled_s: Callable[[], float]) -> Place | None:
        """A place for a newcomer, maybe on the doorstep; None when that is full, too."""
        place = Place(client, close, stalled_s, self)
        if self._has_room(client):
            self._add(place)
            return place
        if self._has_doorstep():
            place.is_on_the_doorstep = True
            self._doorstep[place] = None
            return place
        return None

    def let_in(self, place: Place) -> bool:
        """Give one from the doorstep a real place."""
        if not self._has_room(place.client):
            return False
        self._doorstep.pop(place, None)
        place.is_on_the_doorstep = False
        self._add(place)
        return True

    def enter(self, place: Place, phase: Phase) -> None:
        """The connection does something else from now on."""
        place.phase = phase
        if place in self._taken:
            self._stop_waiting(place)
            if phase is Phase.WAITING:
                self._waiting.setdefault(place.client, {})[place] = None

    def leave(self, place: Place) -> None:
        """The connection is closed."""
        self._doorstep.pop(place, None)
        if place not in self._taken:
            return
        self._taken.discard(place)
        self._stop_waiting(place)
        self._numbers[place.client] -= 1
        if not self._numbers[place.client]:
            del self._numbers[place.client]

    def free(self, number: int) -> None:
        """Close so many connections that need not stay."""
        for _ in range(number):
            if not self._free_one():
                return

    def _add(self, place: Place) -> None:
        self._taken.add(place)
        self._numbers[place.client] += 1
        self.enter(place, place.phase)

    def _stop_waiting(self, place: Place) -> None:
        waiting = self._waiting.get(place.client, {})
        waiting.pop(place, None)
        if not waiting:
            self._waiting.pop(place.client, None)

    def _has_room(self, client: str) -> bool:
        """Whether there is a place for another connection of this client, made free where it must be."""
        largest = self.limit - self.limit // KEPT_FOR_OTHERS
        if self._numbers[client] >= largest and not self._free_one(client):
            return False
        return len(self._taken) < self.limit or self._free_one()

    def _has_doorstep(self) -> bool:
        if len(self._doorstep) >= _ON_THE_DOORSTEP:
            waiting = next((place for place in self._doorstep if place.phase is not Phase.SERVING), None)
            if waiting is None:
                return False
            self._close(waiting)
        return True

    def _free_one(self, client: str | None = None) -> bool:
        """Close the connection that can go first, of one client or of whoever has the most."""
        clients = [name for name in self._waiting if client in (None, name)]
        if clients:
            self._close(next(iter(self._waiting[max(clients, key=self._numbers.__getitem__)])))
            return True
        slow = [place for place in self._taken if (client is None or place.client == client) and place.is_slow()]
        if slow:
            self._close(max(slow, key=lambda place: self._numbers[place.client]))
        return bool(slow)

    def _close(self, place: Place) -> None:
        self.leave(place)
        place.close()


def client_of(address: Any) -> str:
    """Whose connection this is: an IPv4 address, the network (/64) of an IPv6 address, or "" for a unix socket."""
    return _network_of(str(address[0])) if isinstance(address, tuple) and address else ""


@lru_cache(maxsize=1024)
def _network_of(host: str) -> str:
    """A request asks for it several times, and the next one over the same connection again."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip), _NETWORK_BITS), strict=False))
