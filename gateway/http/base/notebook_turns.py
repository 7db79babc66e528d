"""Whose notebook is made when: one may take half a gigabyte, so few are made at once, and one per tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from sessions.model import TenantId

MAX_AT_ONCE = 2
"""Notebooks that are made at once, for all tenants together."""


class NotebookTurns:
    """Its state: a lock for each tenant that makes or awaits a notebook, and how many more may be made now."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()
        self._free = asyncio.Semaphore(MAX_AT_ONCE)

    def __repr__(self) -> str:
        return f"<NotebookTurns {len(self._locks)}>"

    @asynccontextmanager
    async def turn(self, tenant: TenantId) -> AsyncIterator[None]:
        """Wait until this tenant may make one. Who waits for their own other notebook keeps nobody else from theirs."""
        lock = self._locks.setdefault(tenant, asyncio.Lock())
        async with lock, self._free:
            yield
