"""The retention job: what it asks the store for, that it survives a bad round, and when it begins."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.store.retention import remove_expired_runs
from sessions.errors import StoreUnavailable
from sessions.testing.memory_store import MemoryStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DEADLINE_S = 5.0


class StoppedClock:
    def monotonic(self) -> float:
        return 0.0

    def now(self) -> datetime:
        return NOW


class WatchedStore(MemoryStore):
    """Tells of each round, and fails the first ones as it is told."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.rounds: asyncio.Queue[datetime] = asyncio.Queue()
        self._errors = list(errors)

    async def remove_expired(self, before: datetime) -> int:
        self.rounds.put_nowait(before)
        if self._errors:
            raise self._errors.pop(0)
        return await super().remove_expired(before)


async def next_round(store: WatchedStore) -> datetime:
    return await asyncio.wait_for(store.rounds.get(), DEADLINE_S)


async def test_what_is_older_than_the_retention_time_is_removed_again_and_again() -> None:
    store = WatchedStore()
    job = asyncio.create_task(remove_expired_runs(store, StoppedClock(), days=30, first_after_s=0, every_s=0.01))
    assert [await next_round(store) for _ in range(3)] == [NOW - timedelta(days=30)] * 3
    job.cancel()


@pytest.mark.parametrize("error", [StoreUnavailable(), RuntimeError("unforeseen")])
async def test_a_round_that_fails_is_not_the_last(error: Exception) -> None:
    store = WatchedStore(error)
    job = asyncio.create_task(remove_expired_runs(store, StoppedClock(), days=1, first_after_s=0, every_s=0.01))
    await next_round(store)
    await next_round(store)
    job.cancel()


async def test_nothing_happens_before_the_first_delay() -> None:
    store = WatchedStore()
    job = asyncio.create_task(remove_expired_runs(store, StoppedClock(), days=1, first_after_s=3600))
    await asyncio.sleep(0.05)
    job.cancel()
    assert store.rounds.empty()
