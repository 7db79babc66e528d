"""The supervisor's end of a kernel's ZMQ channels: connecting, signing, checking. What messages mean is not known here.

Wire format: https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import zmq

from kernel_image.endpoints import Endpoints

_DELIMITER = b"<IDS|MSG>"
_SOCKET_TYPES = {"shell": zmq.DEALER, "control": zmq.DEALER, "stdin": zmq.DEALER, "iopub": zmq.SUB}
_PARTS = 4
_RECEIVE_QUEUE_MESSAGES = 8
_RECONNECT_MS = 5
_MESSAGES_PER_TURN = 16
"""After this many, the event loop serves the gateway's connection: a kernel can publish without end."""

Listener = Callable[[str, list[bytes]], None]
"""Gets the channel's name and header, parent_header, metadata, content and buffers, as bytes."""


class KernelChannels:
    """The four message channels of one kernel process."""

    def __init__(self, context: zmq.Context[Any], endpoints: Endpoints, kernel_name: str, listener: Listener) -> None:
        self._endpoints = endpoints
        self._kernel_name = kernel_name
        self._listener = listener
        self._key = secrets.token_hex(32)
        self._mac = hmac.new(self._key.encode(), digestmod=hashlib.sha256)
        self._client_session = secrets.token_hex(16)
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._loop = asyncio.get_running_loop()
        identity = secrets.token_bytes(16)
        for channel, kind in _SOCKET_TYPES.items():
            socket = context.socket(kind)
            socket.linger = 0
            # The kernel binds after this side has begun to connect; the default is to retry every 100 ms.
            socket.reconnect_ivl = _RECONNECT_MS
            if kind == zmq.SUB:
                # With XPUB_NODROP the kernel waits for us; without a bound its queue would grow in this process.
                socket.rcvhwm = _RECEIVE_QUEUE_MESSAGES
                socket.subscribe(b"")
            else:
                # stdin replies are routed by the identity that asked on shell.
                socket.identity = identity
            socket.connect(endpoints.url(channel))
            self._sockets[channel] = socket
            self._loop.add_reader(int(socket.fd), self._read, channel)

    def connection_info(self) -> dict[str, Any]:
        """The content of the kernel's connection file."""
        return {
            **self._endpoints.connection_info(),
            "key": self._key,
            "signature_scheme": "hmac-sha256",
            "kernel_name": self._kernel_name,
        }

    def send(self, channel: str, parts: Sequence[bytes]) -> None:
        """Sign and send header, parent_header, metadata, content and buffers."""
        socket = self._sockets[channel]
        socket.send_multipart([_DELIMITER, self._sign(parts[:_PARTS]), *parts], copy=True)
        # Sending may have consumed the socket's only signal that messages have arrived meanwhile.
        if int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._read, channel)

    def request(self, channel: str, msg_type: str, content: dict[str, Any]) -> str:
        """Send a request of the supervisor's own; returns its msg_id."""
        msg_id = secrets.token_hex(16)
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self._client_session,
            "username": "supervisor",
            "date": datetime.now(UTC).isoformat(),
            "version": "5.4",
        }
        self.send(channel, [json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()])
        return msg_id

    def drain(self) -> int:
        """Receive what has arrived, without waiting, at most one turn per channel; returns the number of messages."""
        return sum(self._receive_arrived(channel) for channel in self._sockets)

    def close(self) -> None:
        """Close all channels and remove their socket files."""
        for socket in self._sockets.values():
            self._loop.remove_reader(int(socket.fd))
            socket.close(linger=0)
        self._sockets.clear()
        for path in self._endpoints.socket_files():
            with contextlib.suppress(OSError):  # whatever the code has made of it
                path.unlink()

    def _read(self, channel: str) -> None:
        """Receive what has arrived. One signal stands for all of it (ZMQ_FD in zmq_getsockopt(3)), so more may be left.

        pyzmq's ZMQStream does the same at several times the cost per message.
        """
        if self._receive_arrived(channel) == _MESSAGES_PER_TURN:
            self._loop.call_soon(self._read, channel)

    def _receive_arrived(self, channel: str) -> int:
        """Receive what has arrived, at most one turn; returns the number of messages."""
        for count in range(_MESSAGES_PER_TURN):
            socket = self._sockets.get(channel)
            if socket is None:
                return count
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return count
            self._check(channel, frames)
        return _MESSAGES_PER_TURN

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        mac = self._mac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()

    def _check(self, channel: str, frames: list[bytes]) -> None:
        """Pass a message on if it is well-formed and signed. User code can reach these sockets too."""
        try:
            start = frames.index(_DELIMITER) + 1
        except ValueError:
            return
        signature, parts = b"".join(frames[start : start + 1]), frames[start + 1 :]
        if len(parts) >= _PARTS and hmac.compare_digest(signature, self._sign(parts[:_PARTS])):
            self._listener(channel, parts)
