"""What has happened since this gateway was started, as counts. How long it took is in stages.py. Pure.

A count is one addition, always on. Whoever counts names what there is by a bounded set of words: no ids, no texts.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum


class Launch(StrEnum):
    """How the launch of a sandbox ended."""

    OK = "ok"
    FAILED = "failed"


class Tally:
    """The mutable state is the counts.

    `runs` by language and final status, once the end is committed; `launches` of sandboxes by kernelspec; `deaths` of
    kernels by cause.
    """

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[tuple[str, Launch]] = Counter()
        self.deaths: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Tally {self.runs.total()} runs, {self.launches.total()} launches, {self.deaths.total()} deaths>"
