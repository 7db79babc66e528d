"""Brings a database to the current shape: all missing migrations in one transaction, one gateway at a time.

The shape is in `tables`, the steps are in `migrations/versions`. Alembic is imported only when a step is missing.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, exc, text

from gateway.store.engine import make_engine, outages_as_unavailable
from sessions.errors import SetUpFailed

MIGRATIONS = Path(__file__).parent / "migrations"
VERSIONS = MIGRATIONS / "versions"
_LOOK = """
SELECT current_setting('server_version'), current_setting('server_encoding'),
       current_setting('max_connections')::int, clock_timestamp()
"""
_LOCK_KEY = 0x63656C6C  # "cell"
_LOCK_TIMEOUT_S = 120
_OLDEST_SERVER = 140_000
_LOCK_NOT_AVAILABLE = "55P03"
_INSUFFICIENT_PRIVILEGE = "42501"


def known_revisions() -> list[str]:
    """The revisions of this version's migrations, oldest first: the numbers that their files' names begin with."""
    return sorted(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py"))


class Shape(NamedTuple):
    """What a database is. `revision` is that of its tables; None where there are none."""

    server_version: str
    encoding: str
    max_connections: int
    revision: str | None
    now: datetime


def shape_of(url: str, *, connect_timeout_s: float = 5.0) -> Shape:
    """Look at the database at `url`, and change nothing. Blocks. Raises StoreUnavailable."""
    engine = make_engine(url, pool_size=1, connect_timeout_s=connect_timeout_s)
    try:
        with outages_as_unavailable(), engine.connect() as connection:
            version, encoding, most, now = connection.execute(text(_LOOK)).one()
            return Shape(version.partition(" ")[0], encoding, most, _current_revision(connection), now)
    finally:
        engine.dispose()


def migrate(url: str, *, connect_timeout_s: float = 5.0) -> bool:
    """Bring the database at `url` to the current shape; returns whether there was something to do. Blocks.

    An interrupted migration leaves nothing behind. Of gateways that start together, one migrates and the others wait.
    Raises StoreUnavailable when the database is out of reach, and SetUpFailed, saying what to do, when it is unusable.
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
    known = known_revisions()
    current = _current_revision(connection)
    if current is not None and current not in known:
        raise SetUpFailed(
            f"The database has the shape of a newer Cellblock (revision {current}): update this one, or give it "
            "another database."
        )
    if current == known[-1]:
        return False
    _upgrade(connection)
    return True


def _current_revision(connection: Connection) -> str | None:
    """The revision that Alembic noted in the database; None for a database without tables."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return revision


def _upgrade(connection: Connection) -> None:
    from alembic import command  # a fifth of a second of imports, seldom needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _check_server(connection: Connection) -> None:
    version, encoding = connection.execute(
        text("SELECT current_setting('server_version_num')::int, current_setting('server_encoding')")
    ).one()
    if version < _OLDEST_SERVER:
        raise SetUpFailed("The database server is too old: Cellblock needs PostgreSQL 14 or newer.")
    if encoding != "UTF8":
        raise SetUpFailed(f"The database's encoding is {encoding}: create one with ENCODING 'UTF8'.")


def _lock(connection: Connection) -> None:
    """Take the lock that gateways migrate under; the server releases it with the transaction."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
    try:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    except exc.OperationalError as error:
        if getattr(error.orig, "pgcode", None) == _LOCK_NOT_AVAILABLE:
            raise SetUpFailed(
                f"Another gateway has been migrating the database for {_LOCK_TIMEOUT_S} s: wait for it, then retry."
            ) from error
        raise
