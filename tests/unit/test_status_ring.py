"""The slots of the status page: what readings become, and that what is not known is a gap."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.http.status_page.ring import Reading, Ring
from sessions.measures.stages import BOUNDS_S

BUCKETS = len(BOUNDS_S) + 1


def reading(at_s: float, *, level: float = 0, peak: float | None = None, total: int = 0, **buckets: int) -> Reading:
    """`b3=2`: two durations in the fourth bucket."""
    counts = [buckets.get(f"b{index}", 0) for index in range(BUCKETS)]
    return Reading(at_s, {"level": level}, {"peak": peak}, {"total": total}, {"time": counts})


def filled(step_s: int, slots: int, *readings: Reading) -> Ring:
    ring = Ring(step_s, slots)
    for one in readings:
        ring.take(one)
    return ring


def columns(ring: Ring) -> dict[str, Any]:
    return {name: values for name, values in ring.columns().items() if not name.startswith("time")}


def test_a_ring_begins_empty_and_one_reading_is_no_slot() -> None:
    ring = Ring(10, 6)
    assert (ring.columns(), ring.begins_s, len(ring)) == ({}, None, 0)
    ring.take(reading(1003.0, total=7))
    assert columns(ring) == {"level": [], "peak": [], "total": []}
    assert ring.begins_s is None
    ring.take(reading(1010.1, level=2, total=9))
    assert columns(ring) == {"level": [2], "peak": [None], "total": [2]}
    assert (ring.begins_s, ring.newest_s) == (1000, 1010)


def test_levels_are_averaged_peaks_kept_and_totals_subtracted() -> None:
    ring = filled(
        30,
        6,
        reading(900.0, level=100, peak=100, total=5),
        reading(910.0, level=1, peak=None, total=6),
        reading(920.0, level=2, peak=0.5, total=6),
        reading(930.0, level=6, peak=0.25, total=9),
        reading(960.0, level=1, total=9),
    )
    assert columns(ring) == {"level": [3, 1], "peak": [0.5, None], "total": [4, 0]}


def test_a_time_without_readings_is_a_gap_and_nothing_that_happened_meanwhile_is_lost() -> None:
    ring = filled(10, 6, reading(0.1, total=0), reading(10.1, total=1), reading(40.1, level=3, total=5))
    assert columns(ring) == {"level": [0, None, None, 3], "peak": [None] * 4, "total": [1, None, None, 4]}
    assert (ring.begins_s, len(ring)) == (0, 4)


def test_a_reading_that_is_late_within_its_slot_leaves_no_gap() -> None:
    ring = filled(10, 6, reading(0.1), reading(10.1), reading(29.9), reading(30.1), reading(30.2))
    assert columns(ring)["level"] == [0, 0, 0]


@pytest.mark.parametrize("jump_s", [100.0, 31_536_000.0])
def test_a_clock_that_is_set_forward_leaves_a_gap(jump_s: float) -> None:
    ring = filled(10, 6, reading(0.1), reading(10.1, total=1), reading(20.1 + jump_s, level=1, total=3))
    assert columns(ring) == {"level": [None] * 5 + [1], "peak": [None] * 6, "total": [None] * 5 + [2]}


def test_a_clock_that_is_set_back_takes_the_slots_that_have_not_been_yet() -> None:
    ring = filled(10, 6, *(reading(at_s + 0.1, level=at_s, total=at_s) for at_s in range(0, 60, 10)))
    assert columns(ring)["level"] == [10, 20, 30, 40, 50]
    ring.take(reading(31.0, level=7, total=53))
    assert (columns(ring)["level"], columns(ring)["total"]) == ([10, 20, 7], [10, 10, 3])
    assert (ring.begins_s, ring.newest_s) == (0, 30)
    ring.take(reading(-500.0, level=8, total=53))
    assert (columns(ring)["level"], ring.begins_s) == ([8], -510)


def test_a_ring_keeps_so_many_slots_and_no_more() -> None:
    ring = filled(10, 6, *(reading(at_s, level=at_s, b2=int(at_s)) for at_s in range(0, 10_000, 10)))
    assert columns(ring)["level"] == [9940, 9950, 9960, 9970, 9980, 9990]
    assert ring.begins_s == 9930
    assert ring.durations("time").count == 60


def test_percentiles_are_those_of_six_slots_and_of_all_of_them() -> None:
    busy, quiet = reading(20.1, b0=5, b10=90), [reading(at_s + 0.1, b0=15, b10=90) for at_s in range(30, 100, 10)]
    ring = filled(10, 9, reading(0.1, b0=5), reading(10.1, b0=5), busy, *quiet)
    values = ring.columns()
    assert (values["time.p50"][0], values["time.p99"][0]) == (None, None)
    for share in ("time.p50", "time.p95", "time.p99"):
        slow, fast, last = values[share][1:7], values[share][7], values[share][8]
        assert all(BOUNDS_S[9] < (value or 0) <= BOUNDS_S[10] for value in slow)
        assert 0 < (fast or 0) <= BOUNDS_S[0]
        assert last is None
    assert ring.durations("time").count == 100
    assert ring.durations("time").quantile_s(0.05) <= BOUNDS_S[0] < BOUNDS_S[9] < ring.durations("time").quantile_s(0.2)
