"""The SQL of `PostgresStore`, by subject, each statement with the function that makes its parameters from our records.

One statement is one round trip and one transaction. Nothing here opens a connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import LargeBinary, Table, TextClause, bindparam, text

from gateway.store.column_types import LosslessJSON, LosslessText, dump_json, escape_text

_PARAMETER = re.compile(r"(?<!:):(\w+)")


def typed(sql: str, table: Table, **prefixed: Table) -> TextClause:
    """A statement whose parameters are converted as the columns of `table` that have their names.

    A keyword is a prefix: `session_=sessions` converts `:session_tenant` as the column `tenant` of `sessions`.
    """
    converted = _converted(sql, {"": table, **prefixed})
    return text(sql).bindparams(*(bindparam(name, type_=kind) for name, kind in converted.items()))


def _converted(sql: str, tables: Mapping[str, Table]) -> dict[str, LosslessText | LosslessJSON | LargeBinary]:
    """The types of those parameters that are converted."""
    types = {prefix + column.name: column.type for prefix, table in tables.items() for column in table.columns}
    return {
        name: kind
        for name in _PARAMETER.findall(sql)
        if isinstance(kind := types.get(name), (LosslessText, LosslessJSON, LargeBinary))
    }


class Prepared:
    """The same statement for `quick_lane`: `prepare` plans it once a connection, and `execute` takes its `values`."""

    def __init__(self, name: str, sql: str, table: Table, **prefixed: Table) -> None:
        """Parameters are converted as by `typed`."""
        self._names = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        numbers = {name: f"${number}" for number, name in enumerate(self._names, 1)}
        numbered = _PARAMETER.sub(lambda match: numbers[match[1]], sql)
        self.prepare = f"PREPARE {name} AS {numbered}"
        self.execute = f"EXECUTE {name} ({', '.join(['%s'] * len(self._names))})"
        converted = _converted(sql, {"": table, **prefixed})
        self._converters = [_converter(converted.get(name)) for name in self._names]

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the statement, as psycopg2 takes them."""
        pairs = zip(self._names, self._converters, strict=True)
        return [
            value if (value := parameters[name]) is None or convert is None else convert(value)
            for name, convert in pairs
        ]


def _converter(kind: LosslessText | LosslessJSON | LargeBinary | None) -> Callable[[Any], Any] | None:
    if isinstance(kind, LosslessText):
        return escape_text
    return dump_json if isinstance(kind, LosslessJSON) else None


def insert(table: Table, columns: Iterable[str]) -> str:
    """SQL that inserts one row, whose values are parameters named like their columns."""
    names = list(columns)
    values = ", ".join(f":{name}" for name in names)
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values})"  # noqa: S608 - the tables' own names
