"""How to reach the database: URLs, engines, and which errors mean that it is out of reach.

It runs no queries of its own, beyond setting up a connection.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from psycopg2 import errors
from sqlalchemy import URL, Dialect, Engine, QueuePool, create_engine, event, exc, make_url
from sqlalchemy.dialects.postgresql import psycopg2

from sessions.errors import Misconfigured, StoreExhausted, StoreFull, StoreReadOnly, StoreUnavailable

_DRIVER = "postgresql+psycopg2"
_ACCEPTED_SCHEMES = ("postgresql", "postgres", _DRIVER)
_SQLSTATES_OF_OUTAGE = ("08", "25006", "28", "3D", "40", "53", "57", "58", "XX")
"""Their first characters: connection, read-only server, log-in, no such database, conflict with another transaction,
resources (disk full, too many connections), operator, system, internal error."""

_DISK_FULL = "53100"
_READ_ONLY = "25006"
_OUT_OF_RESOURCES = "53"
# What fails while it connects has no SQLSTATE: https://github.com/psycopg/psycopg2/issues/1006
_SENTENCES: tuple[tuple[str, type[StoreUnavailable]], ...] = (
    (os.strerror(errno.ENOSPC), StoreFull),
    ("too many clients already", StoreExhausted),
    ("remaining connection slots are reserved", StoreExhausted),
    ("too many connections for", StoreExhausted),
)


def parse_url(url: str) -> URL:
    """The URL with our driver in it. Raises Misconfigured, without repeating the URL: it may hold a password."""
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in _ACCEPTED_SCHEMES:
        raise Misconfigured("database.url must look like postgresql://user:password@host:5432/database.")
    return parsed.set(drivername=_DRIVER)


def make_engine(url: str, *, pool_size: int, connect_timeout_s: float) -> Engine:
    """An engine in autocommit mode with at most `pool_size` connections. Connects on first use.

    Needs PostgreSQL 14 or newer.
    """
    engine = create_engine(
        parse_url(url),
        isolation_level="AUTOCOMMIT",
        use_native_hstore=False,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=connect_timeout_s,
        pool_use_lifo=True,
        hide_parameters=True,  # users' code does not belong in the log
        connect_args=_options(connect_timeout_s),
    )
    event.listen(engine, "connect", _prepare)
    return engine


def connect_arguments(url: str, connect_timeout_s: float) -> dict[str, Any]:
    """The same connection's arguments, for psycopg2 itself."""
    dialect: Dialect = psycopg2.dialect()  # type: ignore[no-untyped-call]
    return {**dialect.create_connect_args(parse_url(url))[1], **_options(connect_timeout_s)}


def _options(connect_timeout_s: float) -> dict[str, Any]:
    timeout_s = max(1, int(connect_timeout_s))
    return {"connect_timeout": timeout_s, "application_name": "cellblock", "client_encoding": "utf8"}


def _prepare(connection: Any, _record: object) -> None:
    """Let the server notice that we have hung up, rather than finish a slow statement for nobody."""
    with connection.cursor() as cursor, suppress(errors.InvalidParameterValue):  # a server on Windows cannot
        cursor.execute("SET client_connection_check_interval = '2s'")


def is_outage(error: exc.SQLAlchemyError) -> bool:
    """Whether the database is unavailable, as opposed to our request being wrong."""
    if isinstance(error, exc.TimeoutError):
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    sqlstate: str | None = getattr(error.orig, "pgcode", None)
    if sqlstate is None:
        return isinstance(error, (exc.OperationalError, exc.InterfaceError))
    return error.connection_invalidated or sqlstate.startswith(_SQLSTATES_OF_OUTAGE)


def unavailable(error: exc.SQLAlchemyError) -> StoreUnavailable:
    """What an outage is to be called: a database that answers, and says what it lacks, is not out of reach."""
    cause = error.orig if isinstance(error, exc.DBAPIError) else None
    sqlstate: str = getattr(cause, "pgcode", None) or ""
    if sqlstate == _DISK_FULL:
        return StoreFull()
    if sqlstate == _READ_ONLY:
        return StoreReadOnly()
    if sqlstate.startswith(_OUT_OF_RESOURCES):
        return StoreExhausted()
    text = str(cause or "")
    kinds = (kind for sentence, kind in _SENTENCES if sentence in text)
    return next(kinds, StoreUnavailable)()


@contextmanager
def outages_as_unavailable() -> Iterator[None]:
    """Turn errors of an unavailable database into a kind of StoreUnavailable."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        if is_outage(error):
            raise unavailable(error) from error
        raise
