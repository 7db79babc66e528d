"""Sessions that are used, runs that can be listed, followed and gone on with."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = (
    # The runs that are there get their numbers in the order in which they were added.
    "ALTER TABLE runs ADD COLUMN number bigint",
    """
    UPDATE runs SET number = numbered.number
    FROM (SELECT run_id, row_number() OVER (ORDER BY created_at, run_id) AS number FROM runs) AS numbered
    WHERE runs.run_id = numbered.run_id
    """,
    "ALTER TABLE runs ALTER COLUMN number SET NOT NULL",
    "ALTER TABLE runs ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY",
    """
    SELECT setval(pg_get_serial_sequence('runs', 'number'), coalesce(max(number), 0) + 1, false) FROM runs
    """,
    """
    ALTER TABLE runs
        ADD COLUMN started_at timestamptz,
        ADD COLUMN allow_stdin boolean NOT NULL DEFAULT false,
        ADD COLUMN taken_seq bigint,
        ADD COLUMN progress json,
        ADD COLUMN epoch integer NOT NULL DEFAULT 0
    """,
    # Progress is written several times a second while a run has output: with room on the page, and no index on those
    # columns, that costs no index entries (a heap-only update).
    "ALTER TABLE runs SET (fillfactor = 90)",
    "DROP INDEX runs_of_tenant",
    "DROP INDEX runs_of_session",
    "CREATE INDEX runs_of_tenant ON runs (tenant, number) WHERE expired_at IS NULL",
    """
    CREATE INDEX runs_of_session ON runs (tenant, session_id, number)
    WHERE session_id IS NOT NULL AND expired_at IS NULL
    """,
    # Until now no session was ever stored. A row that is out of date may name a kernel that another session has now.
    """
    ALTER TABLE sessions
        DROP CONSTRAINT sessions_kernel_id_key,
        ALTER COLUMN kernel_id DROP NOT NULL,
        DROP COLUMN credential_sha256,
        DROP COLUMN state,
        DROP COLUMN variables_lost,
        ADD COLUMN generation integer NOT NULL DEFAULT 0,
        ADD COLUMN news text NOT NULL DEFAULT 'none',
        ADD COLUMN version bigint NOT NULL DEFAULT 0
    """,
    "DROP INDEX sessions_to_cull",
)


def upgrade() -> None:
    """Add what runs and sessions lack, and drop what sessions turned out not to need."""
    for statement in _STATEMENTS:
        op.execute(statement)
