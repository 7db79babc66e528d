"""The statements that add, start, withdraw, continue and finish runs. Those that read them are in `reading`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Boolean, Row, TextClause, column, text

from gateway.store import tables
from gateway.store.column_types import dump_json
from gateway.store.rows import RESULT_COLUMNS, RUN_COLUMNS, from_result, from_run
from gateway.store.statements import Prepared, insert, sessions, typed
from gateway.store.statements.batches import with_batch
from gateway.store.statements.reading import RECORD_COLUMNS
from gateway.store.tables import runs
from sessions.model import GatewayId, KernelId, Progress, Result, Run, RunId, RunStatus

# The commit of a run that goes to a kernel at once, and has no idempotency key, does not wait for the disk, which is
# most of the time an insert takes. That loses nothing when the gateway crashes, and when PostgreSQL crashes at most the
# last fraction of a second of runs that have not ended: finishing a run waits for its own commit, which is later in the
# log. `HeldRuns` adds such a run again. With a key it waits: whoever sends the request again after a power cut must
# find that it was taken. So it does without a kernel: what only waits is known to nobody else when the gateway crashes,
# too.
_COMMIT = """
    CASE WHEN idempotency_key IS NULL AND kernel_id IS NOT NULL THEN set_config('synchronous_commit', 'off', true) END
"""

# Returns a row when it has added one: nothing is added where the id or the key is taken.
_ADD_RUN = f"""
    {insert(runs, (*RUN_COLUMNS, "status", "epoch"))}
    ON CONFLICT DO NOTHING
    RETURNING {_COMMIT}
"""
ADD_RUN = typed(_ADD_RUN, runs)
ADD_RUN_QUICKLY = Prepared("add_run", _ADD_RUN, runs)

# The fence: a run that has ended, or that another store has taken over, is left alone.
_HELD = "run_id = :run_id AND finished_at IS NULL AND epoch = :epoch"

# Numbers of frames mean nothing to another kernel. The commit waits for the disk: a run that has been sent somewhere
# must not be found waiting after a power cut. Returns a row if there is such a run.
_START_RUN = f"""
    UPDATE runs SET status = :status, kernel_id = :kernel_id, started_at = :started_at,
                    taken_seq = CASE WHEN kernel_id IS NULL OR kernel_id = :kernel_id THEN taken_seq END,
                    progress = CASE WHEN kernel_id IS NULL OR kernel_id = :kernel_id THEN progress END
    WHERE {_HELD}
    RETURNING 1
"""  # noqa: S608 - a constant
START_RUN = text(_START_RUN)
START_RUN_QUICKLY = Prepared("start_run", _START_RUN, runs)

WITHDRAW_RUN = text(f"DELETE FROM runs WHERE {_HELD}")  # noqa: S608 - a constant

HAS_RUN = text("SELECT count(*) FROM runs WHERE run_id = :run_id")

# Of a gateway's living runs those are taken over that still have the epoch which was read just before. A take-over that
# hung, and comes to its end after a later one, so takes nothing from that one. It waits for what is being written to
# them, and whatever comes later finds a new epoch. Returns their rows.
TAKE_OVER = typed(
    f"""
    UPDATE runs SET epoch = runs.epoch + 1
    FROM unnest(CAST(:run_ids AS uuid[]), CAST(:epochs AS int[])) AS seen (run_id, epoch)
    WHERE runs.run_id = seen.run_id AND runs.epoch = seen.epoch
          AND runs.gateway_id = :gateway_id AND runs.finished_at IS NULL
    RETURNING {", ".join(f"runs.{column.name}" for column in RECORD_COLUMNS)}, runs.inputs IS NOT NULL AS has_inputs
    """,  # noqa: S608 - the table's own names
    runs,
).columns(*RECORD_COLUMNS, column("has_inputs", Boolean))

# Locked, since its events are written only after it has been looked at: a take-over must not come in between.
_LIVING = f"SELECT run_id FROM runs WHERE {_HELD} FOR NO KEY UPDATE"  # noqa: S608 - a constant
# Progress goes only forward: a statement that hung, and was given up and repeated, may come to its end later.
_PROGRESSED = f"""
    UPDATE runs SET taken_seq = greatest(taken_seq, :taken_seq),
                    progress = CASE WHEN taken_seq > :taken_seq THEN progress ELSE CAST(:progress AS json) END
    WHERE {_HELD}
    RETURNING run_id
