"""The one error tree. A class docstring is the default message; `code` is the machine word a client sees.

HTTP statuses are not here: the gateway maps `code` to them.
"""

from __future__ import annotations

NO_SANDBOX = "No sandbox can be started"
"""How it is said that launches fail: in errors, and where a gateway says why it is not ready."""


class CellblockError(Exception):
    """Something went wrong inside Cellblock."""

    code = "internal"
    retry_after_s: int | None = None

    def __init__(self, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InvalidRequest(CellblockError):
    """The request is not valid."""

    code = "invalid_request"


class InvalidJSON(InvalidRequest):
    """The body is not valid JSON: send one JSON object, encoded as UTF-8."""

    code = "invalid_json"


class UnsupportedLanguage(InvalidRequest):
    """This language is not configured here."""

    code = "unsupported_language"


class Unauthorized(CellblockError):
    """A valid token is needed: send it as `Authorization: Bearer <token>`."""

    code = "unauthorized"


class Forbidden(CellblockError):
    """This request came from a web page of another site, which may not use this server."""

    code = "forbidden"


class NotFound(CellblockError):
    """There is nothing here by that name."""

    code = "not_found"


class Conflict(CellblockError):
    """This cannot be done as things are."""

    code = "conflict"


class Gone(CellblockError):
    """What this run has made has been removed: it was older than `retention.days`."""

    code = "gone"


class TooLarge(CellblockError):
    """The request body is larger than `limits.request_bytes` allows."""

    code = "too_large"


class UnsupportedMediaType(CellblockError):
    """Send the body as application/json, or as a form, without a content encoding."""

    code = "unsupported_media_type"


class TooManyRequests(CellblockError):
    """All sandboxes are busy and the queue is full: try again in a moment."""

    code = "too_many_requests"
    retry_after_s = 1


class Unavailable(CellblockError):
    """Cellblock cannot run code right now; nothing was run: try again in a moment."""

    code = "unavailable"
    retry_after_s = 2


class EngineUnavailable(Unavailable):
    """The container engine is out of reach; nothing was run."""


class StoreUnavailable(Unavailable):
    """The database is out of reach; nothing was run."""


class StoreBusy(StoreUnavailable):
    """The database is busy: others are ahead of this request; nothing was run."""


class StoreFull(StoreUnavailable):
    """The disk of the database is full; nothing was run."""


class StoreReadOnly(StoreUnavailable):
    """The database is read-only; nothing was run."""


class StoreExhausted(StoreUnavailable):
    """The database has no memory or no connections left; nothing was run."""


class EndNotStored(CellblockError):
    """The code was run, but its end could not be stored yet. Do not run it again."""

    code = "end_not_stored"


class SandboxLost(Unavailable):
    """The sandbox ended before the code was sent to it; nothing was run."""


class FileNotTaken(Unavailable):
    """The sandbox could not read or write this file; try again."""


class Draining(Unavailable):
    """This gateway is shutting down; nothing was run."""


class NoKernelInTime(Unavailable):
    """No sandbox became free in time; nothing was run."""


class KernelLost(CellblockError):
    """The kernel went away."""

    code = "kernel_died"


class ProtocolViolation(CellblockError):
    """A supervisor sent something that the protocol does not allow."""

    code = "protocol_violation"


class Misconfigured(CellblockError):
    """The configuration is not valid."""

    code = "misconfigured"


class SetUpFailed(CellblockError):
    """Something this command needs could not be prepared."""

    code = "set_up_failed"
