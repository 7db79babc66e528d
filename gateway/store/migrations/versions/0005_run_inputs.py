"""Files, paths and environment variables that a run was given: there until it has ended."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add them; most runs have nothing there. The content of files is not compressed: it is soon removed."""
    op.execute("ALTER TABLE runs ADD COLUMN inputs json, ADD COLUMN input_data bytea")
    op.execute("ALTER TABLE runs ALTER COLUMN input_data SET STORAGE EXTERNAL")
