"""Brings a database to the current shape: the migrations, all in one transaction, one gateway at a time.

What the shape is says `tables`; what each step does, `migrations/versions`.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, exc, text

from gateway.store.engine import make_engine, outages_as_unavailable
from sessions.errors import SetUpFailed

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x63656C6C  # "cell"
_LOCK_PATIENCE_S = 120
_OLDEST_SERVER = 140_000
_LOCK_NOT_AVAILABLE = "55P03"
_INSUFFICIENT_PRIVILEGE = "42501"


def migrate(url: str, *, connect_timeout_s: float = 5.0) -> bool:
    """Bring the database at `url` to the current shape; returns whether there was something to do. Blocks.

    Interrupted, it leaves nothing behind. Of gateways that start together one migrates and the others wait. Raises
    StoreUnavailable when the database is out of reach, and SetUpFailed, saying what to do, when it cannot be used.
    """
    engine = make_engine(url, pool_size=1, connect_timeout_s=connect_timeout_s)
    try:
        with outages_as_unavailable(), engine.connect() as connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                return _migrate(connection)
    except exc.DBAPIError as error:
        if getattr(error.orig, "pgcode", None) == _INSUFFICIENT_PRIVILEGE:
            raise SetUpFailed(
                "The database's user may not create tables: grant it CREATE on the schema, or make it the owner."
            ) from error
        raise
    finally:
        engine.dispose()


def _migrate(connection: Connection) -> bool:
    _check_server(connection)
    _lock(connection)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise SetUpFailed(
            f"The database has the shape of a newer Cellblock (revision {current}): update this one, or give it "
            "another database."
        )
    if current == scripts.get_current_head():
        return False
    command.upgrade(config, "head")
    return True


def _check_server(connection: Connection) -> None:
    version, encoding = connection.execute(
        text("SELECT current_setting('server_version_num')::int, current_setting('server_encoding')")
    ).one()
    if version < _OLDEST_SERVER:
        raise SetUpFailed("The database server is too old: Cellblock needs PostgreSQL 14 or newer.")
    if encoding != "UTF8":
        raise SetUpFailed(f"The database's encoding is {encoding}: create one with ENCODING 'UTF8'.")


def _lock(connection: Connection) -> None:
    """Held to the end of the transaction, however that ends."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_PATIENCE_S}s'"))
    try:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    except exc.OperationalError as error:
        if getattr(error.orig, "pgcode", None) == _LOCK_NOT_AVAILABLE:
            raise SetUpFailed(
                f"Another gateway has been migrating the database for {_LOCK_PATIENCE_S} s: wait for it, then retry."
            ) from error
        raise
