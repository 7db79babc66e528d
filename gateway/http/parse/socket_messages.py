"""What a client says over `/runcode/ws`, by type: docs/http.md has the table. Pure."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from gateway.field_errors import near, shown
from gateway.http.parse.body import fields_of, parse_json_object
from gateway.http.parse.run_request import RunFields
from sessions.errors import InvalidJSON, InvalidRequest
from sessions.sanitize import well_formed

MessageId = str | int | float
"""What a client calls a message; its answers carry it unchanged."""

_MAX_ID_CHARACTERS = 128


class RunMessage(RunFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`{"op": "run"}`: the fields of `POST /runcode`, and one that is a header there."""

    idempotency_key: str | None = None
    """What the header `Idempotency-Key` is for `POST /runcode`."""


class InputMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`{"op": "input"}`: the line that `input()` returns."""

    run_id: str
    """The run that asks."""
    value: str
    """The line, without its end."""


class InterruptMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`{"op": "interrupt"}`: what Ctrl-C does."""

    run_id: str
    """Any run of yours that is running."""


Message = RunMessage | InputMessage | InterruptMessage
MESSAGES: dict[str, type[Message]] = {"run": RunMessage, "input": InputMessage, "interrupt": InterruptMessage}
"""What each `op` takes."""


def parse_message(message: str | bytes) -> dict[str, Any]:
    """A message as a JSON object. Raises InvalidJSON and InvalidRequest."""
    if isinstance(message, bytes):
        raise InvalidRequest("A message is one JSON object in a text frame: binary frames are not read here.")
    try:
        return parse_json_object(message.encode())
    except InvalidJSON as error:
        raise InvalidJSON(str(error).replace("The body", "The message", 1)) from error


def message_id(value: dict[str, Any]) -> MessageId | None:
    """Take the `id` out of a message; None where there is none. Raises InvalidRequest."""
    given: MessageId | bool | None = value.pop("id", None)
    # An answer has U+FFFD for each lone surrogate, which is not what it was called.
    is_text = isinstance(given, str) and len(given) <= _MAX_ID_CHARACTERS and well_formed(given) == given
    if given is None or is_text:
        return given
    # An integer beyond all floats has no str() either, if it is long enough: its size is looked at first.
    is_integer = isinstance(given, int) and not isinstance(given, bool) and abs(given) < 10**_MAX_ID_CHARACTERS
    is_finite = isinstance(given, float) and math.isfinite(given)
    if (is_integer or is_finite) and len(str(given)) <= _MAX_ID_CHARACTERS:
        return given
    raise InvalidRequest(
        f'"id" must be a string of up to {_MAX_ID_CHARACTERS} characters, none of them a lone surrogate, or a number.'
    )


def typed(value: dict[str, Any]) -> Message:
    """The rest of a message, by its `op`. Raises InvalidRequest."""
    op = value.pop("op", None)
    if not isinstance(op, str):
        raise InvalidRequest('The field "op" is required: "run", "input" or "interrupt".')
    if op not in MESSAGES:
        raise InvalidRequest(f'There is no op "{shown(op)}"{near(op, MESSAGES) or ": use run, input or interrupt."}')
    return fields_of(MESSAGES[op], value)
