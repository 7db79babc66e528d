"""The trace that a run belongs to, where its client named one."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; runs of other clients have nothing there."""
    op.execute("ALTER TABLE runs ADD COLUMN traceparent text")
