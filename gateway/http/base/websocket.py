"""What all WebSockets have in common: the checks of every request before the upgrade, pings, one message at a time.

A subclass implements `on_message`. The content of messages is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import Application
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from gateway.http.base.bodies import no_room
from gateway.http.base.handler import BaseHandler
from gateway.http.base.incoming_messages import IncomingMessages
from gateway.http.base.outgoing import Place, bytes_of, is_taken
from gateway.http.base.subprotocols import subprotocol_authorization
from gateway.http.render.answer import strict_json
from sessions.errors import InvalidRequest

_POLICY_VIOLATION = 1008
_SERVICE_RESTART = 1012
_VERSION = "13"
_AT_ONCE = 16
"""So many messages may be written one after the other, as fast as the client takes them, before others get a turn."""


class SocketHandler(BaseHandler, WebSocketHandler):
    """One WebSocket.

    Its state beside the base class's: whether it is closed, who is writing, and how many messages that was in a row.
    """

    ends_early: ClassVar[bool] = False

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        self.is_closed = False
        self._writing = asyncio.Lock()
        self._in_a_row = 0
        super().__init__(application, request, **kwargs)

    # --- opening ------------------------------------------------------------------------------------------------------

    async def handle_request(self) -> None:
        """Be a WebSocket until it is closed. Raises InvalidRequest when that is not what the client wants."""
        self._check_handshake()
        with self.context.http.streams.holding(self):
            await WebSocketHandler.get(self)

    def _check_handshake(self) -> None:
        headers = self.request.headers
        connection = [word.strip() for word in headers.get("Connection", "").lower().split(",")]
        if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in connection:
            raise InvalidRequest("This address is a WebSocket: connect with a WebSocket client.")
        if headers.get("Sec-WebSocket-Version") != _VERSION or not headers.get("Sec-WebSocket-Key"):
            raise InvalidRequest("The WebSocket handshake must be of version 13, with a key (RFC 6455).")

    def authorization(self) -> str | None:
        """The header `Authorization`, or a token among the sub-protocols. Raises InvalidRequest where both are."""
        header, offered = super().authorization(), subprotocol_authorization(self.request.headers)
        if header is not None and offered is not None:
            raise InvalidRequest("There are two tokens: leave out the header `Authorization`, or the sub-protocol.")
        return offered if header is None else header

    def check_origin(self, origin: str) -> bool:
        """The base class has looked at it already."""
        del origin
        return True

    def open(self, *args: str, **kwargs: str) -> None:
        """Small messages go out at once."""
        del args, kwargs
        self.patience.may_pause = True
        self.set_nodelay(True)

    @property
    def ping_interval(self) -> float:
        return self.context.http.bounds.ping_s

    @property
    def ping_timeout(self) -> float:
        return self.context.http.bounds.ping_s

    @property
    def max_message_size(self) -> int:
        """Bytes; a larger message closes the connection with 1009."""
        return self.context.config.limits.request_bytes

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        protocol = super().get_websocket_protocol()
        if isinstance(protocol, WebSocketProtocol13):
            return IncomingMessages(self, protocol.params, self.context.http)
        return protocol

    @contextmanager
    def holding(self, message: str | bytes) -> Iterator[None]:
        """Count a message among all bodies while it is being worked on. Raises Unavailable when there are too many."""
        if not self.context.http.bodies.reserve(len(message), self.client):
            raise no_room()
        try:
            yield
        finally:
            self.context.http.bodies.release(len(message), self.client)

    # --- talking ------------------------------------------------------------------------------------------------------

    async def send_message(self, message: dict[str, Any], place: Place) -> None:
        """Send a message and return once the client has taken it; others wait meanwhile.

        Raises WebSocketClosedError when the client is gone, also for taking nothing; Unavailable.
        """
        await place.make(bytes_of(message))
        await self.send_encoded(lambda: strict_json(message), place, is_text=True)

    async def send_encoded(self, encode: Callable[[], str | bytes], place: Place, *, is_text: bool = False) -> None:
        """The same with what `encode` makes; `place` has room for that, and is left."""
        async with self._writing:
            data = encode()
            await place.take(len(data))
            writing = self.write_message(data, binary=isinstance(data, bytes) and not is_text)
            del data
            try:
                await self._taken(writing)
            except TimeoutError:
                self.disconnect()
                raise WebSocketClosedError from None
            except StreamClosedError:
                raise WebSocketClosedError from None
            finally:
                place.leave()

    @contextmanager
    def placing(self) -> Iterator[Place]:
        """A place for messages that are sent one after the other."""
        with self.context.answers.place() as place:
            place.waits_long = True
            yield place

    async def _taken(self, writing: asyncio.Future[None]) -> None:
        """Return once the client has taken what was written: at once, if the socket has."""
        stream = getattr(self.ws_connection, "stream", None)
        self._in_a_row += 1
        if not is_taken(stream):
            self._in_a_row = 0
            await self.patience.wait_for(writing, stream)
        elif self._in_a_row >= _AT_ONCE:
            self._in_a_row = 0
            await asyncio.sleep(0)

    # --- closing ------------------------------------------------------------------------------------------------------

    def end_stream(self) -> None:
        """Say that this gateway goes away: a client may connect anew, to the next one."""
        self.close(_SERVICE_RESTART, "This gateway is shutting down: connect again.")

    def turn_away(self) -> None:
        """Say that its token is none any more."""
        self.close(_POLICY_VIOLATION, "The token of this connection is not valid any more.")

    def disconnect(self) -> None:
        """Close the connection without the closing handshake."""
        stream = getattr(self.ws_connection, "stream", None)
        if stream is not None:
            stream.close()

    def on_close(self) -> None:
        self.is_closed = True
