"""The client's side of RFC 6455 over a unix socket, without extensions: as much as the link to our own gateway needs.

The standard library alone, since this is imported by PID 1 of every container. It dials and moves whole messages; what
they say, and when to dial again, is not known here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

Message = bytes | str
"""A binary message or a text message."""

_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_RESPONSE_BYTES = 16 << 10
_MAX_CONTROL_BYTES = 125
_SMALL_READ_BYTES = 64 << 10
_LARGE_READ_BYTES = 1 << 20
_BUFFERS_PER_WRITE = 256

_FINAL = 0x80
_MASKED = 0x80
_RESERVED = 0x70
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_LENGTH_16, _LENGTH_64 = 126, 127
_NORMAL = 1000

_KEY = bytes(4)
"""The masking key, which leaves every byte as it is. Masking keeps what a browser sends from being taken for HTTP by a
proxy (RFC 6455, section 10.3); on a unix socket there is neither."""


class WebSocketError(Exception):
    """The other end does not speak as RFC 6455 says, or does not want this connection."""


class WebSocket:
    """A connection that `connect` has opened.

    Its state: what has been received and is no message yet, what the socket has not taken yet, and how it was closed.
    """

    def __init__(self, connected: socket.socket, received: bytes, max_message_bytes: int) -> None:
        self._socket = connected
        self._max_message_bytes = max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._received = bytearray(received)
        self._needed_bytes = 2
        self._fragments: list[bytes] = []
        self._fragments_opcode = _CONTINUATION
        self._unsent: deque[bytes | memoryview] = deque()
        self._is_flushing = False
        self._is_writer = False
        self._is_open = True
        self._on_message: Callable[[Message], None] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.on_flushed: Callable[[], None] | None = None
        self.unsent_bytes = 0
        self.close_code: int | None = None
        self.close_reason = ""

    def send(self, message: Message) -> None:
        """Send a message, with all else that is sent in this turn of the event loop; ignored once it is closed."""
        if isinstance(message, str):
            self._send_frame(_TEXT, message.encode())
        else:
            self._send_frame(_BINARY, message)

    async def receive(self, on_message: Callable[[Message], None]) -> None:
        """Call `on_message` with each message until the other end closes.

        Raises OSError or WebSocketError when the connection breaks, and whatever `on_message` raises.
        """
        self._on_message = on_message
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._loop.call_soon(self._take)
        await self._ended

    def close(self) -> None:
        """Close the connection, without a word."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
            if self._is_writer:
                self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._unsent.clear()
        if not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
        self.close()

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        if not self._is_open:
            return
        length = len(payload)
        if length < _LENGTH_16:
            head = bytes((_FINAL | opcode, _MASKED | length)) + _KEY
        elif length < 1 << 16:
            head = struct.pack("!BBH", _FINAL | opcode, _MASKED | _LENGTH_16, length) + _KEY
        else:
            head = struct.pack("!BBQ", _FINAL | opcode, _MASKED | _LENGTH_64, length) + _KEY
        self._unsent.append(head)
        self._unsent.append(payload)
        self.unsent_bytes += len(head) + length
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what the socket takes now; wait until it takes more, if something is left."""
        unsent = self._unsent
        try:
            while unsent and self._is_open:
                count = self._socket.sendmsg([unsent[index] for index in range(min(len(unsent), _BUFFERS_PER_WRITE))])
                self.unsent_bytes -= count
                while unsent and count >= len(unsent[0]):
                    count -= len(unsent.popleft())
                if count:
                    unsent[0] = memoryview(unsent[0])[count:]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more; whoever reads here gets what came before, and then the end
            unsent.clear()
        self._wait_for_writing(is_wanted=bool(unsent) and self._is_open)
        if self._is_open and self.on_flushed is not None:
            self.on_flushed()

    def _wait_for_writing(self, *, is_wanted: bool) -> None:
        if is_wanted and not self._is_writer:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif self._is_writer and not is_wanted and self._is_open:
            self._loop.remove_writer(self._socket.fileno())
        self._is_writer = is_wanted
        self._is_flushing = is_wanted

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        wanted = self._needed_bytes - len(self._received)
        try:
            data = self._socket.recv(min(max(wanted, _SMALL_READ_BYTES), _LARGE_READ_BYTES))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error)
            return
        if data:
            self._received += data
            self._take()
        else:
            self.close()

    def _take(self) -> None:
        """Handle the frames that have been received whole."""
        received = self._received
        start = 0
        try:
            while self._is_open:
                frame = self._frame_at(start)
                if frame is None:
                    break
                first, payload, start = frame
                self._handle_frame(first, payload)
        except Exception as error:  # noqa: BLE001 - the caller of `receive` gets it
            self._fail(error)
        del received[:start]
        self._needed_bytes -= start

    def _frame_at(self, start: int) -> tuple[int, bytes, int] | None:
        """The first byte, the payload and the end of the frame that begins at `start`; None when it is not whole."""
        received = self._received
        self._needed_bytes = start + 2
        if len(received) < self._needed_bytes:
            return None
        first, length = received[start], received[start + 1]
        if length & _MASKED:
            raise WebSocketError("a frame of the server is masked")
        begin = start + 2
        if length >= _LENGTH_16:
            size = 2 if length == _LENGTH_16 else 8
            begin += size
            self._needed_bytes = begin
            if len(received) < begin:
                return None
            length = int.from_bytes(received[begin - size : begin])
        if first & 0x8:
            if length > _MAX_CONTROL_BYTES:
                raise WebSocketError("a control frame is too long")
        elif length > self._max_message_bytes - sum(map(len, self._fragments)):
            raise WebSocketError(f"a message is longer than {self._max_message_bytes} bytes")
        end = self._needed_bytes = begin + length
        if len(received) < end:
            return None
        with memoryview(received) as view:
            return first, bytes(view[begin:end]), end

    def _handle_frame(self, first: int, payload: bytes) -> None:
        opcode, is_final = first & 0x0F, bool(first & _FINAL)
        if first & _RESERVED or (opcode & 0x8 and not is_final):
            raise WebSocketError(f"a frame begins with {first:#04x}")
        if opcode in (_TEXT, _BINARY, _CONTINUATION):
            self._handle_data(opcode, payload, is_final=is_final)
        elif opcode == _PING:
            self._send_frame(_PONG, payload)
        elif opcode == _CLOSE:
            self._handle_close(payload)
        elif opcode != _PONG:
            raise WebSocketError(f"a frame has the unknown opcode {opcode}")

    def _handle_data(self, opcode: int, payload: bytes, *, is_final: bool) -> None:
        """Hand a message on, once its last piece is there."""
        if (opcode == _CONTINUATION) != bool(self._fragments_opcode):
            raise WebSocketError("a message begins within another, or goes on without a beginning")
        if opcode == _CONTINUATION:
            payload = b"".join([*self._fragments, payload]) if is_final else payload
            opcode = self._fragments_opcode
        if is_final:
            self._fragments_opcode, self._fragments = _CONTINUATION, []
            self._hand_on(opcode, payload)
        else:
            self._fragments_opcode = opcode
            self._fragments.append(payload)

    def _hand_on(self, opcode: int, payload: bytes) -> None:
        assert self._on_message is not None  # noqa: S101 - nothing is read before
        self._on_message(payload.decode() if opcode == _TEXT else payload)

    def _handle_close(self, payload: bytes) -> None:
        """Note why the other end closes, answer, and close as well."""
        if len(payload) >= 2:  # noqa: PLR2004 - the size of the code
            self.close_code = int.from_bytes(payload[:2])
            self.close_reason = payload[2:].decode("utf-8", "replace")
        self._send_frame(_CLOSE, payload[:2] or _NORMAL.to_bytes(2))
        self._flush()
        self.close()


async def connect(path: str, target: str, subprotocol: str, *, max_message_bytes: int) -> WebSocket:
    """Open a WebSocket at `target` of the server that listens on the unix socket `path`.

    Raises OSError when nobody listens there, and WebSocketError when the server answers anything else than yes.
    """
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(0)
        connected.connect(path)  # at once, or not at all: see unix(7)
        key = base64.b64encode(os.urandom(16))
        request = (
            f"GET {target} HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        )
        connected.sendall(request.encode())
        response, rest = await _response(connected)
        _check_response(response, key, subprotocol)
    except BaseException:
        connected.close()
        raise
    return WebSocket(connected, rest, max_message_bytes)


async def _response(connected: socket.socket) -> tuple[bytes, bytes]:
    """The head of the server's response, and what follows it."""
    loop = asyncio.get_running_loop()
    received = b""
    while b"\r\n\r\n" not in received:
        readable = loop.create_future()
        loop.add_reader(connected.fileno(), _set, readable)
        try:
            await readable
        finally:
            loop.remove_reader(connected.fileno())
        data = connected.recv(_SMALL_READ_BYTES)
        received += data
        if not data or len(received) > _MAX_RESPONSE_BYTES + _SMALL_READ_BYTES:
            raise WebSocketError("the server has not answered in HTTP")
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _check_response(head: bytes, key: bytes, subprotocol: str) -> None:
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split(" ")[1:2] != ["101"]:
        raise WebSocketError(f"the server has answered {status[:100]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    accepted = base64.b64encode(hashlib.sha1(key + _ACCEPT_GUID, usedforsecurity=False).digest()).decode()
    wanted = {"upgrade": "websocket", "sec-websocket-accept": accepted, "sec-websocket-protocol": subprotocol}
    for name, value in wanted.items():
        if headers.get(name, "") != value and not (name == "upgrade" and headers.get(name, "").lower() == value):
            raise WebSocketError(f"the server's {name} is {headers.get(name)!r}")
    if "sec-websocket-extensions" in headers:
        raise WebSocketError("the server uses an extension that it was not asked for")
