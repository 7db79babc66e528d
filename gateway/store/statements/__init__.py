"""The SQL of `PostgresStore`, by subject, each statement with the function that makes its parameters from our records.

One statement is one round trip and one transaction. Nothing here opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import LargeBinary, Table, TextClause, bindparam, text

from gateway.store.column_types import LosslessJSON, LosslessText

_PARAMETER = re.compile(r"(?<!:):(\w+)")


def typed(sql: str, table: Table, **prefixed: Table) -> TextClause:
    """A statement whose parameters are converted as the columns of `table` that have their names.

    A keyword is a prefix: `session_=sessions` converts `:session_tenant` as the column `tenant` of `sessions`.
    """
    tables = {"": table, **prefixed}
    types = {prefix + column.name: column.type for prefix, table in tables.items() for column in table.columns}
    converted = {
        name: kind
        for name in _PARAMETER.findall(sql)
        if isinstance(kind := types.get(name), (LosslessText, LosslessJSON, LargeBinary))
    }
    return text(sql).bindparams(*(bindparam(name, type_=kind) for name, kind in converted.items()))


def insert(table: Table, columns: Iterable[str]) -> str:
    """SQL that inserts one row, whose values are parameters named like their columns."""
    names = list(columns)
    values = ", ".join(f":{name}" for name in names)
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values})"  # noqa: S608 - the tables' own names
