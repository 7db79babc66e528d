"""Alembic's entry point: runs the migrations on the connection, and in the transaction, of `gateway.store.migrate`.

It makes no connection and no decision of its own.
"""

from __future__ import annotations

from alembic import context

from gateway.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
