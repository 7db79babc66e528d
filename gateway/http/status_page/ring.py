"""What was read of a gateway now and then, kept in slots of time: of the last hour, or of the last day. Pure.

The slots lie on a grid of the wall clock. One for which nothing was read has None: the gateway did not run then, or
stood still, or the clock jumped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sessions.measures.stages import Histogram

SHARES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_DIGITS = 6
_SLOTS_OF_PERCENTILES = 6  # in a single slot there may be few runs, or none

Durations = Mapping[int, int]
"""How many durations each bucket of a histogram got, of those that got any."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a gateway showed at one time, in seconds since 1970, by names such as `runs.queued`.

    Of several readings in one slot `levels` are averaged, and of `peaks` the largest is kept; None is not known.
    `totals` and `durations`, the counts in the buckets of histograms, have grown since the gateway's start. Percentiles
    of a slot are those of six, it and the five before it.
    """

    at_s: float
    levels: Mapping[str, float]
    peaks: Mapping[str, float | None]
    totals: Mapping[str, int]
    durations: Mapping[str, Sequence[int]]


@dataclass(slots=True)
class _Gathered:
    """The readings of a slot that is not over yet: how many, the sums of levels, the largest of peaks."""

    count: int = 0
    levels: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float | None] = field(default_factory=dict)

    def add(self, reading: Reading) -> None:
        self.count += 1
        for name, value in reading.levels.items():
            self.levels[name] = self.levels.get(name, 0.0) + value
        for name, peak in reading.peaks.items():
            known = self.peaks.get(name)
            if known is None or (peak is not None and peak > known):
                self.peaks[name] = peak

    def values(self) -> dict[str, float | None]:
        return {name: total / self.count for name, total in self.levels.items()} | self.peaks


class Ring:
    """The newest slots, each `step_s` long.

    The mutable state: a column of values for each name, the durations of each histogram, the end of the newest slot,
    the reading with which it ended, and what was gathered since.
    """

    def __init__(self, step_s: int, slots: int) -> None:
        self.step_s = step_s
        self.slots = slots
        self.newest_s: int | None = None
        self._columns: dict[str, deque[float | None]] = {}
        self._durations: dict[str, deque[Durations]] = {}
        self._last: Reading | None = None
        self._gathered = _Gathered()

    def __repr__(self) -> str:
        return f"<Ring {len(self)} of {self.slots} slots of {self.step_s} s>"

    def __len__(self) -> int:
        return max((len(column) for column in self._columns.values()), default=0)

    @property
    def begins_s(self) -> int | None:
        """The beginning of the oldest slot; None while there is none."""
        return None if self.newest_s is None else self.newest_s - len(self) * self.step_s

    def columns(self) -> dict[str, list[float | None]]:
        """The values of all slots by name, oldest first."""
        return {name: list(column) for name, column in self._columns.items()}

    def durations(self, name: str, newest: int | None = None) -> Histogram:
        """The durations of all slots together, or of so many of them."""
        histogram = Histogram()
        slots = self._durations.get(name, ())
        for slot in islice(reversed(slots), newest):
            for bucket, count in slot.items():
                histogram.counts[bucket] += count
        return histogram

    def take(self, reading: Reading) -> None:
        """Add a reading. Those of one slot become its values with the first reading that is past its end."""
        last = self._last
        if last is None:
            self._name_columns(reading)
            self._last = reading
            return
        self._gathered.add(reading)
        slot_s = self._grid_s(reading)
        if slot_s == self._grid_s(last):
            return
        self._make_room(slot_s)
        self._append(self._gathered.values(), last, reading)
        self._last, self._gathered = reading, _Gathered()

    def _grid_s(self, reading: Reading) -> int:
        return int(reading.at_s // self.step_s) * self.step_s

    def _name_columns(self, reading: Reading) -> None:
        quantiles = [f"{name}.{share}" for name in reading.durations for share in SHARES]
        for column in (*reading.levels, *reading.peaks, *reading.totals, *quantiles):
            self._columns[column] = deque(maxlen=self.slots)
        self._durations = {name: deque(maxlen=self.slots) for name in reading.durations}

    def _make_room(self, slot_s: int) -> None:
        """Have the next slot end at `slot_s`: leave a gap, or drop what a clock that was set back contradicts."""
        ahead = 1 if self.newest_s is None else (slot_s - self.newest_s) // self.step_s
        for _ in range(min(ahead - 1, self.slots)):
            for values in self._columns.values():
                values.append(None)
            for durations in self._durations.values():
                durations.append({})
        kept: list[deque[Any]] = [*self._columns.values(), *self._durations.values()]
        for column in kept:
            for _ in range(min(1 - ahead, len(column))):
                column.pop()
        self.newest_s = slot_s

    def _append(self, values: dict[str, float | None], last: Reading, reading: Reading) -> None:
        values |= {name: total - last.totals.get(name, 0) for name, total in reading.totals.items()}
        for name, counts in reading.durations.items():
            grown = enumerate(now - then for now, then in zip(counts, last.durations[name], strict=True))
            self._durations[name].append({bucket: count for bucket, count in grown if count})
            histogram = self.durations(name, _SLOTS_OF_PERCENTILES)
            for share, part in SHARES.items():
                values[f"{name}.{share}"] = histogram.quantile_s(part) if histogram.count else None
        for name, column in self._columns.items():
            value = values.get(name)
            column.append(round(value, _DIGITS) if isinstance(value, float) else value)
