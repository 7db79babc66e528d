"""Turns msgspec's validation messages into one plain sentence that names the field and suggests the near one.

Used for the configuration and for request bodies alike. It validates nothing itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import msgspec

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>.*)`")
_WRONG_TYPE = re.compile(r"Expected `(?P<expected>.*)`, got `(?P<got>.*)`")
_OUT_OF_BOUNDS = re.compile(r"Expected `(?P<expected>\w+)` (?P<bound>[<>]=?) (?P<limit>[-\d.e+]+)")
_NO_MATCH = re.compile(r"Expected `str` matching regex (?P<regex>.*)", re.DOTALL)
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?:key` in `)?\$(?P<path>.*)`)?$", re.DOTALL)

_PLAIN_NAMES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}
_BOUNDS = {">": "above", ">=": "of at least", "<": "below", "<=": "of at most"}
_SHOWN_CHARACTERS = 60


def near(name: str, known: Iterable[str]) -> str:
    """`, did you mean "code"?` or an empty string; `name` is compared without regard to case."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower()[:_SHOWN_CHARACTERS], by_lower, n=1, cutoff=0.6)
    return f', did you mean "{by_lower[found[0]]}"?' if found else ""


def shown(name: str) -> str:
    """A name from outside, made fit for a message: bounded, printable."""
    text = name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def complaint(error: msgspec.ValidationError, known: Iterable[str], *, prefix: str = "") -> str:
    """Say what is wrong, e.g. `"timeout" must be a number or null, not a string`.

    `known` are the field names to suggest from; `prefix` comes before the field's name (`server.`).
    """
    split = _PATH.match(str(error))
    what, path = (split["what"], split["path"] or "") if split else (str(error), "")
    field = prefix + path.removeprefix(".") if path else prefix.removesuffix(".")
    if unknown := _UNKNOWN_FIELD.match(what):
        name = unknown["name"]
        return f'there is no field "{prefix}{shown(name)}"{near(name, known)}'
    if missing := _MISSING_FIELD.match(what):
        return f'the field "{prefix}{missing["name"]}" is required'
    subject = f'"{shown(field)}"' if field else "the value"
    if wrong := _WRONG_TYPE.match(what):
        return f"{subject} must be {_plain(wrong['expected'])}, not {_plain(wrong['got'])}"
    if bounds := _OUT_OF_BOUNDS.match(what):
        limit = bounds["limit"].removesuffix(".0")
        return f"{subject} must be {_plain(bounds['expected'])} {_BOUNDS[bounds['bound']]} {limit}"
    if pattern := _NO_MATCH.match(what):
        return f"{subject} must match {pattern['regex']}"
    return f"{subject}: {what[:1].lower()}{what[1:]}".replace("`", "")


def _plain(types: str) -> str:
    """`float | null` becomes `a number or null`."""
    return " or ".join(_PLAIN_NAMES.get(name, name) for name in types.split(" | "))
