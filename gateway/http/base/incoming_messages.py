"""Incoming WebSocket messages: counts the memory of unfinished ones with that of all bodies, and bounds their time.

Tornado keeps the unfinished message of each connection; this counts it, and reads on when there is room.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.iostream import StreamClosedError

from gateway.http.base.bodies import Arrival
from gateway.http.base.limits import HttpLimits
from gateway.web_sockets import ServerEnd

_WAIT_FOR_ROOM_S = 0.02
_PIECE_BYTES = 64 << 10
_TRY_AGAIN_LATER = 1013  # https://www.iana.org/assignments/websocket/websocket.xml
_MAX_CONTROL_BYTES = 125  # RFC 6455, 5.5


class IncomingMessages(ServerEnd):
    """The receiving end of one connection.

    Its state beside the base class's: how large the frame is that comes in, how many bytes are counted, by when the
    message must be there and how quickly it comes, and whether the connection is over.
    """

    def __init__(self, handler: Any, params: Any, limits: HttpLimits) -> None:
        super().__init__(handler, params)
        self._bodies = limits.bodies
        self._client: str = handler.client
        self._arrival: Arrival | None = None
        self._timeout_s = limits.bounds.message_timeout_s
        self._frame_bytes = 0
        self._counted_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._is_over = False

    async def _read_bytes(self, n: int) -> bytes:
        """Count the payload of a frame before it comes in; what is no longer than a control frame's may be one's."""
        self._frame_bytes = n if n > _MAX_CONTROL_BYTES else 0
        await self._wait_for_room()
        arrival = self._arrival
        if arrival is None or n <= _PIECE_BYTES:
            return await super()._read_bytes(n)
        data = bytearray()
        while len(data) < n:
            piece = await super()._read_bytes(min(_PIECE_BYTES, n - len(data)))
            arrival.pace.count(len(piece))
            data += piece
        return bytes(data)

    async def _receive_frame(self) -> None:
        await super()._receive_frame()
        self._frame_bytes = 0
        await self._wait_for_room()

    def _handle_message(self, opcode: int, data: bytes) -> Any:
        """A whole message has arrived, which its handler counts from now on; or a control frame amid a message."""
        self._frame_bytes = 0
        self._count()
        return super()._handle_message(opcode, data)

    def _abort(self) -> None:
        self._is_over = True
        self._count()
        super()._abort()

    def _on_timeout(self) -> None:
        """The message has not come in time, there was no room for it, or others need its room."""
        self.close(_TRY_AGAIN_LATER, "The message did not come in time, or there was no room for it: try again.")
        self._abort()

    async def _wait_for_room(self) -> None:
        """Count what is held now, when there is room for it. Raises StreamClosedError when the connection is over."""
        while not self._count():
            await asyncio.sleep(_WAIT_FOR_ROOM_S)  # releasing memory wakes nobody
            if self._arrival is not None:
                self._arrival.pace.pause()
        if self._is_over:
            raise StreamClosedError

    def _count(self) -> bool:
        """Count what is held now, unless that is too much."""
        size_bytes = 0 if self._is_over else self._frame_bytes + len(self._fragmented_message_buffer or b"")
        more = size_bytes - self._counted_bytes
        if not size_bytes and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif size_bytes and self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(self._timeout_s, self._on_timeout)
        if size_bytes and self._arrival is None:
            self._arrival = self._bodies.begin(self._client, self._on_timeout)
        if more > 0 and not self._bodies.reserve(more, self._client, self._arrival):
            return False
        if more < 0:
            self._bodies.release(-more, self._client, self._arrival)
        if not size_bytes and self._arrival is not None:
            self._bodies.end(self._arrival)
            self._arrival = None
        self._counted_bytes = size_bytes
        return True
