"""The HTTP server with its patience bounded: headers, bodies, idle connections, and how many there may be.

Tornado's own defaults wait an hour for a header and for ever for a body. Routes are put together here too.
"""

from __future__ import annotations

from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application

from gateway.handlers.artifacts import FileHandler, ImageHandler
from gateway.handlers.base import log_access
from gateway.handlers.context import Context
from gateway.handlers.ops import HealthHandler, ReadyHandler, RootHandler, UnknownRouteHandler
from gateway.handlers.runcode import RunCodeHandler

HEADER_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 60.0
MAX_HEADER_BYTES = 64 << 10
READ_BUFFER_BYTES = 1 << 20
MAX_CONNECTIONS = 1024

# Larger than any body that is read: the handlers count, so that the answer is a 413 in JSON and no bare 400.
_UNBOUNDED = 1 << 60
_FULL_BODY = b'{"error":"This server has too many connections: try again in a moment.","code":"unavailable"}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


def make_application(context: Context) -> Application:
    """All routes, each handler with the same context."""
    given = {"context": context}
    return Application(
        [
            (r"/runcode", RunCodeHandler, given),
            (r"/image/.*", ImageHandler, given),
            (r"/file/.*", FileHandler, given),
            (r"/healthz", HealthHandler, given),
            (r"/readyz", ReadyHandler, given),
            (r"/", RootHandler, given),
        ],
        default_handler_class=UnknownRouteHandler,
        default_handler_args=given,
        log_function=log_access,
    )


class BoundedServer(HTTPServer):
    """An HTTPServer that takes `max_connections` at once and tells the next one so."""

    def initialize(self, *args: Any, max_connections: int = MAX_CONNECTIONS, **kwargs: Any) -> None:
        """Take tornado's arguments and our own."""
        self.max_connections = max_connections
        super().initialize(*args, **kwargs)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a connection, or turn it away."""
        if len(self._connections) >= self.max_connections:
            stream.write(_FULL)
            stream.close()
            return
        super().handle_stream(stream, address)


def make_server(
    context: Context,
    *,
    max_connections: int = MAX_CONNECTIONS,
    header_timeout_s: float = HEADER_TIMEOUT_S,
    body_timeout_s: float = BODY_TIMEOUT_S,
) -> BoundedServer:
    """A server that listens nowhere yet. X-Forwarded-* headers are not believed."""
    return BoundedServer(
        make_application(context),
        xheaders=False,
        decompress_request=False,
        idle_connection_timeout=header_timeout_s,
        body_timeout=body_timeout_s,
        max_header_size=MAX_HEADER_BYTES,
        max_body_size=_UNBOUNDED,
        max_buffer_size=READ_BUFFER_BYTES,
        max_connections=max_connections,
    )
