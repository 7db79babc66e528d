"""JSON as the standard library reads and writes it, in a fraction of its time for what is plain.

What msgspec refuses (lone surrogates, NaN, keys that are no strings) the standard library does, or refuses as well.
How large or deep a text may be is decided elsewhere.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from sessions.sanitize import well_formed_json

_DECODER = msgspec.json.Decoder()
_STANDARD = json.JSONDecoder()


def load(text: str, otherwise: json.JSONDecoder = _STANDARD) -> Any:
    """What this text says, with the errors of `otherwise`: those of `json.loads`."""
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return otherwise.decode(text)


def dump(value: Any) -> bytes:
    """The value in UTF-8, or where that is impossible in ASCII. What is not finite becomes null."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, UnicodeEncodeError):
        return json.dumps(well_formed_json(value, keeps_text=True)).encode()
