"""What comes from outside, made fit for everybody else. Pure, and in linear time whatever comes.

Text out of a sandbox: no ANSI codes, no lone surrogates, no odd paths. JSON: how many values it may hold, judged before
it is decoded, and how deep it may be.
"""

from __future__ import annotations

import math
import re
import uuid
from typing import Any

from kernel_image.protocol import MAX_PATH_CHARACTERS

# ECMA-48: CSI sequences, OSC strings, two-character escapes; and an escape alone, or the rest could make a new one.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>])?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = re.compile("(?<![\ud800-\udbff])[\udc80-\udcff]")


def strip_ansi(text: str) -> str:
    """The text without terminal control sequences."""
    return _ANSI.sub("", text) if "\x1b" in text else text


def well_formed(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD, so that it can be encoded as UTF-8."""
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def well_formed_json(value: Any, *, keeps_text: bool = False) -> Any:
    """A JSON value with null for what is not finite, and, unless it `keeps_text`, without lone surrogates.

    Its depth must be bounded already.
    """
    match value:
        case str():
            return value if keeps_text else well_formed(value)
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {
                well_formed_json(str(key), keeps_text=keeps_text): well_formed_json(item, keeps_text=keeps_text)
                for key, item in value.items()
            }
        case list() | tuple():
            return [well_formed_json(item, keeps_text=keeps_text) for item in value]
        case _:
            return value


def canonical_uuid(text: str) -> str | None:
    """The UUID as it is usually written; None for what is none, and for other ways to write one."""
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        return None
    return canonical if len(text) == len(canonical) else None


def relative_path(path: Any) -> str | None:
    """The path when it is one that stays below a directory; None for everything else a sandbox may say.

    Bytes that are no UTF-8, which Python has as lone surrogates (PEP 383), are percent-escaped: two names stay two.
    """
    if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH_CHARACTERS or "\0" in path:
        return None
    if any(part in ("", ".", "..") for part in path.split("/")):
        return None
    return well_formed(_ESCAPED_BYTE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", path))


def cut_utf8(text: str, limit_bytes: int) -> str:
    """The longest beginning of the text that takes at most `limit_bytes` in UTF-8."""
    if len(text) * 4 <= limit_bytes:
        return text
    return text.encode()[: max(0, limit_bytes)].decode("utf-8", "ignore")


_CONTAINERS = (dict, list)
# Closed or cut off, and possessive, so that no text takes more than one pass.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def has_too_many_values(text: str, *, max_values: int, max_containers: int) -> bool:
    """Whether decoding would hold up everybody else: 16 MB of one string take 20 ms, 16 MB of empty lists 7 s.

    A list or object costs about ten times as much as a number, so there is a bound of its own for them. What stands
    inside of strings does not count.
    """
    if len(text) <= max_values and len(text) <= max_containers:
        return False
    if _is_within(text, max_values, max_containers):
        return False
    strings = (text.count('"') - text.count('\\"')) // 2
    return strings > max_values or not _is_within(_STRING.sub("", text), max_values, max_containers)


def is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` deep."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, _CONTAINERS)
        ]
        if not level:
            return False
    return bool(level)


def _is_within(text: str, max_values: int, max_containers: int) -> bool:
    """Whether the bounds hold even if nothing of the text stands inside of strings."""
    containers = text.count("[") + text.count("{")
    return containers <= max_containers and containers + text.count(",") <= max_values
