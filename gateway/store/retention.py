"""The retention job: once an hour it has the store remove what is older than `retention.days`.

What removing means is the store's business.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from sessions.errors import CellblockError
from sessions.ports import Clock, Store

_log = structlog.get_logger(__name__)


async def remove_expired_runs(
    store: Store, clock: Clock, *, days: float, first_after_s: float = 60.0, every_s: float = 3600.0
) -> None:
    """Never ends; a round that fails is logged. A gateway that starts has other things to do than the first one."""
    delay_s = first_after_s
    while True:
        await asyncio.sleep(delay_s)
        delay_s = every_s
        try:
            count = await store.remove_expired(clock.now() - timedelta(days=days))
        except CellblockError as error:
            _log.warning("retention_failed", error=str(error))
        except Exception:  # noqa: BLE001 - a job that died of one unforeseen error would let the database grow unnoticed
            _log.exception("retention_failed")
        else:
            if count:
                _log.info("retention_removed", runs=count)
