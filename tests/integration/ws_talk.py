"""What tests say to `/runcode/ws`, and hear from it; the handshake as bytes, for clients that must misbehave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
from typing import Any

from http_face import Face
from memory_service import MemoryRun
from websockets.asyncio.client import ClientConnection

from gateway.auth import Token

TOKENS = tuple(Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in ("alice", "bob"))
UPGRADE = (
    "GET /runcode/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n"
).encode()


async def tell(ws: ClientConnection, **message: Any) -> None:
    await ws.send(json.dumps(message))


async def hear(ws: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(30):
        message = await ws.recv()
    assert isinstance(message, str)
    heard: dict[str, Any] = json.loads(message)
    return heard


async def begun(face: Face, count: int = 1) -> list[MemoryRun]:
    async with asyncio.timeout(30):
        while len(face.service.runs) < count:
            await asyncio.sleep(0.005)
    return face.service.runs


async def until(face: Face, expected: str) -> None:
    async with asyncio.timeout(30):
        while repr(face.streams) != expected:
            await asyncio.sleep(0.005)


def frame_of(text: str) -> bytes:
    """A masked text frame."""
    data = text.encode()
    return b"\x81" + struct.pack("!BH", 0xFE, len(data)) + bytes(4) + data
