"""The implementations that contract tests run over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.store.postgres import PostgresStore
from sessions.ports import Store
from sessions.testing.memory_store import MemoryStore


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each Store in turn, empty."""
    store = MemoryStore() if request.param == "memory" else PostgresStore(request.getfixturevalue("database_url"))
    try:
        yield store
    finally:
        await store.close()
