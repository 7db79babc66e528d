"""What all HTTP answers have in common: request id, error shape, security headers, bounded bodies.

The route says which methods there are and who may call them; a subclass implements `handle_request`. It knows
nothing of runs.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from gateway.http.base.bodies import IncomingBody, declared_bytes, no_room
from gateway.http.base.connections import client_of
from gateway.http.base.context import Context
from gateway.http.base.errors import INTERNAL_SENTENCE, SHAPE_OF_STATUS, STATUS_OF_CODE
from gateway.http.base.outgoing import Patience, bytes_of, is_taken
from gateway.http.base.route import Exposure, Route
from gateway.http.parse.traceparent import traceparent_of
from gateway.http.render.answer import strict_json
from sessions.errors import CellblockError, Conflict, TooLarge, Unauthorized, Unavailable
from sessions.model import ANONYMOUS, TenantId, trace_fields
from sessions.sanitize import well_formed

MAX_HEADER_BYTES = 64 << 10
"""The request line and the headers together. The parser reads longer ones too, so that the answer is a 413 in JSON."""

_EXPOSED_HEADERS = "X-Request-Id, Retry-After, ETag, Location, Content-Disposition"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_log = structlog.get_logger("cellblock.http")


@stream_request_body
class BaseHandler(RequestHandler):
    """One request.

    The mutable state is `_refusal` (why it will not be served), `_body`, `tenant`, and how far the answer is:
    `_is_in_flight`, `_is_answering`, `_is_sending`, its `place` among all answers, and its `patience`. What the access
    log is to say besides is in `logged`.
    """

    is_probe: ClassVar[bool] = False
    """Asked every few seconds by a machine: a 200 is no news for the log."""

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        self.request_id = _request_id(request)
        self.traceparent = traceparent_of(request.headers.get("traceparent"))
        self.error_code: str | None = None
        self.logged: dict[str, Any] = {}
        self.tenant: TenantId = ANONYMOUS
        self._refusal: CellblockError | HTTPError | None = None
        self._is_in_flight = False
        self._is_answering = False
        self._is_sending = False
        super().__init__(application, request, **kwargs)

    def initialize(self, context: Context, route: Route) -> None:
        self.context = context
        self.route = route
        self._body = IncomingBody(context.http.bodies, self._drop_slow_body)
        self.place = context.answers.place()
        self.patience = Patience(context.http.bounds, context.answers)

    @property
    def log_fields(self) -> dict[str, str]:
        """What every line of the log about this request has."""
        return {"request_id": self.request_id, **trace_fields(self.traceparent)}

    async def handle_request(self) -> None:
        """Serve the request, whose whole body is in `body`. May raise any CellblockError."""
        raise NotImplementedError

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    @property
    def client(self) -> str:
        """Whose share of memory this request takes: the tenant's, or where no token tells it, the address's."""
        return client_of((self.request.remote_ip,)) if self.tenant == ANONYMOUS else f"tenant {self.tenant}"

    @property
    def base_url(self) -> str:
        """`server.public_url`, or what the client itself used. X-Forwarded-* headers are anybody's to send."""
        return self.context.public_url or f"{self.request.protocol}://{self.request.host}"

    # --- headers come in ----------------------------------------------------------------------------------------------

    def set_default_headers(self) -> None:
        """Headers of every answer, errors included."""
        self.clear_header("Server")
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        context = getattr(self, "context", None)
        if context is not None:
            self._set_cors_headers(context)

    def prepare(self) -> None:
        """Decide from the headers alone whether this request will be served.

        A refusal waits for the body where that is short enough: a client that is still sending sees no answer.
        """
        self.context.http.in_flight.add()
        self._is_in_flight = True
        self._set_cors_headers(self.context)
        try:
            self._check_headers()
        except (CellblockError, HTTPError) as error:
            self._refusal = error
        declared = declared_bytes(self.request.headers)
        if declared > self._body_limit_bytes and self._refusal is None:
            self._refusal = self._too_large()
        is_waiting = self.request.headers.get("Expect", "").lower() == "100-continue"
        if self._refusal is not None and (is_waiting or not self._body.is_drained(declared)):
            raise self._refusal

    def _check_headers(self) -> None:
        site, headers, host = self.context.site, self.request.headers, self.request.host
        origin = headers.get("Origin")
        if _header_bytes(self.request) > MAX_HEADER_BYTES:
            raise TooLarge("The URL and the headers are too long: POST takes its fields in the body.")
        site.check_host(host)
        if self.route.exposure is not Exposure.EMBEDDABLE:
            site.check_origin(origin, host)
        if self.request.method == "OPTIONS":
            return
        if self.route.exposure is Exposure.GUARDED:
            site.check_fetch_site(headers.get("Sec-Fetch-Site"), origin)
        if self.request.method not in self.route.methods:
            raise HTTPError(405)
        if self.route.needs_token:
            self.tenant = self.context.authenticator.tenant(self.authorization())

    def authorization(self) -> str | None:
        """The credentials: the header, unless a subclass accepts them elsewhere."""
        return self.request.headers.get("Authorization")

    def is_let_in(self) -> bool:
        """Whether the credentials stand for the tenant now: a token may have been revoked since."""
        try:
            return self.context.authenticator.tenant(self.authorization()) == self.tenant
        except Unauthorized:
            return False

    def _set_cors_headers(self, context: Context) -> None:
        """Let pages of the allowed origins read the answer."""
        self.set_header("Vary", "Origin")
        origin = self.request.headers.get("Origin")
        if origin is not None and context.site.is_allowed_origin(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", _EXPOSED_HEADERS)

    def on_finish(self) -> None:
        """The answer has been handed to the connection; a large one is still on its way then, and `send` waits."""
        if not self._is_sending:
            self._release()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._release()

    def _release(self) -> None:
        if self._is_in_flight:
            self._is_in_flight = False
            self.context.http.in_flight.remove()
        if not self._is_answering:  # what answers goes on without the client, and so does its body
            self._body.discard()

    # --- the body comes in --------------------------------------------------------------------------------------------

    @property
    def _body_limit_bytes(self) -> int:
        return self.context.config.limits.request_bytes

    def _too_large(self) -> TooLarge:
        return TooLarge()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep what will be used, count the rest, and disconnect a client whose body does not end."""
        if self._counts(chunk):
            if self._body.keep(chunk, self.client):
                return None
            self._refusal = no_room()
        self._body.discard()
        self._disconnect_endless()
        return None

    def _drop_slow_body(self) -> None:
        """Others need its room: answer, and close the connection."""
        self._refusal = no_room()
        self._body.discard()
        if not self._finished:
            self.send_error(exc_info=(Unavailable, self._refusal, None))

    def _counts(self, chunk: bytes) -> bool:
        """Whether this piece of the body is still wanted."""
        self._body.count(chunk)
        if self._body.received_bytes > self._body_limit_bytes and self._refusal is None:
            self._refusal = self._too_large()
        return self._refusal is None

    def _disconnect_endless(self) -> None:
        if not self._body.is_drained(self._body.received_bytes) and not self._finished:
            error = self._refusal
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, exc_info=(type(error), error, None))

    # --- the answer goes out ------------------------------------------------------------------------------------------

    async def get(self, *_: str) -> None:
        """Serve any method, once the body is there."""
        self._body.end()
        if self._refusal is not None:
            raise self._refusal
        if self.request.method == "OPTIONS":
            self._answer_preflight()
            return
        self._is_answering = True
        try:
            await self.handle_request()
        finally:
            self._is_answering = False
            self._body.discard()
            self.place.leave()

    head = post = put = delete = patch = options = get

    def _answer_preflight(self) -> None:
        self.set_status(204)
        self.set_header("Allow", self.route.allow)
        if "Access-Control-Allow-Origin" in self._headers:
            self.set_header("Access-Control-Allow-Methods", self.route.allow)
            self.set_header(
                "Access-Control-Allow-Headers",
                "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Traceparent, X-Request-Id",
            )
            self.set_header("Access-Control-Max-Age", "600")
            if self.request.headers.get("Access-Control-Request-Private-Network") == "true":
                self.set_header("Access-Control-Allow-Private-Network", "true")

    async def send_json(self, value: Any, status: int = 200) -> None:
        """Send this value, of which the caller keeps nothing. Raises Unavailable when there is no room for it."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        await self.place.make(bytes_of(value))
        data = strict_json(value)
        del value
        await self.send(data)

    async def send_nothing(self) -> None:
        """Say that it is done: 204."""
        self.set_status(204)
        self.clear_header("Content-Type")
        await self.send(None)

    async def send(self, data: bytes | None) -> None:
        """Send the whole answer, and disconnect a client that does not read it. Raises Unavailable."""
        await self.place.take(len(data or b""))
        self._is_sending = True
        try:
            writing = self.finish(data)
            if not is_taken(self._stream):
                await self._taken(writing)
        except StreamClosedError:
            pass  # the client is gone; its run is recorded all the same
        except TimeoutError:
            self.disconnect()
        finally:
            self._release()

    async def send_piece(self, data: bytes = b"") -> None:
        """Send a piece of the answer, the headers before the first one; return once the client has taken it.

        Raises StreamClosedError when the client is gone, and TimeoutError when it takes nothing.
        """
        self.write(data)
        await self._taken(self.flush())

    async def _taken(self, writing: asyncio.Future[None]) -> None:
        await self.patience.wait_for(writing, self._stream)

    @property
    def _stream(self) -> IOStream | None:
        return getattr(self.request.connection, "stream", None)

    async def send_pieces(self, size_bytes: int, read: Callable[[int], Awaitable[bytes]]) -> None:
        """Send an answer of this size; `read(offset)` gives its pieces. One that cannot be finished is broken off."""
        self.set_header("Content-Length", str(size_bytes))
        sent_bytes = size_bytes if self.request.method == "HEAD" else 0
        try:
            while sent_bytes < size_bytes:
                piece = (await read(sent_bytes))[: size_bytes - sent_bytes]
                if not piece:
                    raise Conflict("The file became shorter while it was read.")
                sent_bytes += len(piece)
                await self.send_piece(piece)
        except StreamClosedError:
            return
        except (CellblockError, TimeoutError):
            if not self._headers_written:
                raise
            self.disconnect()

    def disconnect(self) -> None:
        """Close the connection in the middle of an answer, which tells the client that it is not whole."""
        self.request.connection.close()  # type: ignore[union-attr]

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, CellblockError) and error.code in STATUS_OF_CODE:
            status_code, code, sentence = STATUS_OF_CODE[error.code], error.code, str(error)
            if error.retry_after_s is not None:
                self.set_header("Retry-After", str(error.retry_after_s))
        else:
            code, sentence = SHAPE_OF_STATUS.get(status_code, ("internal", INTERNAL_SENTENCE))
        if status_code == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", "Bearer")
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", self.route.allow)
        self.error_code = code
        self.set_status(status_code)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        shape = {"error": well_formed(sentence), "code": code, "request_id": self.request_id}
        self.finish(strict_json(self.complete_error(shape)))

    def complete_error(self, shape: dict[str, Any]) -> dict[str, Any]:
        """The error shape with the additions of a subclass."""
        return shape

    def compute_etag(self) -> None:
        """No answer gets an ETag by itself."""

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log unexpected errors, without the request's URL; refusals are in the access log."""
        if isinstance(value, HTTPError) or (isinstance(value, CellblockError) and value.code in STATUS_OF_CODE):
            return
        _log.error("unexpected error", route=self.route.path, **self.log_fields, exc_info=(typ, value, tb))


def _header_bytes(request: HTTPServerRequest) -> int:
    return len(request.uri or "") + sum(len(name) + len(value) + 4 for name, value in request.headers.get_all())


def _request_id(request: HTTPServerRequest) -> str:
    """The client's own id where it is sane, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
