"""The sockets that supervisors dial: per kernel one directory, one unix socket and one small WebSocket server.

It carries frames and bounds their size and the number of connections. It trusts nobody: the `LinkListener` that
`sessions` supplies judges who is speaking, and what is said.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from gateway.host.data_dir import KERNEL_DIR_CHARACTERS
from gateway.host.descriptors import ListeningSocket
from gateway.web_sockets import ServerEnd
from kernel_image import protocol
from sessions.errors import SetUpFailed
from sessions.model import KernelId
from sessions.ports import Link, LinkListener
from sessions.settings import Limits

_FRAMING_BYTES = 1 << 20
"""More than is put around a message; a larger frame closes the connection."""

_MESSAGE_BYTES = Limits().message_bytes
_BACKLOG = 4
_MAX_LINKS = 4
_MAX_UNGREETED = 8
_MAX_CONNECTIONS = 256
_MAX_REASON_BYTES = 120
_HEADER_TIMEOUT_S = 10.0

_READ_BYTES = 64 << 10
"""How much is read ahead at most, beyond the frame that comes in."""

Accept = Callable[[Link], LinkListener]
_log = structlog.get_logger("cellblock.supervisors")


class _ReadAhead(ServerEnd):
    """Takes the four parts of a small frame, and of those behind it, from one reading of the socket.

    Its state beside the base class's: what was read, and how far it is taken.
    """

    _ahead = b""
    _at = 0

    async def _read_bytes(self, n: int) -> bytes:
        if self._at + n > len(self._ahead):
            gathered = bytearray(self._ahead[self._at :])
            self._ahead, self._at = b"", 0
            while len(gathered) < n:  # not as a list: who sends it byte by byte would have each cost an object
                gathered += await self.stream.read_bytes(max(n - len(gathered), _READ_BYTES), partial=True)
            self._ahead = bytes(gathered[n:])  # without what is taken, which may be large
            del gathered[n:]
            data = bytes(gathered)
        else:
            data = self._ahead[self._at : self._at + n]
            self._at += n
        self._wire_bytes_in += n
        return data


class SupervisorSocket(WebSocketHandler):
    """One connection from inside a sandbox, opened by any process there."""

    def initialize(self, port: _Port) -> None:
        self._port = port
        self._listener: LinkListener | None = None

    def check_origin(self, origin: str) -> bool:
        """No browser can reach a unix socket; whatever claims to be one is not a supervisor."""
        del origin
        return False

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return protocol.SUBPROTOCOL if protocol.SUBPROTOCOL in subprotocols else None

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        chosen = super().get_websocket_protocol()
        if isinstance(chosen, WebSocketProtocol13):
            return _ReadAhead(self, chosen.params)
        return chosen

    def open(self, *args: str, **kwargs: str) -> None:
        """Take the connection, unless this sandbox holds too many already."""
        del args, kwargs
        if len(self._port.links) >= _MAX_LINKS or self.selected_subprotocol is None:
            self.disconnect("not welcome")
            return
        self.set_nodelay(True)
        self._port.links.add(self)
        self._listener = self._port.accept(_SocketLink(self))

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Hand a frame on; tornado reads the next one when this is done."""
        if self._listener is None:
            return None
        return self._listener.on_text(message) if isinstance(message, str) else self._listener.on_binary(message)

    def on_ping(self, data: bytes) -> None:
        """Hang up: no supervisor pings, and every ping would be answered."""
        del data
        self.disconnect("unexpected ping")

    def disconnect(self, reason: str) -> None:
        """Say why and close at once. A closing handshake would let the other end go on sending for seconds."""
        connection = self.ws_connection
        self.close(1000, reason[:_MAX_REASON_BYTES])
        if connection is not None and connection.stream is not None:
            connection.stream.close()

    def on_close(self) -> None:
        self._port.links.discard(self)
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.on_closed()

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Tell of bugs, without the request: tornado's own line would have the address that the sandbox chose."""
        if not isinstance(value, HTTPError):
            _log.error("supervisor_socket_failed", exc_info=(typ, value, tb))


class _SocketLink:
    """`sessions.ports.Link` over a tornado WebSocket."""

    def __init__(self, handler: SupervisorSocket) -> None:
        self._handler = handler

    def send_binary(self, data: bytes) -> None:
        self._send(data, binary=True)

    def send_text(self, text: str) -> None:
        self._send(text, binary=False)

    def close(self, reason: str) -> None:
        self._handler.disconnect(reason)

    def _send(self, data: bytes | str, *, binary: bool) -> None:
        try:
            self._handler.write_message(data, binary=binary)
        except WebSocketClosedError:
            return


