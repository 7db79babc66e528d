"""What WebSocket messages hold of the gateway's memory: counted with all bodies from the first byte, and bounded."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import pytest_asyncio
from http_face import Face
from websockets.asyncio.client import ClientConnection
from ws_talk import UPGRADE, hear, tell

from gateway.http.base.limits import HttpBounds

LIMIT = 10_000  # the face's own `request_bytes`
OF_ONE_CLIENT = HttpBounds().buffered_bodies * 7 // 8
TEXT, CONTINUATION, PING = 0x01, 0x00, 0x89
FINAL = 0x80

Opener = Callable[[], Awaitable["Raw"]]


class Raw:
    """A client that says frames as it likes; it does not mask them (by a mask of zeros)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def frame(self, kind: int, size: int, sent: int | None = None) -> None:
        """A frame of so many bytes, or the beginning of it."""
        length = struct.pack("!BBH", kind, 0x80 | 126, size) if size > 125 else struct.pack("!BB", kind, 0x80 | size)
        self.writer.write(length + bytes(4) + b"x" * (size if sent is None else sent))

    async def hear(self) -> bytes:
        """An error message, in its frame."""
        async with asyncio.timeout(5):
            return await self.reader.readuntil(b"null}")

    async def close_code(self) -> int:
        """Read to the end; the code of the close frame, and 0 without one."""
        async with asyncio.timeout(5):
            data = await self.reader.read()
        return struct.unpack("!H", data[2:4])[0] if data[:1] == b"\x88" else 0


@pytest_asyncio.fixture
async def raw(face: Face) -> AsyncIterator[Opener]:
    writers = []

    async def open_one() -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writers.append(writer)
        writer.write(UPGRADE)
        async with asyncio.timeout(5):
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        return Raw(reader, writer)

    yield open_one
    for writer in writers:
        writer.close()


async def until_held(face: Face, size_bytes: int) -> None:
    async with asyncio.timeout(5):
        while repr(face.bodies) != f"<BufferedBodies {size_bytes}>":
            await asyncio.sleep(0.005)


async def test_a_message_that_is_not_finished_is_counted_until_it_is_gone(face: Face, raw: Opener) -> None:
    one, other = await raw(), await raw()
    one.frame(TEXT, 3000)
    await until_held(face, 3000)
    one.frame(PING, 100)
    one.frame(CONTINUATION, 100)  # as short as a ping, and not forgotten
    await until_held(face, 3100)
    other.frame(TEXT, 5000, sent=7)  # announced: there must be room for it
    await until_held(face, 8100)
    one.frame(CONTINUATION | FINAL, 1000)
    await until_held(face, 5000)
    other.writer.close()
    await until_held(face, 0)


async def test_when_too_much_is_held_the_others_wait(face: Face, raw: Opener, ws: ClientConnection) -> None:
    clients = [await raw() for _ in range(OF_ONE_CLIENT)]
    for client in clients:
        client.frame(TEXT, LIMIT)
    await until_held(face, OF_ONE_CLIENT * LIMIT)
    late = await raw()
    late.frame(TEXT, 1000)
    await tell(ws, op="run", code="#" * 100)  # no longer than a control frame, and yet nobody has room to work on it
    assert (await hear(ws))["code"] == "unavailable"
    clients[0].writer.close()
    await until_held(face, (OF_ONE_CLIENT - 1) * LIMIT + 1000)
    late.frame(CONTINUATION | FINAL, 100)
    assert b"invalid_json" in await late.hear()
    await tell(ws, op="run", code="#" * 100)
    assert (await hear(ws))["type"] == "started"


async def test_an_announced_message_that_does_not_come_makes_room(
    face: Face, raw: Opener, ws: ClientConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http.base.connections._PATIENCE_S", 0.5)
    clients = [await raw() for _ in range(OF_ONE_CLIENT)]
    for client in clients:
        client.frame(TEXT, LIMIT, sent=1)
    await until_held(face, OF_ONE_CLIENT * LIMIT)
    await asyncio.sleep(1.5)  # the time in which nothing more comes
    await tell(ws, op="run", code="#" * 1000)
    assert (await hear(ws))["type"] == "started"
    assert await clients[0].close_code() == 1013


@pytest.mark.parametrize("face", [HttpBounds(message_timeout_s=0.2)], indirect=True)
async def test_a_message_that_never_ends_closes_its_connection(face: Face, raw: Opener) -> None:
    slow, quick = await raw(), await raw()
    slow.frame(TEXT, 3000)
    quick.frame(TEXT | FINAL, 3000)
    assert await slow.close_code() == 1013
    await until_held(face, 0)
    quick.frame(TEXT | FINAL, 3)
    assert b"invalid_json" in await quick.hear()


async def test_messages_are_counted_until_their_runs_have_begun(face: Face, ws: ClientConnection) -> None:
    face.service.hold = asyncio.Event()
    message = json.dumps({"op": "run", "id": 1, "code": "#" * (LIMIT - 100)})
    fitting = OF_ONE_CLIENT * LIMIT // len(message)
    for _ in range(fitting + 1):
        await ws.send(message)
    await until_held(face, fitting * len(message))
    async with httpx.AsyncClient(base_url=face.url) as client:
        refused = await client.post("/runcode", content=b" " * LIMIT)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    face.service.hold.set()
    for _ in range(fitting + 1):
        assert (await hear(ws))["type"] == "started"
    await until_held(face, 0)
