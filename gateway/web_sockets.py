"""The server's end of a WebSocket, on which a message costs no task. What is said is decided elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.escape import utf8
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketProtocol13

_TEXT, _BINARY = 0x1, 0x2


class ServerEnd(WebSocketProtocol13):
    """It neither masks nor compresses what it sends."""

    def __init__(self, handler: Any, params: Any) -> None:
        super().__init__(handler, False, params)  # noqa: FBT003 - tornado's own: a server masks nothing

    def write_message(
        self,
        message: str | bytes | dict[str, Any],
        binary: bool = False,  # noqa: FBT001, FBT002 - the base class has it so
    ) -> asyncio.Future[None]:
        """Send it. Raises WebSocketClosedError.

        Tornado makes a task for each message, for whoever waits until it is written. Here that is told by the stream's
        own future, which raises StreamClosedError.
        """
        assert not isinstance(message, dict)  # noqa: S101 - the handler has encoded it
        try:
            return self._write_frame(True, _BINARY if binary else _TEXT, utf8(message))  # noqa: FBT003 - tornado's own
        except StreamClosedError:
            raise WebSocketClosedError from None
