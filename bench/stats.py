"""Percentiles and ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values, as numpy does it by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """What a table says of a series."""
    return {
        "n": len(values),
        "p50": statistics.median(values),
        "p95": percentile(values, 95),
        "p99": percentile(values, 99),
        "least": min(values),
    }


def per(total: dict[str, float], count: int) -> dict[str, float]:
    """Each part of a total, divided by a number of runs."""
    return {part: value / max(count, 1) for part, value in total.items()}


def less(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """What each part has grown by."""
    return {part: value - before.get(part, 0.0) for part, value in after.items()}


def added(totals: Sequence[dict[str, float]]) -> dict[str, float]:
    """The sum of each part."""
    return {part: sum(total.get(part, 0.0) for total in totals) for part in dict.fromkeys(p for t in totals for p in t)}
