"""How an error reads to a client: its HTTP status, its sentence, and its message on a WebSocket. Pure."""

from __future__ import annotations

from typing import Any

from gateway.http.parse.socket_messages import MessageId
from sessions.errors import CellblockError
from sessions.sanitize import well_formed

STATUS_OF_CODE = {
    "invalid_json": 400,
    "invalid_request": 400,
    "unsupported_language": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "gone": 410,
    "too_large": 413,
    "unsupported_media_type": 415,
    "too_many_requests": 429,
    "end_not_stored": 500,
    "unavailable": 503,
    "timeout": 504,
}
"""The one table from an error's `code` to an HTTP status; any other code is a 500 without details."""

INTERNAL_SENTENCE = "Something went wrong inside Cellblock; its log tells more under this request id."
SHAPE_OF_STATUS = {
    400: ("invalid_request", "The request is malformed."),
    403: ("forbidden", "This is not allowed."),
    404: ("not_found", "There is nothing here: see / for the routes."),
    405: ("method_not_allowed", "This route does not take this method."),
}
"""Code and sentence of an answer that tornado itself decided on."""


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    return STATUS_OF_CODE.get(error.code, 500) if isinstance(error, CellblockError) else 500


def error_fields(error: Exception) -> dict[str, Any]:
    """`error`, `code` and, where HTTP has the header, `retry_after`."""
    fields: dict[str, Any] = {"error": INTERNAL_SENTENCE, "code": "internal"}
    if isinstance(error, CellblockError):
        if error.code in STATUS_OF_CODE:
            fields = {"error": well_formed(str(error)), "code": error.code}
        if error.retry_after_s is not None:
            fields["retry_after"] = error.retry_after_s
    return fields


def error_message(error: Exception, identifier: MessageId | None) -> dict[str, Any]:
    """The error shape of HTTP as a message, with the `id` of the client's message that caused it."""
    return {"type": "error", **error_fields(error), "id": identifier}
