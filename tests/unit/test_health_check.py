"""Knowing whether the engine or the database answers, whatever asking it raises."""

from __future__ import annotations

import asyncio

from doubles import until

from sessions.errors import StoreUnavailable
from sessions.kernels.health import HealthCheck


async def test_a_watch_tells_why_nothing_answers_and_never_ends() -> None:
    error: Exception | None = None

    async def ask() -> None:
        if error is not None:
            raise error

    watch = HealthCheck("database", ask)
    asking = asyncio.ensure_future(watch.poll(0.001))
    error = StoreUnavailable()
    await until(lambda: watch.failure == str(StoreUnavailable()))
    error = OSError(24, "Too many open files")
    await until(lambda: "unexpected error with the database" in (watch.failure or ""))
    error = None
    await until(lambda: watch.failure is None)
    asking.cancel()
