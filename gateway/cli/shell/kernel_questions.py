"""What a prompt asks a session's kernel while somebody types: how a word goes on, and whether the code is whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from tornado.websocket import WebSocketClientConnection, WebSocketClosedError

from gateway.cli.connection import Address
from gateway.cli.shell.live import connect
from gateway.client import ClientError

_ANSWER_S = 5.0


class KernelQuestions:
    """Requests to a kernel over its Jupyter WebSocket, one at a time.

    The mutable state is that connection, and the kernel's id, until it is in doubt.
    """

    def __init__(self, address: Address, kernel_id: str, find_kernel: Callable[[], Awaitable[str]]) -> None:
        """`find_kernel` returns the id of the session's kernel, which another one may have replaced."""
        self._address = address
        self._kernel_id = kernel_id
        self._find_kernel = find_kernel
        self._socket: WebSocketClientConnection | None = None
        self._lock = asyncio.Lock()

    def close(self) -> None:
        """Hang up. The next question finds the kernel anew."""
        self._kernel_id = ""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def completions(self, code: str, cursor: int) -> tuple[int, list[str]]:
        """How the word before the cursor may go on: where it begins, and what may stand there."""
        content = await self._ask("complete_request", {"code": code, "cursor_pos": cursor})
        matches = content.get("matches")
        if content.get("status") != "ok" or not isinstance(matches, list):
            return cursor, []
        return min(cursor, int(content.get("cursor_start", cursor))), [str(match) for match in matches]

    async def indent(self, code: str) -> str | None:
        """What the next line begins with where the code is not whole; None where it can run."""
        content = await self._ask("is_complete_request", {"code": code})
        return str(content.get("indent", "")) if content.get("status") == "incomplete" else None

    async def _ask(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """The content of the reply; empty where there is none in time."""
        async with self._lock:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    if self._socket is not None:
                        with suppress(WebSocketClosedError):
                            return await self._exchange(kind, content)
                        self.close()
                    return await self._exchange(kind, content)
            except (TimeoutError, ClientError, WebSocketClosedError):
                self.close()
                return {}

    async def _exchange(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        if self._socket is None:
            self._kernel_id = self._kernel_id or await self._find_kernel()
            path = f"/api/kernels/{quote(self._kernel_id, safe='')}/channels?session_id={uuid4()}"
            self._socket = await connect(self._address, path)
        if self._socket is None:
            return {}
        msg_id = str(uuid4())
        header = {
            "msg_id": msg_id,
            "msg_type": kind,
            "username": "",
            "session": "shell",
            "date": datetime.now(UTC).isoformat(),
            "version": "5.4",
        }
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
        await self._socket.write_message(json.dumps(message))
        while (text := await self._socket.read_message()) is not None:
            if isinstance(text, bytes):
                continue  # with buffers: no reply of ours has any
            reply = json.loads(text)
            if reply.get("channel") == "shell" and reply.get("parent_header", {}).get("msg_id") == msg_id:
                answered: dict[str, Any] = reply["content"]
                return answered
        raise WebSocketClosedError
