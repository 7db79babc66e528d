"""The places for connections, with a clock of our own."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gateway.http.base.connections import Pace, Place, Places, client_of


@dataclass
class Hall:
    """Places whose closed connections are noted by number; `stalled` has who takes no answer, and for how long."""

    limit: int
    now_s: float = 0.0
    closed: list[int] = field(default_factory=list)
    stalled: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = Places(self.limit, lambda: self.now_s)
        self.number = 0

    def come(self, client: str = "a") -> Place | None:
        self.number += 1
        number = self.number
        return self.places.take(client, lambda: self.closed.append(number), lambda: self.stalled.get(number, 0.0))

    def serving(self, client: str = "a") -> Place:
        place = self.come(client)
        assert place is not None
        place.receive()
        place.serve()
        return place


def test_who_has_been_silent_longest_makes_room() -> None:
    hall = Hall(3)
    places = [hall.come() for _ in range(3)]
    assert places[0] is not None
    places[0].receive()
    places[0].serve()
    places[0].wait()  # kept alive since a moment ago
    for _ in range(3):
        place = hall.come()
        assert place is not None
        assert place.come_in()
    assert hall.closed == [2, 3, 1]
    assert repr(hall.places) == "<Places 3 of 3, 0 on the doorstep>"


def test_who_is_being_served_stays() -> None:
    hall = Hall(3)
    for _ in range(3):
        hall.serving()
    place = hall.come()
    assert place is not None
    assert not place.come_in()
    assert hall.closed == []


def test_a_thousand_silent_ones_shut_nobody_out() -> None:
    hall = Hall(100)
    kept = hall.serving("b")
    for _ in range(1030):
        assert hall.come() is not None
    newcomer = hall.come("a")
    assert newcomer is not None
    assert newcomer.come_in()
    assert kept.come_in()
    assert 1 not in hall.closed


def test_the_client_with_the_most_makes_room_first() -> None:
    hall = Hall(8)
    assert hall.come("b") is not None
    for _ in range(7):
        hall.come("a")
    hall.come("c")
    assert hall.closed == [2]


def test_one_client_gets_seven_eighths() -> None:
    hall = Hall(16)
    for _ in range(14):
        assert hall.serving("a").come_in()
    refused = hall.come("a")
    assert refused is not None
    assert not refused.come_in()
    for _ in range(2):
        assert hall.serving("b").come_in()
    assert hall.closed == []


def test_a_slow_body_makes_room_and_a_quick_one_does_not() -> None:
    hall = Hall(2)
    quick, slow = hall.come(), hall.come()
    assert quick is not None
    assert slow is not None
    for place in (quick, slow):
        place.receive()
    for _ in range(6):
        hall.now_s += 1
        quick.count(100_000)
        slow.count(10)
    place = hall.come()
    assert place is not None
    assert place.come_in()
    assert hall.closed == [2]


def test_a_young_body_is_not_slow_yet() -> None:
    hall = Hall(1)
    place = hall.come()
    assert place is not None
    place.receive()
    hall.now_s += 4.9
    other = hall.come()
    assert other is not None
    assert not other.come_in()
    hall.now_s += 0.2
    assert other.come_in()
    assert hall.closed == [1]


def test_who_does_not_take_the_answer_makes_room() -> None:
    hall = Hall(2)
    hall.serving()
    hall.serving()
    hall.stalled = {1: 4.9, 2: 5.1}
    place = hall.come()
    assert place is not None
    assert place.come_in()
    assert hall.closed == [2]


def test_the_doorstep_has_an_end_and_keeps_nobody_who_is_silent() -> None:
    hall = Hall(1)
    hall.serving()
    silent = [hall.come() for _ in range(16)]
    assert all(place is not None and not place.come_in() for place in silent)
    asking = hall.come()
    assert asking is not None
    assert hall.closed == [2]
    asking.receive()
    asking.serve()
    for _ in range(15):
        hall.serving()
    assert hall.come() is None
    assert hall.closed == list(range(2, 18))


def test_from_the_doorstep_there_is_a_way_in() -> None:
    hall = Hall(1)
    first, second = hall.serving(), hall.come()
    assert second is not None
    assert not second.come_in()
    first.leave()
    assert second.come_in()
    assert repr(hall.places) == "<Places 1 of 1, 0 on the doorstep>"
    second.leave()
    second.leave()
    assert repr(hall.places) == "<Places 0 of 1, 0 on the doorstep>"


def test_what_need_not_stay_is_freed_on_a_shortage() -> None:
    hall = Hall(10)
    hall.serving()
    for _ in range(4):
        hall.come()
    hall.places.free(3)
    assert hall.closed == [2, 3, 4]
    hall.places.free(3)
    assert hall.closed == [2, 3, 4, 5]


def test_a_pace_is_that_of_the_last_seconds() -> None:
    now_s = 0.0
    pace = Pace(lambda: now_s)
    pace.count(6 << 20)
    assert not pace.is_slow()
    now_s = 5.0
    assert not pace.is_slow()
    now_s = 10.0
    assert pace.is_slow()
    pace.count(1 << 20)
    now_s = 15.0
    assert not pace.is_slow()


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (("192.0.2.1", 4711), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.1", 4711, 0, 0), "192.0.2.1"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::/64"),
        (("::1", 4711, 0, 0), "::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_whose_a_connection_is(address: object, client: str) -> None:
    assert client_of(address) == client
