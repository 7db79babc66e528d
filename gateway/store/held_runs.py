"""The unfinished runs of this gateway: their epochs, and copies in case a crash of PostgreSQL loses their rows.

The commit that adds a run does not always wait for the disk: see `statements.runs`.
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


class HeldRuns:
    """Its state: `_runs`, those that were added here, as last committed, and `_epochs`, of those that were taken over.

    Written by the event loop, read by the store's threads.
    """

    def __init__(self) -> None:
        self._runs: dict[RunId, Run] = {}
        self._epochs: dict[RunId, int] = {}

    def __len__(self) -> int:
        return len(self._runs.keys() | self._epochs.keys())

    def epoch(self, run_id: RunId) -> int:
        """The epoch that this gateway writes with; 0 for a run that it added itself."""
        return self._epochs.get(run_id, 0)

    def added(self, run: Run) -> None:
        """Note that it has a row."""
        self._runs[run.run_id] = run

    def taken_over(self, run_id: RunId, epoch: int) -> None:
        """Note that its row has this epoch now."""
        self._epochs[run_id] = epoch

    def started(self, run_id: RunId, kernel_id: KernelId, started_at: datetime) -> None:
        """Note that it runs on this kernel."""
        if run_id in self._runs:
            self._runs[run_id] = replace(self._runs[run_id], kernel_id=kernel_id, started_at=started_at)

    def ended(self, run_id: RunId) -> None:
        """Forget it: its end is committed, or its row was removed."""
        self._runs.pop(run_id, None)
        self._epochs.pop(run_id, None)

    def write(self, connection: Connection, run_id: RunId, work: Callable[[Connection], bool]) -> bool:
        """Do `work`, which returns whether it found the unfinished run; if the row is gone, restore it and try again.

        False when the run has ended, or belongs to another gateway now. Raises NotFound.
        """
        return work(connection) or (self._restore(connection, run_id) and work(connection))

    def _restore(self, connection: Connection, run_id: RunId) -> bool:
        """Add the run again if its row is gone; False if the row is there."""
        if connection.execute(runs.HAS_RUN, {"run_id": run_id}).scalar_one():
            return False
        if (run := self._runs.get(run_id)) is None:
            raise NotFound(f"There is no run {run_id}.")
        _log.warning("run_row_restored", **run.log_fields())
        connection.execute(runs.ADD_RUN, runs.add_parameters(run, self.epoch(run_id)))
        return True
