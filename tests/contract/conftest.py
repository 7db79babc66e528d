"""The implementations that contract tests run over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.store.postgres import PostgresStore
from sessions.ports import Store
from sessions.testing.memory_store import MemoryStore


@pytest.fixture(params=["memory", "postgres", "postgres without its quick lane"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each Store in turn, empty."""
    store: Store = MemoryStore()
    if request.param != "memory":
        quick_pool_size = 2 if request.param == "postgres" else 0
        store = PostgresStore(request.getfixturevalue("database_url"), quick_pool_size=quick_pool_size)
    try:
        yield store
    finally:
        await store.close()
