"""Checks again and again whether the engine or the database answers. It draws no conclusions from that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from sessions.errors import Unavailable

log = structlog.get_logger()


class HealthCheck:
    """The mutable state: `failure`, a sentence that says why the last check failed, or None; and how long it took.

    `round_trip_s` is None before the first check, and after one that failed.
    """

    def __init__(self, what: str, ask: Callable[[], Awaitable[None]]) -> None:
        """`ask` raises Unavailable when `what` does not answer."""
        self.failure: str | None = None
        self.round_trip_s: float | None = None
        self._what = what
        self._ask = ask

    def __repr__(self) -> str:
        return f"<HealthCheck of the {self._what}: {self.failure or 'answers'}>"

    async def poll(self, pause_s: float) -> None:
        """Keep `failure` true until cancelled, whatever `ask` raises."""
        while True:
            begun_s, round_trip_s = time.perf_counter(), None
            try:
                await self._ask()
            except Unavailable as error:
                self.failure = str(error)
            except Exception:
                log.exception("watch_failed", what=self._what)
                self.failure = f"An unexpected error with the {self._what}; the gateway's log has it."
            else:
                self.failure, round_trip_s = None, time.perf_counter() - begun_s
            self.round_trip_s = round_trip_s
            await asyncio.sleep(pause_s)
