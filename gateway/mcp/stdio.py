"""The MCP server on standard input and output: one process, one conversation."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import anyio
from mcp.server.stdio import stdio_server

from gateway.mcp.conversation import Connected, Conversation
from gateway.mcp.server import make_server


async def serve(version: str, connected: Connected) -> None:
    """Serve until standard input ends. Sessions end with it."""
    conversation = Conversation(connected, is_lasting=True)
    server = make_server(version, lambda _: conversation)
    lines = _Lines(os.dup(sys.stdin.fileno()))
    try:
        async with stdio_server(stdin=cast("anyio.AsyncFile[str]", lines)) as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())
    finally:
        await conversation.end()


class _Lines:
    """The lines of standard input, read by a thread that nobody has to wait for: a read cannot be cancelled.

    The mutable state is the queue; None in it is the end.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, encoding="utf-8", errors="replace")
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, name="standard input", daemon=True).start()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        line = await self._queue.get()
        if line is None:
            raise StopAsyncIteration
        return line

    def _read(self) -> None:
        try:
            for line in self._file:
                self._put(line)
        finally:
            self._put(None)

    def _put(self, line: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, line)
