"""The retention job: once an hour it has the store remove what is older than `retention.days`.

What removing means is the store's business.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from sessions.errors import CellblockError
from sessions.ports import Clock, Store

_FIRST_AFTER_S = 60.0
_EVERY_S = 3600.0

_log = structlog.get_logger(__name__)


class Retention:
    """Owned by the app: `start` makes the one task, `stop` ends it. A round that fails is logged."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        days: float,
        first_after_s: float = _FIRST_AFTER_S,
        every_s: float = _EVERY_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._kept = timedelta(days=days)
        self._first_after_s = first_after_s
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first round comes a little later, since starting gateways have other things to do."""
        if self._task is None:
            self._task = asyncio.create_task(self._repeat(), name="retention")

    async def stop(self) -> None:
        """End the task. Batches that were removed by then stay removed."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _repeat(self) -> None:
        delay_s = self._first_after_s
        while True:
            await asyncio.sleep(delay_s)
            delay_s = self._every_s
            await self._remove()

    async def _remove(self) -> None:
        try:
            count = await self._store.remove_expired(self._clock.now() - self._kept)
        except CellblockError as error:
            _log.warning("retention_failed", error=str(error))
        except Exception:  # noqa: BLE001 - a job that died of one unforeseen error would let the database grow unnoticed
            _log.exception("retention_failed")
        else:
            if count:
                _log.info("retention_removed", runs=count)
