"""The HTTP server, with bounds on headers, bodies, idle connections, and the number of connections.

Tornado by default waits an hour for a header and for ever for a body. The routes are in routes.py.
"""

from __future__ import annotations

from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream

from gateway.http.base.context import Context
from gateway.http.base.handler import MAX_HEADER_BYTES
from gateway.http.base.http1 import AbsoluteFormDelegate, ErrorReportingStream, raw_error
from gateway.http.routes import make_application

_READ_BUFFER_BYTES = 1 << 20
# Larger than any body that is read: the handlers count, so that the answer is a 413 in JSON, not a bare 400.
_UNBOUNDED = 1 << 60
# The parser accepts more than is served: a request that was read whole keeps its connection.
_PARSED_HEADER_BYTES = 4 * MAX_HEADER_BYTES


class BoundedServer(HTTPServer):
    """An HTTPServer that serves `max_connections` at once and answers further ones with 503."""

    max_connections: int

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._connections) >= self.max_connections:
            stream.write(
                raw_error(
                    "503 Service Unavailable",
                    "unavailable",
                    "This server has too many connections: try again in a moment.",
                    retry_after_s=1,
                )
            )
            stream.close()
            return
        super().handle_stream(ErrorReportingStream.on_socket_of(stream), address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        return AbsoluteFormDelegate(super().start_request(server_conn, request_conn))


def make_server(context: Context) -> BoundedServer:
    """A server that does not listen yet. X-Forwarded-* headers are ignored."""
    bounds = context.http.bounds
    server = BoundedServer(
        make_application(context),
        xheaders=False,
        decompress_request=False,
        idle_connection_timeout=bounds.header_timeout_s,
        body_timeout=bounds.body_timeout_s,
        max_header_size=_PARSED_HEADER_BYTES,
        max_body_size=_UNBOUNDED,
        # A WebSocket frame is read as a whole, a body piece by piece.
        max_buffer_size=_READ_BUFFER_BYTES + context.config.limits.request_bytes,
    )
    server.max_connections = bounds.connections
    return server
