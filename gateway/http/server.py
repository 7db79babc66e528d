"""The HTTP server, with bounds on headers, bodies, idle connections, and the number of connections.

Tornado by default waits an hour for a header and for ever for a body. The routes are in routes.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from functools import partial
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream

from gateway.host.descriptors import ListeningSocket
from gateway.http.base.connections import Places, client_of
from gateway.http.base.context import Context
from gateway.http.base.handler import MAX_HEADER_BYTES
from gateway.http.base.http1 import AbsoluteFormDelegate, ErrorReportingStream, PlacedDelegate, too_many_connections
from gateway.http.routes import make_application
from gateway.http.status_page.history import History

_READ_BUFFER_BYTES = 1 << 20
# Larger than any body that is read: the handlers count, so that the answer is a 413 in JSON, not a bare 400.
_UNBOUNDED = 1 << 60
# The parser accepts more than is served: a request that was read whole keeps its connection.
_PARSED_HEADER_BYTES = 4 * MAX_HEADER_BYTES
_FREED_AT_ONCE = 16


class BoundedServer(HTTPServer):
    """An HTTPServer with a bound on its connections, WebSockets included."""

    places: Places

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        for listening in sockets:
            if isinstance(listening, ListeningSocket):
                listening.on_shortage = partial(self.places.free, _FREED_AT_ONCE)
            super().add_sockets([listening])

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        own = ErrorReportingStream.on_socket_of(stream)
        own.place = self.places.take(client_of(address), own.make_room, own.stalled_s)
        if own.place is None:
            own.write(too_many_connections())
            own.close()
            return
        super().handle_stream(own, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        delegate = super().start_request(server_conn, request_conn)
        stream = request_conn.stream if isinstance(request_conn, HTTP1Connection) else None
        if isinstance(stream, ErrorReportingStream) and stream.place is not None:
            stream.place.wait()
            delegate = PlacedDelegate(delegate, stream, stream.place)
        return AbsoluteFormDelegate(delegate)


def make_server(context: Context, history: History) -> BoundedServer:
    """A server that does not listen yet. X-Forwarded-* headers are ignored. It only shows `history`."""
    bounds = context.http.bounds
    server = BoundedServer(
        make_application(context, history),
        xheaders=False,
        decompress_request=False,
        idle_connection_timeout=bounds.header_timeout_s,
        body_timeout=bounds.body_timeout_s,
        max_header_size=_PARSED_HEADER_BYTES,
        max_body_size=_UNBOUNDED,
        # A WebSocket frame is read as a whole, a body piece by piece.
        max_buffer_size=_READ_BUFFER_BYTES + context.config.limits.request_bytes,
    )
    server.places = context.http.places
    return server
