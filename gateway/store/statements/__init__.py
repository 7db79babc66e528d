"""The SQL of `PostgresStore`, by what it is about, each statement with the parameters that it takes from our records.

One statement is one round trip and one transaction. Nothing here opens a connection.
"""

from __future__ import annotations

from sqlalchemy import Table, TextClause, bindparam, text


def typed(sql: str, table: Table, *columns: str) -> TextClause:
    """A statement whose parameters named like columns of `table` are converted as those columns are."""
    return text(sql).bindparams(*(bindparam(name, type_=table.c[name].type) for name in columns))
