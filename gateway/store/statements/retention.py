"""The statements that remove what is old, in batches.

So no lock is held for long, and gateways that share the database do not wait for each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import text

from sessions.model import RunStatus

_BATCH = 100

# What a gateway left unfinished for ever is over once its time limit has passed; the run becomes `lost`. Returns how
# many runs it concerned.
EXPIRE = text(
    """
    WITH due AS (
        SELECT run_id FROM runs
        WHERE expired_at IS NULL AND created_at < :before
              AND (finished_at IS NOT NULL OR created_at + make_interval(secs => timeout_s) < :before)
        ORDER BY created_at LIMIT :batch FOR UPDATE SKIP LOCKED
    ), without_events AS (
        DELETE FROM events USING due WHERE events.run_id = due.run_id
    ), without_artifacts AS (
        DELETE FROM artifacts USING due WHERE artifacts.run_id = due.run_id
    ), expired AS (
        UPDATE runs SET expired_at = now(), code = NULL, variables = NULL, jupyter = NULL, inputs = NULL,
                        input_data = NULL, traceparent = NULL, output = NULL, stderr = NULL, answer = NULL,
                        taken_seq = NULL, progress = NULL,
                        status = CASE WHEN finished_at IS NULL THEN :lost ELSE status END,
                        finished_at = coalesce(finished_at, now())
        FROM due WHERE runs.run_id = due.run_id
    )
    SELECT count(*) FROM due
    """
)
DELETE_TOMBSTONES = text(
    """
    DELETE FROM runs WHERE run_id IN (
        SELECT run_id FROM runs WHERE expired_at < :before ORDER BY expired_at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    """
)


def parameters(before: datetime) -> dict[str, Any]:
    """For each of them."""
    return {"before": before, "batch": _BATCH, "lost": RunStatus.LOST.value}
