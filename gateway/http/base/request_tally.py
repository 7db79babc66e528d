"""Counts the requests that were answered, and how long each took. Labels are bounded: nothing in them is a client's."""

from __future__ import annotations

from collections import Counter, defaultdict

from tornado.web import RequestHandler

from sessions.measures.stages import Histogram

_OTHER = "other"


class RequestTally:
    """The mutable state: the counts by route, method and status, and the durations by route and method.

    A route is its template, as in the table of routes. A method that HTTP does not have is `other`.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.durations: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)

    def __repr__(self) -> str:
        return f"<RequestTally {self.counts.total()}>"

    def note(self, route: str, method: str | None, status: int, duration_s: float) -> None:
        """A request was answered."""
        known = method if method in RequestHandler.SUPPORTED_METHODS else _OTHER
        self.counts[route, known, status] += 1
        self.durations[route, known].observe(duration_s)
