"""The header `traceparent` of W3C Trace Context (https://www.w3.org/TR/trace-context/). Pure."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<ids>(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?"
)
_KNOWN = "00"


def traceparent_of(header: str | None) -> str | None:
    """What it says, as version 00 has it: 55 characters. None where it is not there, or not as the standard wants it.

    Of a later version, what is known of it counts; the standard says so.
    """
    if header is None or (found := _TRACEPARENT.fullmatch(header)) is None:
        return None
    if found["version"] == _KNOWN and found["rest"] is not None:
        return None
    return f"{_KNOWN}-{found['ids']}-{found['flags']}"
