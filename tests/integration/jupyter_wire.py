"""A gateway for Jupyter clients: the real application over the real service, whose kernels say what the test wants."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from http_face import Face, serving
from jupyter_talk import Screen, message
from websockets.asyncio.client import ClientConnection
from workbench import Bench, S

from gateway.http.base.limits import HttpBounds
from gateway.http.jupyter.framing import framing_of
from kernel_image.protocol import SUBPROTOCOL
from sessions.jupyter.client_state import ClientState
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.router import ClientRouter
from sessions.model import ANONYMOUS
from sessions.settings import Limits, Timeouts


@dataclass
class Wire:
    bench: Bench
    face: Face

    def url(self, client: str | None = "lab", kernel_id: str = S) -> str:
        query = f"?session_id={client}" if client is not None else ""
        return f"ws://127.0.0.1:{self.face.port}/api/kernels/{kernel_id}/channels{query}"

    @property
    def router(self) -> ClientRouter:
        return self.bench.service._sessions.get(ANONYMOUS, S).observers.find(ClientRouter)

    def client_state(self, client: str = "lab") -> ClientState:
        return self.router._states[client]

    async def publish(self, msg_type: str, content: Mapping[str, Any]) -> None:
        """Something that the session's kernel says though nobody has asked."""
        kernel_id = self.bench.session().kernel_id
        assert kernel_id is not None
        self.bench.engine.publish(kernel_id, msg_type, "nobody's", content)
        await asyncio.sleep(0)

    @asynccontextmanager
    async def raw(self, client: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that reads and answers only what the test reads and answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.face.port)
        path = f"/api/kernels/{S}/channels?session_id={client}"
        key = base64.b64encode(bytes(16)).decode()
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
            "".encode()
        )
        async with asyncio.timeout(5):
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@asynccontextmanager
async def wired(bounds: HttpBounds | None = None) -> AsyncIterator[Wire]:
    bench = await Bench(timeouts=Timeouts()).start()
    try:
        await bench.create()
        async with serving(service=bench.service, limits=Limits(request_bytes=1 << 20), bounds=bounds) as face:
            yield Wire(bench, face)
    finally:
        await bench.stop()


async def execute(ws: ClientConnection, code: str) -> None:
    """Ask for code, under a msg_id that is the code."""
    asked = message("execute_request", {"code": code}, msg_id=code, channel="shell")
    await ws.send(framing_of(ws.subprotocol).encode(asked))


async def receive(ws: ClientConnection) -> ClientMessage:
    async with asyncio.timeout(5):
        return framing_of(ws.subprotocol).decode(await ws.recv())


async def receive_until(ws: ClientConnection, msg_type: str, screen: Screen | None = None) -> list[ClientMessage]:
    """All messages up to the first one of a type."""
    heard = [await receive(ws)]
    while heard[-1].msg_type != msg_type:
        heard.append(await receive(ws))
    for one in heard if screen is not None else ():
        screen.show(one)  # type: ignore[union-attr]
    return heard


def text_of(messages: list[ClientMessage]) -> str:
    return "".join(json.loads(one.content)["text"] for one in messages if one.msg_type == "stream")
