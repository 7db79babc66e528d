"""What Jupyter's REST API calls a session."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add it, and the count of its changes."""
    op.execute(
        """
        ALTER TABLE sessions
            ADD COLUMN jupyter json,
            ADD COLUMN jupyter_version bigint NOT NULL DEFAULT 0
        """
    )
