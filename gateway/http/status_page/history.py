"""The last hour and the last day of this gateway, in memory: it begins anew with the process."""

from __future__ import annotations

import asyncio

import structlog

from gateway.http.base.context import Context
from gateway.http.status_page.readings import read
from gateway.http.status_page.ring import Ring
from sessions.ports import Clock

HOUR = (10, 360)
DAY = (300, 288)
"""Seconds of a slot, and how many slots there are."""

_PAST_THE_SLOT_S = 0.02  # a timer may fire a little early
log = structlog.get_logger("cellblock.status")


class History:
    """The mutable state is the two rings."""

    def __init__(self, context: Context, clock: Clock) -> None:
        self.clock = clock
        self.started_at = clock.now()
        self.hour, self.day = Ring(*HOUR), Ring(*DAY)
        self._context = context
        self._started_s = clock.monotonic()

    @property
    def uptime_s(self) -> float:
        """How long it has been there."""
        return self.clock.monotonic() - self._started_s

    def sample(self) -> None:
        """Read the figures once."""
        reading = read(self._context, self.clock.now().timestamp())
        self.hour.take(reading)
        self.day.take(reading)

    async def follow(self) -> None:
        """Read them at the end of each slot, until cancelled."""
        while True:
            try:
                self.sample()
            except Exception:
                log.exception("status_not_read")
            step_s = self.hour.step_s
            await asyncio.sleep(step_s - self.clock.now().timestamp() % step_s + _PAST_THE_SLOT_S)
