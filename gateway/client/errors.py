"""What can go wrong for a caller, each error with a sentence that says what to do about it.

Code that fails is no error here: its status is in the result, and `RunResult.check` makes an exception of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.client.results import RunResult

_LONGEST_TEXT = 200


class ClientError(Exception):
    """Any of them. `status_code`, `code` and `request_id` are the gateway's; 0 and empty where none answered.

    `retry_after_s` is how long the gateway asked to wait.
    """

    def __init__(
        self,
        text: str,
        *,
        status_code: int = 0,
        code: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.status_code = status_code
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class ConnectionFailed(ClientError):
    """No gateway answered, or the connection broke."""


class InvalidRequest(ClientError):
    """400, 413, 415: the request has to be another one."""


class Unauthorized(ClientError):
    """401: a token is needed, or this one is unknown."""


class Forbidden(ClientError):
    """403: the gateway does not take requests from here, or under this name."""


class NotFound(ClientError):
    """404: there is no such run, session or file, or it is another tenant's."""


class Conflict(ClientError):
    """409: it is there already, or not in a state for this."""


class Gone(ClientError):
    """410: it was older than the gateway keeps."""


class TooManyRequests(ClientError):
    """429: too much at once; nothing was run."""


class Unavailable(ClientError):
    """503: the gateway cannot run code now; nothing was run."""


class ServerError(ClientError):
    """Any other answer that is no success: a mistake of the gateway's, or of a proxy before it."""


class RunFailed(Exception):
    """Code that did not end as `ok`, from `RunResult.check`. `result` is all of it."""

    def __init__(self, result: RunResult[Any]) -> None:
        super().__init__(result.error or f"The run ended as {result.status}.")
        self.result = result


_BY_STATUS: dict[int, type[ClientError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: InvalidRequest,
    415: InvalidRequest,
    429: TooManyRequests,
    503: Unavailable,
}
_ADVICE = {401: "Pass `token=…`, or set CELLBLOCK_TOKEN.", 403: "Is this the gateway's own address?"}


def error_of(status_code: int, body: bytes | Mapping[str, Any], retry_after: str | None = None) -> ClientError:
    """The error that an answer is. One that is not the gateway's JSON, such as a proxy's, is a ServerError."""
    try:
        fields = json.loads(body) if isinstance(body, bytes) else body
        text, code = str(fields["error"]), str(fields["code"])
        request_id = str(fields.get("request_id", ""))
    except (ValueError, TypeError, KeyError):
        shown = body[:_LONGEST_TEXT].decode(errors="replace").strip() if isinstance(body, bytes) else str(body)
        return ServerError(f"The answer is no gateway's ({status_code}): {shown or 'nothing'}", status_code=status_code)
    kind = _BY_STATUS.get(status_code, ServerError)
    if status_code in _ADVICE:
        text = f"{text} {_ADVICE[status_code]}"
    return kind(text, status_code=status_code, code=code, request_id=request_id, retry_after_s=_seconds(retry_after))


def parsed(content: bytes | str) -> Any:
    """An answer that is no error, as JSON. Raises ServerError where it is none, such as a proxy's page."""
    try:
        return json.loads(content)
    except ValueError as error:
        shown = (content if isinstance(content, str) else content.decode(errors="replace"))[:_LONGEST_TEXT].strip()
        raise ServerError(f"The answer is no gateway's: {shown or 'nothing'}") from error


def not_reached(base_url: str, why: object) -> ConnectionFailed:
    """No connection to the gateway."""
    return ConnectionFailed(
        f"No gateway answers at {base_url} ({why}): start one with `cellblock serve`, or give its address as "
        "`base_url=…` or in CELLBLOCK_URL."
    )


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None
