"""The HTTP server with its patience bounded: headers, bodies, idle connections, and how many there may be.

Tornado's own defaults wait an hour for a header and for ever for a body. Routes are put together here too.
"""

from __future__ import annotations

from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream
from tornado.web import Application

from gateway.http.api.artifacts import FileHandler, ImageHandler
from gateway.http.api.ops import HealthHandler, ReadyHandler, RootHandler, UnknownRouteHandler
from gateway.http.api.runcode import RunCodeHandler
from gateway.http.api.runcode_ws import RunCodeSocket
from gateway.http.api.runs import RunCancelHandler, RunEventsHandler, RunHandler, RunsHandler
from gateway.http.api.session_files import SessionFileHandler, SessionFilesHandler
from gateway.http.api.session_notebook import SessionNotebookHandler
from gateway.http.api.sessions import (
    SessionHandler,
    SessionInterruptHandler,
    SessionRestartHandler,
    SessionsHandler,
)
from gateway.http.base.access_log import log_access
from gateway.http.base.context import Context
from gateway.http.base.handler import MAX_HEADER_BYTES
from gateway.http.base.http1 import AbsoluteFormRequest, SpeakingStream, bare_answer
from gateway.http.routes import JUPYTER_ROUTES

HEADER_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 60.0
READ_BUFFER_BYTES = 1 << 20
MAX_CONNECTIONS = 1024

# Larger than any body that is read: the handlers count, so that the answer is a 413 in JSON and no bare 400.
_UNBOUNDED = 1 << 60
# What the parser takes is more than what is served: a request that was read whole keeps its connection.
_PARSED_HEADER_BYTES = 4 * MAX_HEADER_BYTES


def make_application(context: Context) -> Application:
    """All routes, each handler with the same context."""
    given = {"context": context}
    return Application(
        [
            (r"/runcode", RunCodeHandler, given),
            (r"/runcode/ws", RunCodeSocket, given),
            (r"/runs", RunsHandler, given),
            (r"/runs/[^/]+", RunHandler, given),
            (r"/runs/[^/]+/events", RunEventsHandler, given),
            (r"/runs/[^/]+/cancel", RunCancelHandler, given),
            (r"/sessions", SessionsHandler, given),
            (r"/sessions/[^/]+", SessionHandler, given),
            (r"/sessions/[^/]+/interrupt", SessionInterruptHandler, given),
            (r"/sessions/[^/]+/restart", SessionRestartHandler, given),
            (r"/sessions/[^/]+/notebook", SessionNotebookHandler, given),
            (r"/sessions/[^/]+/files", SessionFilesHandler, given),
            (r"/sessions/[^/]+/files/.*", SessionFileHandler, given),
            (r"/image/.*", ImageHandler, given),
            (r"/file/.*", FileHandler, given),
            *((pattern, handler, given) for pattern, handler in JUPYTER_ROUTES),
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
            stream.write(
                bare_answer(
                    "503 Service Unavailable",
                    "unavailable",
                    "This server has too many connections: try again in a moment.",
                    retry_after_s=1,
                )
            )
            stream.close()
            return
        super().handle_stream(SpeakingStream.taking_over(stream), address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Serve a request, whichever form its target has."""
        return AbsoluteFormRequest(super().start_request(server_conn, request_conn))


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
        max_header_size=_PARSED_HEADER_BYTES,
        max_body_size=_UNBOUNDED,
        # A WebSocket frame is read as a whole; of a body no more is read than is taken.
        max_buffer_size=READ_BUFFER_BYTES + context.limits.request_bytes,
        max_connections=max_connections,
    )
