"""Runs that a Jupyter client asked for: how it asked, so that it can be answered after a crash of the gateway too."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; runs of other clients have nothing there."""
    op.execute("ALTER TABLE runs ADD COLUMN jupyter json")