"""  # noqa: S608 - a constant
_FINISHED = f"""
    UPDATE runs SET finished_at = :finished_at, {", ".join(f"{name} = :{name}" for name in RESULT_COLUMNS)},
                    taken_seq = NULL, progress = NULL, inputs = NULL, input_data = NULL
    WHERE {_HELD}
    RETURNING run_id
"""  # noqa: S608 - a constant


APPEND_QUICKLY = Prepared("append", with_batch(_PROGRESSED, has_artifacts=False), runs)
"""`append` with progress and without artifacts."""

_QUICK_FINISHES = {
    has_session: Prepared(
        f"finish_{number}",
        with_batch(_FINISHED, *([sessions.AFTER_RUN] if has_session else []), has_artifacts=False),
        runs,
        session_=tables.sessions,
    )
    for number, has_session in enumerate((False, True))
}
QUICK = (ADD_RUN_QUICKLY, START_RUN_QUICKLY, APPEND_QUICKLY, *_QUICK_FINISHES.values())
"""What every run writes, for `quick_lane`."""


def finish_quickly(*, has_session: bool) -> Prepared:
    """`finish` without artifacts."""
    return _QUICK_FINISHES[has_session]


@cache
def append(*, has_progress: bool, has_artifacts: bool) -> TextClause:
    """Add a batch to a run; returns 1, or 0 when there is no such run, of this epoch, that has not ended."""
    return text(with_batch(_PROGRESSED if has_progress else _LIVING, has_artifacts=has_artifacts))


@cache
def finish(*, has_session: bool, has_artifacts: bool) -> TextClause:
    """End a run with its last batch; returns 1, or 0 when there is no such run, of this epoch, that has not ended."""
    others = [sessions.AFTER_RUN] if has_session else []
    return typed(with_batch(_FINISHED, *others, has_artifacts=has_artifacts), runs, session_=tables.sessions)


def add_parameters(run: Run, epoch: int) -> dict[str, Any]:
    """For `ADD_RUN`."""
    status = RunStatus.QUEUED if run.kernel_id is None else RunStatus.RUNNING
    return {**from_run(run), "status": status.value, "epoch": epoch}


def take_over_parameters(gateway_id: GatewayId, seen: Sequence[Row[Any]]) -> dict[str, Any]:
    """For `TAKE_OVER`, from the rows of `reading.unfinished_epochs`."""
    return {"gateway_id": gateway_id, "run_ids": [row.run_id for row in seen], "epochs": [row.epoch for row in seen]}


def start_parameters(run_id: RunId, epoch: int, kernel_id: KernelId, started_at: datetime) -> dict[str, Any]:
    """For `START_RUN`."""
    return {
        "run_id": run_id,
        "epoch": epoch,
        "kernel_id": kernel_id,
        "started_at": started_at,
        "status": RunStatus.RUNNING.value,
    }


def progress_parameters(progress: Progress) -> dict[str, Any]:
    """For the progress of an `append`."""
    fields = {"file_seq": progress.file_seq, "state": dict(progress.state)}
    return {"taken_seq": progress.taken_seq, "progress": dump_json(fields)}


def finish_parameters(result: Result, epoch: int, finished_at: datetime) -> dict[str, Any]:
    """For a `finish`, less the batch and the session."""
    return {"run_id": result.run_id, "epoch": epoch, "finished_at": finished_at, **from_result(result)}
