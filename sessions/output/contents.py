"""What is believed of the content of a kernel's message. Pure; hostile code wrote it, and anything may be in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sessions.sanitize import strip_ansi, well_formed, well_formed_json

_MAX_METADATA_CHARACTERS = 1024


def execution_count(content: Mapping[str, Any]) -> int | None:
    """The number in `In [1]`, if it is one."""
    count = content.get("execution_count")
    return count if type(count) is int and 0 <= count < 1 << 31 else None


def display_id(content: Mapping[str, Any]) -> str | None:
    """Under which id a display can be updated, if it says so."""
    transient = content.get("transient")
    given = transient.get("display_id") if isinstance(transient, dict) else None
    return well_formed(given[:256]) if isinstance(given, str) else None


def metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a display says of its parts, an image's width for one; none of it where it is too much."""
    given = content.get("metadata")
    if not isinstance(given, dict) or len(json.dumps(given)) > _MAX_METADATA_CHARACTERS:
        return {}
    kept: dict[str, Any] = well_formed_json(given)
    return kept


def without_ansi(data: Any) -> Any:
    """A MIME bundle with the escape sequences of terminals taken out of its texts."""
    if not isinstance(data, dict):
        return data
    return {key: strip_ansi(value) if isinstance(value, str) else value for key, value in data.items()}
