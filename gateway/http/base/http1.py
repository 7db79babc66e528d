"""What happens before a request reaches a handler: forms of the request target, and answers to what is no HTTP.

Tornado answers a malformed request with a bare status line and knows no absolute-form targets. It knows no routes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from gateway.http.base.connections import Phase, Place

_TORNADOS_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"
_SCHEMES = ("http://", "https://")

PROBES = frozenset({"/healthz", "/readyz"})
"""Answered on the doorstep, too: who gets no answer to these ends the gateway."""


def raw_error(status_line: str, code: str, sentence: str, *, retry_after_s: int | None = None) -> bytes:
    """A whole HTTP error answer, for a connection that is about to be closed."""
    request_id = uuid.uuid4().hex
    body = json.dumps({"error": sentence, "code": code, "request_id": request_id}, separators=(",", ":"))
    retry = "" if retry_after_s is None else f"Retry-After: {retry_after_s}\r\n"
    head = (
        f"HTTP/1.1 {status_line}\r\nContent-Type: application/json; charset=utf-8\r\nX-Request-Id: {request_id}\r\n"
        f"{retry}Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode("ascii")


def too_many_connections() -> bytes:
    """The answer to a request for whose connection there is no place."""
    sentence = "This server has too many connections: try again in a moment."
    return raw_error("503 Service Unavailable", "unavailable", sentence, retry_after_s=1)


class ErrorReportingStream(IOStream):
    """A stream on which tornado's bare 400 goes out as JSON, and overlong headers get an answer.

    Its state beside the base class's: its place among the connections, and since when there is something to write.
    """

    place: Place | None = None
    _writing_since_s = 0.0

    @classmethod
    def on_socket_of(cls, stream: IOStream) -> ErrorReportingStream:
        """A stream on the socket of another one, that has not been used yet."""
        return cls(stream.socket, max_buffer_size=stream.max_buffer_size, read_chunk_size=stream.read_chunk_size)

    def write(self, data: bytes | memoryview, *args: Any, **kwargs: Any) -> Any:
        if data == _TORNADOS_400:
            data = raw_error("400 Bad Request", "invalid_request", "The request is malformed: it is no valid HTTP.")
        if not self.writing():
            self._writing_since_s = time.monotonic()
        return super().write(data, *args, **kwargs)

    def make_room(self) -> None:
        """Close; a client that is still sending a body is told why."""
        if self.place is not None and self.place.phase is Phase.RECEIVING and not self.writing():
            with suppress(StreamClosedError):
                super().write(too_many_connections())
        self.close()

    def stalled_s(self) -> float:
        """For how long the other end has not taken all that was written."""
        return time.monotonic() - self._writing_since_s if self.writing() else 0.0

    def close(self, exc_info: Any = False) -> None:  # noqa: FBT002 - the base class has it so
        """Close; when it is for a line or headers that do not end, say so first."""
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed():
            sentence = "The URL, the headers or a line of this request are too long: POST takes its fields in the body."
            with suppress(StreamClosedError):
                super().write(raw_error("413 Request Entity Too Large", "too_large", sentence))
        super().close(exc_info)
        if self.place is not None:
            self.place.leave()


class PlacedDelegate(HTTPMessageDelegate):
    """Tells a connection's place how far its request is, and refuses requests for which there is no place.

    The state: whether this one is refused.
    """

    def __init__(self, delegate: HTTPMessageDelegate, stream: ErrorReportingStream, place: Place) -> None:
        self._delegate = delegate
        self._stream = stream
        self._place = place
        self._is_refused = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        is_probe = isinstance(start_line, RequestStartLine) and start_line.path.partition("?")[0] in PROBES
        if not self._place.come_in() and not is_probe:
            self._is_refused = True
            with suppress(StreamClosedError):  # its place on the doorstep went to a newcomer meanwhile
                self._stream.write(too_many_connections())
            self._stream.close()
            return None
        self._place.receive()
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._is_refused:
            return None
        self._place.count(len(chunk))
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        if not self._is_refused:
            self._place.serve()
            self._delegate.finish()

    def on_connection_close(self) -> None:
        if not self._is_refused:
            self._delegate.on_connection_close()


class AbsoluteFormDelegate(HTTPMessageDelegate):
    """Makes `GET http://host/path` what `GET /path` with `Host: host` is (RFC 9112, 3.2.2), and passes all else on."""

    def __init__(self, delegate: HTTPMessageDelegate) -> None:
        self._delegate = delegate

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Take the host out of the target. Raises HTTPInputError when the header `Host` names another one."""
        if isinstance(start_line, RequestStartLine) and start_line.path.lower().startswith(_SCHEMES):
            host, path = _split_target(start_line.path)
            # Whoever obeyed the other one of the two would see another request.
            if headers.get("Host", host).lower() != host.lower():
                raise HTTPInputError("Host and target differ")
            if start_line.version == "HTTP/1.0":
                headers["Host"] = host
            start_line = start_line._replace(path=path)
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()


def _split_target(target: str) -> tuple[str, str]:
    """`http://host:8000/path?query` as `host:8000` and `/path?query`."""
    rest = target.partition("://")[2]
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    path = rest[end:]
    return rest[:end], path if path.startswith("/") else f"/{path}"