class _PortServer(HTTPServer):
    """An HTTPServer for one supervisor, which needs one connection at a time, and a new one now and then.

    Any process in the sandbox can connect, so only a few may wait for a greeting at once. After too many connections
    and requests it stops listening, since refusing them takes the gateway's time as well. Its state: how many are left.
    """

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        self._left = _MAX_CONNECTIONS
        super().initialize(*args, **kwargs)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if self._is_used_up() or len(self._connections) >= _MAX_UNGREETED:
            stream.close()
        else:
            super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Take a request; one connection may bring many."""
        if self._is_used_up() and isinstance(request_conn, HTTP1Connection):
            request_conn.close()
        return super().start_request(server_conn, request_conn)

    def _is_used_up(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self.stop()
        return self._left <= 0


@dataclass(slots=True)
class _Port:
    """What one kernel's supervisor dials."""

    directory: Path
    accept: Accept
    server: HTTPServer | None = None
    links: set[SupervisorSocket] = field(default_factory=set)


class SupervisorSwitchboard:
    """`sessions.ports.Switchboard` on unix sockets below `root`, which nobody else on this host may enter.

    `message_bytes` is the size of message that supervisors are told to keep to. Its state: the open ports by kernel.
    """

    def __init__(self, root: Path, message_bytes: int = _MESSAGE_BYTES) -> None:
        self._root = root
        self._max_frame_bytes = message_bytes + _FRAMING_BYTES
        self._ports: dict[KernelId, _Port] = {}

    def open(self, kernel_id: KernelId, accept: Accept) -> Path:
        """Listen for this kernel's supervisor; returns the directory to mount.

        The directory and the socket are open to all uids, since the sandbox has one of its own; `root` is not. A
        directory that an earlier gateway made is kept, since it is mounted in the sandbox; its socket is not.
        """
        directory = self._root / _directory_name(kernel_id)
        path = directory / protocol.SOCKET_NAME
        if len(os.fsencode(path)) > protocol.UNIX_PATH_MAX_BYTES:
            raise SetUpFailed(f"The socket path {path} is too long: set server.data_dir to a shorter directory.")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory in {port.directory for port in self._ports.values()}:
            raise SetUpFailed(f"The directory {directory} is in use: close the kernel that uses it first.")
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        path.unlink(missing_ok=True)
        listening = ListeningSocket(socket.AF_UNIX)
        listening.settimeout(0)
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen(_BACKLOG)
        port = _Port(directory, accept)
        application = Application(
            [("/supervisor", SupervisorSocket, {"port": port})],
            websocket_max_message_size=self._max_frame_bytes,
            # The sandbox chooses the request, and would choose what the log says.
            log_function=lambda _handler: None,
        )
        port.server = _PortServer(
            application,
            max_header_size=8192,
            max_body_size=0,
            idle_connection_timeout=_HEADER_TIMEOUT_S,
            max_buffer_size=2 * self._max_frame_bytes,
        )
        port.server.add_socket(listening)
        self._ports[kernel_id] = port
        return directory

    def close(self, kernel_id: KernelId) -> None:
        """Stop listening, drop this kernel's links and remove its directory. Unknown ids are no error."""
        port = self._stop(kernel_id)
        if port is not None:
            shutil.rmtree(port.directory, ignore_errors=True)

    def release(self, kernel_id: KernelId) -> None:
        """Stop listening and drop this kernel's links, but leave its directory to a later gateway."""
        self._stop(kernel_id)

    def remove_leftovers(self, wanted: Collection[KernelId]) -> None:
        """Remove the directories of an earlier gateway on the same data directory, but for those of these kernels."""
        kept = {_directory_name(kernel_id) for kernel_id in (*wanted, *self._ports)}
        for directory in self._root.glob("*"):
            if directory.is_dir() and directory.name not in kept:
                shutil.rmtree(directory, ignore_errors=True)

    def _stop(self, kernel_id: KernelId) -> _Port | None:
        port = self._ports.pop(kernel_id, None)
        if port is not None:
            if port.server is not None:
                port.server.stop()
            for link in list(port.links):
                link.disconnect("closed")
        return port


def _directory_name(kernel_id: KernelId) -> str:
    """As long as fits: the path of a unix socket is short."""
    return kernel_id[:KERNEL_DIR_CHARACTERS]
