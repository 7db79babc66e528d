"""The five ZMQ sockets that a kernel's clients connect to: binding, checking signatures, signing, and no meaning.

Wire format: https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import zmq

from gateway.local_jupyter import bridge_protocol
from gateway.local_jupyter.connection import Connection
from gateway.local_jupyter.publisher import Publisher
from sessions import quick_json
from sessions.errors import SetUpFailed
from sessions.kernels.messages import PROTOCOL_VERSION

REQUEST_CHANNELS = ("shell", "control", "stdin")

_DELIMITER = b"<IDS|MSG>"
_HELD_BACK = ("shell", "stdin")
_PARTS = 4
_MESSAGES_PER_TURN = 16
_LINGER_MS = 500

Listener = Callable[[str, list[bytes], list[bytes]], None]
"""Gets the channel, who asked (routing identities), and header, parent_header, metadata, content and buffers."""


class AddressInUse(SetUpFailed):
    """Another process listens at an address of the connection file, or the address is not ours to listen at."""

    code = bridge_protocol.ADDRESS_IN_USE


class ClientSockets:
    """The sockets of one kernel, for any number of clients.

    Its state: whether requests are read now. Unread ones wait in ZMQ's queues, within their bounds. The control channel
    is always read: its requests may be about a kernel that hangs, or is dead.
    """

    def __init__(self, connection: Connection, listener: Listener) -> None:
        """Bind all sockets. Raises AddressInUse."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._session = uuid4().hex
        self._mac = hmac.new(connection.key, digestmod=connection.digest) if connection.key else None
        self._context = zmq.Context[Any]()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._reads_requests = False
        address = ""
        try:
            for channel in (*REQUEST_CHANNELS, "hb"):
                address = connection.addresses[channel]
                socket = self._sockets[channel] = self._context.socket(zmq.REP if channel == "hb" else zmq.ROUTER)
                if channel in REQUEST_CHANNELS:
                    # A client that reconnects under its old identity replaces the old connection.
                    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
                socket.bind(address)
            address = connection.addresses["iopub"]
            self._publisher = Publisher(self._context, address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise AddressInUse(f"The kernel cannot listen at {address}: {error.strerror or error}.") from error
        for channel in REQUEST_CHANNELS:
            self._loop.add_reader(int(self._sockets[channel].fd), self._read, channel)
        self._loop.add_reader(int(self._sockets["hb"].fd), self._beat)
        self._loop.add_reader(int(self._publisher.socket.fd), self._welcome)

    def read_requests(self, wanted: bool) -> None:  # noqa: FBT001 - there is no better name for either
        """Read requests for the kernel from now on, or leave them in the queues."""
        if wanted and not self._reads_requests:
            for channel in _HELD_BACK:
                self._loop.call_soon(self._read, channel)
        self._reads_requests = wanted

    def reply(self, channel: str, identities: Sequence[bytes], parts: Sequence[bytes]) -> None:
        """Send serialized parts to one client; a client that has disconnected misses them."""
        socket = self._sockets[channel]
        with suppress(zmq.ZMQError):
            socket.send_multipart([*identities, _DELIMITER, self._sign(parts), *parts], zmq.NOBLOCK)
        # Sending may have consumed the socket's only signal that messages have arrived meanwhile.
        self._loop.call_soon(self._read, channel)

    def publish(self, topic: str, parts: Sequence[bytes]) -> None:
        """Send serialized parts to all subscribers of iopub."""
        self._publisher.publish([topic.encode("utf-8", "replace"), _DELIMITER, self._sign(parts), *parts])
        self._loop.call_soon(self._welcome)

    def room(self) -> asyncio.Task[None] | None:
        """What to await before more is published; None when there is room."""
        return self._publisher.room()

    def make(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> list[bytes]:
        """The serialized parts of a message of our own; `parent` is the header of the message that it answers."""
        header = {
            "msg_id": uuid4().hex,
            "msg_type": msg_type,
            "username": "kernel",
            "session": self._session,
            "date": datetime.now(UTC).isoformat(),
            "version": PROTOCOL_VERSION,
        }
        return [quick_json.dump(part) for part in (header, parent, {}, content)]

    def close(self) -> None:
        """Close all sockets; sent messages get half a second to arrive."""
        for socket in (*self._sockets.values(), self._publisher.socket):
            self._loop.remove_reader(int(socket.fd))
        sockets = list(self._sockets.values())
        self._sockets.clear()
        for socket in sockets:
            socket.close(_LINGER_MS)
        self._publisher.close(_LINGER_MS)
        self._context.term()

    def _read(self, channel: str) -> None:
        """Receive what has arrived. One signal stands for it all (ZMQ_FD in zmq_getsockopt(3)), so more may be left."""
        for _ in range(_MESSAGES_PER_TURN):
            socket = self._sockets.get(channel)
            if socket is None or (channel in _HELD_BACK and not self._reads_requests):
                return
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._receive(channel, frames)
        self._loop.call_soon(self._read, channel)

    def _receive(self, channel: str, frames: list[bytes]) -> None:
        """Pass a message on if it is well-formed and signed with our key."""
        if _DELIMITER not in frames:
            return
        start = frames.index(_DELIMITER)
        signature, parts = b"".join(frames[start + 1 : start + 2]), frames[start + 2 :]
        if len(parts) >= _PARTS and hmac.compare_digest(signature, self._sign(parts)):
            self._listener(channel, frames[:start], parts)

    def _beat(self) -> None:
        """Echo all heartbeats that have arrived."""
        while (socket := self._sockets.get("hb")) is not None:
            try:
                socket.send_multipart(socket.recv_multipart(zmq.NOBLOCK), zmq.NOBLOCK)
            except zmq.Again:
                return

    def _welcome(self) -> None:
        """Send `iopub_welcome` to new subscribers, which miss nothing from then on: Jupyter enhancement proposal 65."""
        if not self._sockets:
            return
        for topic in self._publisher.new_subscriptions():
            parts = self.make("iopub_welcome", {"subscription": topic.decode("utf-8", "replace")}, {})
            self._publisher.publish([topic, _DELIMITER, self._sign(parts), *parts])

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        """The signature over all but the buffers; empty where the connection has no key."""
        if self._mac is None:
            return b""
        mac = self._mac.copy()
        for part in parts[:_PARTS]:
            mac.update(part)
        return mac.hexdigest().encode()
