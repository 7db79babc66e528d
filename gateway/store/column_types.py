"""Column types for any Python string and any JSON value, including those that PostgreSQL refuses.

Ordinary text is stored unchanged, readable in psql.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import msgspec
from sqlalchemy import Dialect, types

from sessions.sanitize import well_formed_json

# U+001A is SUBSTITUTE, "used in the place of a character that is invalid". It, and what PostgreSQL's text cannot hold
# (NUL, and surrogates, which UTF-8 has no form for), become U+001A and four hexadecimal digits.
_ESCAPE = "\x1a"
_UNSTORABLE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def escape_text(text: str) -> str:
    """A form of `text` that PostgreSQL can store; mostly `text` itself. `unescape_text` is its inverse."""
    if "\x00" not in text and _ESCAPE not in text and (text.isascii() or _is_utf8(text)):
        return text
    return _UNSTORABLE.sub(lambda match: f"{_ESCAPE}{ord(match[0]):04x}", text)


def unescape_text(stored: str) -> str:
    """The inverse of `escape_text`."""
    if _ESCAPE not in stored:
        return stored
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), stored)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def dump_json(value: Any) -> str:
    """JSON in ASCII: NUL and lone surrogates are escaped, non-finite numbers become null."""
    with suppress(TypeError, UnicodeEncodeError):  # what it does not know, the other one does in ten times the time
        data = msgspec.json.encode(value)
        if data.isascii():
            return data.decode()
    try:
        return _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(well_formed_json(value, keeps_text=True))


class LosslessText(types.TypeDecorator[str]):
    """`text` that holds every Python string. SQL that looks into it sees the escaped form."""

    impl = types.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        return None if value is None else escape_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        return None if value is None else unescape_text(value)


class LosslessJSON(types.UserDefinedType[Any]):
    r"""`json`, which keeps `\u0000` and lone surrogates as they were written. `jsonb` would refuse them."""

    cache_ok = True

    def get_col_spec(self, **_options: Any) -> str:
        return "JSON"

    def bind_processor(self, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's
        return lambda value: None if value is None else dump_json(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:  # noqa: ARG002 - SQLAlchemy's
        # psycopg2 itself decodes json unless told otherwise.
        return lambda value: json.loads(value) if isinstance(value, str) else value
