"""What JSON from outside may cost: how many values it may hold, judged before it is decoded, and how deep it may be.

Pure, and in linear time whatever the text is. It decodes nothing and knows no error that a client would see.
"""

from __future__ import annotations

import re
from typing import Any

_CONTAINERS = (dict, list)
# Closed or cut off, and possessive, so that no text takes more than one pass.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def has_too_many_values(text: str, *, max_values: int, max_containers: int) -> bool:
    """Whether decoding would hold up everybody else: 16 MB of one string take 20 ms, 16 MB of empty lists 7 s.

    A list or object costs about ten times as much as a number, so there is a bound of its own for them. What stands
    inside of strings does not count.
    """
    if len(text) <= min(max_values, max_containers) or _is_within(text, max_values, max_containers):
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
