"""How long each stage of a run takes: one histogram a stage, with fixed buckets, as Prometheus has them. Pure.

It is cheap enough to be always on: a mark is a reading of the clock and an addition. Who shows it is decided elsewhere.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from enum import StrEnum
from typing import Any

BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Upper bounds of the buckets; a last one takes what is longer."""


class Stage(StrEnum):
    """A stage of a run, in the order in which a run passes them. `FOLD` lies within the ones before it."""

    HANDLER = "handler"  # from the request's headers to the run request
    ADMISSION = "admission"  # until a kernel is asked for: checks, the session's lock, the idempotency key
    CLAIM = "claim"  # until a kernel is there
    RECORD = "record"  # until the run is on record
    QUEUE = "queue"  # until it is its turn, and its kernel is on record
    FRAME_OUT = "frame_out"  # until its variables are set and its code is sent
    KERNEL_BUSY = "kernel_busy"  # until the first message of it is here
    IDLE = "idle"  # until the kernel has told the end of the code
    FRAME_IN = "frame_in"  # until the supervisor has told what it used, with the files
    FOLD = "fold"  # of that, what decoded messages took to become events
    COMMIT = "commit"  # until the end is committed
    ANSWER = "answer"  # until the answer is written


_OWN = frozenset({Stage.ADMISSION, Stage.RECORD, Stage.FRAME_OUT, Stage.COMMIT})
"""What of a run is the gateway's and the database's: neither its kernel's, nor waiting for a kernel or for its turn."""


class Histogram:
    """Durations, counted in buckets. The mutable state: the counts, and the sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def __repr__(self) -> str:
        return f"<Histogram {self.count}, mean {self.mean_s * 1e3:.2f} ms>"

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    @property
    def mean_s(self) -> float:
        """The mean; 0 when there were none."""
        return self.sum_s / (self.count or 1)

    def observe(self, duration_s: float) -> None:
        """Count one duration. A bucket has those up to and with its bound."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s

    def quantile_s(self, share: float) -> float:
        """The duration below which this share lies, as far as the buckets tell: between their bounds in proportion."""
        rank, below = share * self.count, 0
        for index, count in enumerate(self.counts):
            if count and below + count >= rank:
                low_s = BOUNDS_S[index - 1] if index else 0.0
                high_s = BOUNDS_S[min(index, len(BOUNDS_S) - 1)]
                return low_s + (high_s - low_s) * (rank - below) / count
            below += count
        return 0.0


class Stages:
    """The histograms of one gateway: by stage, and of runs up to `COMMIT` the `whole` and the gateway's own share."""

    def __init__(self) -> None:
        self.histograms = {stage: Histogram() for stage in Stage}
        self.whole = Histogram()
        self.own = Histogram()

    def observe(self, stage: Stage, duration_s: float) -> None:
        """A run has been in this stage for so long."""
        self.histograms[stage].observe(duration_s)

    def as_json(self) -> dict[str, Any]:
        """Counts by bucket, sum and quantiles of every stage that a run has passed."""
        return {
            stage.value: {
                "count": histogram.count,
                "sum_s": round(histogram.sum_s, 6),
                "p50_ms": round(histogram.quantile_s(0.5) * 1e3, 3),
                "p95_ms": round(histogram.quantile_s(0.95) * 1e3, 3),
                "counts": list(histogram.counts),
            }
            for stage, histogram in self.histograms.items()
            if histogram.count
        }


class RunTrace:
    """The way of one run through the stages.

    The mutable state: when the last stage ended, the time of folding, and that in stages of the gateway's own.
    """

    __slots__ = ("_at_s", "_begun_s", "_fold_s", "_has_frames", "_is_whole", "_own_s", "_stages")

    def __init__(self, stages: Stages, *, is_whole: bool = True) -> None:
        """`is_whole` is false for a run that an earlier gateway began."""
        self._stages = stages
        self._begun_s = self._at_s = time.perf_counter()
        self._fold_s = self._own_s = 0.0
        self._is_whole = is_whole
        self._has_frames = False

    def end(self, stage: Stage) -> None:
        """This stage, which began when the last one ended, has ended now."""
        now_s = time.perf_counter()
        took_s = now_s - self._at_s
        self._stages.histograms[stage].observe(took_s)
        if stage in _OWN:
            self._own_s += took_s
        self._at_s = now_s

    def add_fold(self, begun_s: float) -> None:
        """A message was folded, since this time of `time.perf_counter`."""
        self._fold_s += time.perf_counter() - begun_s

    def end_frames(self) -> None:
        """All frames of the run are here: `FRAME_IN` has ended, and how long the fold took is known."""
        self.end(Stage.FRAME_IN)
        self._stages.histograms[Stage.FOLD].observe(self._fold_s)
        self._has_frames = True

    def end_run(self) -> None:
        """Its end is committed: `COMMIT` has ended. What never ran on a kernel has no share of the gateway's."""
        self.end(Stage.COMMIT)
        if self._is_whole:
            self._stages.whole.observe(self._at_s - self._begun_s)
            if self._has_frames:
                self._stages.own.observe(self._own_s)
