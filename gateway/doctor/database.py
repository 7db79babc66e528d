"""Of the database: whether it answers, what it is, and whether its tables are those of this version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.doctor.findings import Finding, Level
from gateway.doctor.versions import is_older
from sessions.errors import CellblockError

_TIMEOUT_S = 90.0
_OLDEST_SERVER = "14"
_CONNECTIONS = 10
"""Nine of a gateway, and that of a command beside it."""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What a database says of itself. `revision` is that of its tables; None where there are none."""

    server_version: str
    encoding: str
    max_connections: int
    revision: str | None
    known_revisions: Sequence[str]
    now: datetime
    valid_tokens: int
    """Those that `cellblock token create` has made and nobody has revoked."""
    ever_tokens: bool


Look = Callable[[], Awaitable[DatabaseFacts]]


async def ask(look: Look) -> tuple[DatabaseFacts | None, list[Finding]]:
    """What the database says, and what is to be thought of it."""
    try:
        facts = await asyncio.wait_for(look(), _TIMEOUT_S)
    except (CellblockError, TimeoutError) as error:
        what = str(error) or "The database does not answer."
        what_to_do = "Start it, or correct `database.url` (empty: the embedded one)."
        return None, [Finding("database", Level.FAIL, what, what_to_do)]
    return facts, list(database_findings(facts))


def database_findings(facts: DatabaseFacts) -> Iterator[Finding]:
    """Pure."""
    if is_older(facts.server_version, _OLDEST_SERVER):
        what = f"The database server is too old: it is PostgreSQL {facts.server_version}"
        yield Finding("database", Level.FAIL, what, f"Use PostgreSQL {_OLDEST_SERVER} or newer.")
    elif facts.encoding != "UTF8":
        what = f"The database's encoding is {facts.encoding}"
        yield Finding("database", Level.FAIL, what, "Create one with ENCODING 'UTF8'.")
    elif facts.max_connections < _CONNECTIONS:
        what = f"The database takes {facts.max_connections} connections; a gateway uses up to 9"
        yield Finding("database", Level.WARN, what, "Raise `max_connections` of the server.")
    else:
        yield Finding("database", Level.OK, f"it answers: PostgreSQL {facts.server_version}")
    yield _tables(facts.revision, facts.known_revisions)


def _tables(revision: str | None, known: Sequence[str]) -> Finding:
    if revision is None:
        return Finding("tables", Level.OK, "none yet; the first `cellblock serve` makes them")
    if revision not in known:
        what = f"The database has the shape of a newer Cellblock (revision {revision})"
        return Finding("tables", Level.FAIL, what, "Update this one, or give it another database.")
    if missing := len(known) - 1 - known.index(revision):
        what = f"The tables are of revision {revision}; {missing} migration{'s' if missing > 1 else ''} to go"
        return Finding("tables", Level.WARN, what, "`cellblock serve` brings them up to date, or `cellblock migrate`.")
    return Finding("tables", Level.OK, f"of this version (revision {revision})")
