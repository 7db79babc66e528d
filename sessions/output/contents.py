"""Reads single fields of a kernel's message, which hostile code may have written. Pure."""

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
    """The id under which a display can be updated, if it has one."""
    transient = content.get("transient")
    given = transient.get("display_id") if isinstance(transient, dict) else None
    return well_formed(given[:256]) if isinstance(given, str) else None


def metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a display, such as an image's width; empty when it is too large."""
    given = content.get("metadata")
    if not isinstance(given, dict) or len(json.dumps(given)) > _MAX_METADATA_CHARACTERS:
        return {}
    kept: dict[str, Any] = well_formed_json(given)
    return kept


def without_ansi(data: Any) -> Any:
    """A MIME bundle whose texts have no terminal escape sequences."""
    if not isinstance(data, dict):
        return data
    return {key: strip_ansi(value) if isinstance(value, str) else value for key, value in data.items()}
