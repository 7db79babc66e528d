"""MCP's own client, at `cellblock mcp` and at the server over HTTP, as a host has them."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2
from crash_rig import REPOSITORY
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    BlobResourceContents,
    CallToolResult,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from gateway.mcp import http

_T = TypeVar("_T")


@dataclass
class Host:
    """A program with a model in it. It names the session where it was told one, as the model would."""

    client: Client
    session_id: str | None = None
    has_conversation: bool = True
    progress: list[str] = field(default_factory=list)

    async def call(self, name: str, **arguments: Any) -> CallToolResult:
        if self.session_id is not None:
            arguments["session_id"] = self.session_id
        result = await self.client.call_tool(name, arguments, progress_callback=self._on_progress)
        for text in texts(result):
            if found := re.fullmatch(r"\[session_id: (.*)\]", text):
                self.session_id = found[1]
        return result

    async def run(self, code: str, **arguments: Any) -> CallToolResult:
        return await self.call("run_code", code=code, **arguments)

    async def text(self, code: str) -> str:
        """What code says that ends well."""
        result = await self.run(code)
        assert not result.is_error, texts(result)
        return texts(result)[0]

    async def read(self, uri: str) -> bytes:
        (content,) = (await self.client.read_resource(uri)).contents
        if isinstance(content, TextResourceContents):
            return content.text.encode()
        assert isinstance(content, BlobResourceContents)
        return base64.b64decode(content.blob)

    async def _on_progress(self, _: float, __: float | None, message: str | None) -> None:
        self.progress.append(message or "")


def texts(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if isinstance(block, TextContent)]


def images(result: CallToolResult) -> list[ImageContent]:
    return [block for block in result.content if isinstance(block, ImageContent)]


def links(result: CallToolResult) -> dict[str, ResourceLink]:
    return {block.name: block for block in result.content if isinstance(block, ResourceLink)}


def command(url: str, *arguments: str, **variables: str) -> StdioServerParameters:
    """`cellblock mcp`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CELLBLOCK_")}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "gateway", "mcp", *(["--url", url] if url else []), *arguments],
        env={**environment, "PYTHONPATH": str(REPOSITORY), **variables},
    )


@asynccontextmanager
async def over_stdio(parameters: StdioServerParameters) -> AsyncIterator[Host]:
    """As hosts have it today: with the handshake."""
    async with Client(parameters, mode="legacy") as client:
        yield Host(client)


@asynccontextmanager
async def over_http(url: str, era: str = "2026", token: str = "") -> AsyncIterator[Host]:
    """With the handshake of 2025, or the protocol of 2026, which knows no conversation."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as connections:
        transport = streamable_http_client(url, http_client=connections)
        async with Client(transport, mode="legacy" if era == "2025" else "auto") as client:
            yield Host(client)


@asynccontextmanager
async def http_server(gateway_url: str) -> AsyncIterator[str]:
    """The server over HTTP, in this process; yields its address."""
    announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def address() -> str:
        return gateway_url

    serving = asyncio.ensure_future(http.serve("1", address, 0, ["cells.example.org"], announced.set_result))
    try:
        yield await announced
    finally:
        serving.cancel()
        await asyncio.wait([serving])


@asynccontextmanager
async def in_a_task(context: AbstractAsyncContextManager[_T]) -> AsyncIterator[_T]:
    """Enter and leave in one task, which fixtures do not do, and anyio asks for."""
    entered: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
    leaving = asyncio.Event()

    async def hold() -> None:
        try:
            async with context as value:
                entered.set_result(value)
                await leaving.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    holding = asyncio.ensure_future(hold())
    try:
        yield await entered
    finally:
        leaving.set()
        await holding


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.01)
