"""Private names of other packages that we ride on: when one goes, this says which. pyproject.toml has upper bounds."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.zmqshell import ZMQInteractiveShell
from mcp.server.session import ServerSession
from tornado import http1connection
from tornado.httpserver import HTTPServer
from tornado.web import RequestHandler
from tornado.websocket import WebSocketProtocol13

METHODS: dict[type, tuple[str, ...]] = {
    asyncio.BaseEventLoop: ("_run_once",),
    IPythonKernel: ("_cancel_on_sigint", "_publish_status"),
    ZMQInteractiveShell: ("_format_exception_for_storage", "_showtraceback"),
    OutStream: ("_flush", "_is_master_process", "_rotate_buffers", "_schedule_flush", "_watch_pipe_fd"),
    WebSocketProtocol13: ("_abort", "_handle_message", "_read_bytes", "_receive_frame", "_write_frame"),
}
"""Overridden or called in kernel_image, gateway.web_sockets, gateway.supervisors, gateway.http.base."""

ATTRIBUTES: dict[type, tuple[str, ...]] = {
    asyncio.BaseEventLoop: (
        "_asyncgens_shutdown_called",
        "_default_executor",
        "_executor_shutdown_called",
        "_ready.popleft()",
        "_stopping",
    ),
    OutStream: ("_buffers", "_fid", "_flush_pending", "_hooks", "_should_watch"),
    WebSocketProtocol13: ("_fragmented_message_buffer", "_wire_bytes_in"),
    HTTPServer: ("_connections",),
    RequestHandler: ("_finished", "_headers"),
    ServerSession: ("_connection",),
}
"""Set somewhere in the class, which a look at its source shows."""


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in METHODS.items() for name in names])
def test_a_private_method_is_still_there(owner: type, name: str) -> None:
    assert callable(getattr(owner, name, None)), f"{owner.__module__}.{owner.__name__}.{name} has gone"


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in ATTRIBUTES.items() for name in names])
def test_a_private_attribute_is_still_set(owner: type, name: str) -> None:
    assert f"self.{name}" in inspect.getsource(owner), f"{owner.__module__}.{owner.__name__}.{name} has gone"


def test_tornado_still_answers_what_is_no_http_with_the_line_that_we_replace() -> None:
    assert 'b"HTTP/1.1 400 Bad Request\\r\\n\\r\\n"' in inspect.getsource(http1connection)
