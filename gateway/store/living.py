"""The runs that this gateway has added and that have not ended, in case a crash of PostgreSQL takes their rows.

The commit that adds a run does not wait for the disk: see `statements.runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import structlog
from sqlalchemy import Connection

from gateway.store.statements import runs
from sessions.errors import NotFound
from sessions.model import KernelId, Run, RunId

_log = structlog.get_logger(__name__)


class LivingRuns:
    """The state: `_runs`, each as it was last committed. Written by the event loop, read by the store's threads."""

    def __init__(self) -> None:
        self._runs: dict[RunId, Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def added(self, run: Run) -> None:
        """It has a row."""
        self._runs[run.run_id] = run

    def started(self, run_id: RunId, kernel_id: KernelId, started_at: datetime) -> None:
        """Its row says that it is running there."""
        if run_id in self._runs:
            self._runs[run_id] = replace(self._runs[run_id], kernel_id=kernel_id, started_at=started_at)

    def ended(self, run_id: RunId) -> None:
        """Its end is committed, or its row has been removed."""
        self._runs.pop(run_id, None)

    def write(self, connection: Connection, run_id: RunId, work: Callable[[Connection], bool]) -> bool:
        """Do `work`, which says whether it found the living run; if its row is gone, add it again and do it once more.

        False when the run has ended. Raises NotFound.
        """
        return work(connection) or (self._restore(connection, run_id) and work(connection))

    def _restore(self, connection: Connection, run_id: RunId) -> bool:
        """Add a run again whose row is gone; False when it is there."""
        if connection.execute(runs.HAS_RUN, {"run_id": run_id}).scalar_one():
            return False
        if (run := self._runs.get(run_id)) is None:
            raise NotFound(f"There is no run {run_id}.")
        _log.warning("run_row_restored", run_id=run_id)
        connection.execute(runs.ADD_RUN, runs.add_parameters(run))
        return True
