"""The supervisor's WebSocket client: against a server that checks every frame, and against one that says anything."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.typing import Subprotocol

from kernel_image import websocket
from kernel_image.websocket import Message, WebSocket, WebSocketError

LIMIT_BYTES = 1 << 20
PATIENCE_S = 30
SIZES = (0, 1, 125, 126, 127, 65535, 65536, 65537, 1_000_000)


async def connect(path: Path) -> WebSocket:
    async with asyncio.timeout(PATIENCE_S):
        return await websocket.connect(str(path), "/there", "spoken", max_message_bytes=LIMIT_BYTES)


async def received(connection: WebSocket) -> list[Message]:
    """What comes until the other end closes."""
    messages: list[Message] = []
    async with asyncio.timeout(PATIENCE_S):
        await connection.receive(messages.append)
    return messages


@asynccontextmanager
async def strict_server(path: Path, talk: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[None]:
    """A server that checks what it gets as RFC 6455 says."""
    async with unix_serve(talk, str(path), subprotocols=[Subprotocol("spoken")], max_size=None, compression=None):
        yield


def answer_to(request: bytes, **changes: str | None) -> bytes:
    key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()  # noqa: S324
    status = changes.pop("status", "101 Switching Protocols")
    headers = {"Upgrade": "WebSocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
    headers["sec-websocket-protocol"] = "spoken"
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}  # type: ignore[misc]
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def raw_server(path: Path, *pieces: bytes, answer: Callable[[bytes], bytes] = answer_to) -> AsyncIterator[None]:
    """A server that agrees to everything, writes these bytes piece by piece, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        for piece in pieces:
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(piece)
        writer.close()

    async with await asyncio.start_unix_server(serve, str(path)):
        yield


async def test_a_ping_within_a_message_does_not_count_towards_its_size(short_dir: Path) -> None:
    most = b"x" * (LIMIT_BYTES - 1)
    begin = b"\x02\x7f" + len(most).to_bytes(8) + most
    async with raw_server(short_dir / "s", begin, b"\x89\x04ping", b"\x80\x01y", b"\x88\x02\x03\xe8"):
        assert await received(await connect(short_dir / "s")) == [most + b"y"]


async def test_messages_of_all_sizes_pass_both_ways(short_dir: Path) -> None:
    async def echo(server: ServerConnection) -> None:
        async for message in server:
            await server.send(message)
            if message == "the last":
                return

    sent: list[Message] = [b"\xff" * size for size in SIZES] + ["ü" * (size // 2) for size in SIZES] + ["the last"]
    async with strict_server(short_dir / "s", echo):
        connection = await connect(short_dir / "s")
        for message in sent:
            connection.send(message)
        assert await received(connection) == sent
    assert connection.close_code == 1000
    assert connection.unsent_bytes == 0


async def test_what_the_socket_does_not_take_is_counted_and_sent_later(short_dir: Path) -> None:
    may_read = asyncio.Event()
    heard: list[Message] = []

    async def reader(server: ServerConnection) -> None:
        await may_read.wait()
        heard.extend([await server.recv() for _ in range(40)])

    async with strict_server(short_dir / "s", reader):
        connection = await connect(short_dir / "s")
        flushes: list[int] = []
        connection.on_flushed = lambda: flushes.append(connection.unsent_bytes)
        sent = [bytes([number]) * 500_000 for number in range(40)]
        for message in sent:
            connection.send(message)
        assert connection.unsent_bytes > 20_000_000
        await asyncio.sleep(0.05)
        assert connection.unsent_bytes > 5_000_000
        may_read.set()
        await received(connection)
    assert heard == sent
    assert flushes[-1] == 0
    assert flushes == sorted(flushes, reverse=True)


async def test_messages_in_pieces_are_joined_and_pings_between_them_answered(short_dir: Path) -> None:
    async def pieces(server: ServerConnection) -> None:
        await server.send(["one ", "two ", "three"])
        await (await server.ping(b"there?"))
        await server.send([b"four ", b"five"])
        await server.close(1001, "enough")

    async with strict_server(short_dir / "s", pieces):
        connection = await connect(short_dir / "s")
        assert await received(connection) == ["one two three", b"four five"]
    assert (connection.close_code, connection.close_reason) == (1001, "enough")


async def test_frames_are_found_wherever_the_bytes_are_cut(short_dir: Path) -> None:
    stream = b"\x82\x03abc\x01\x01x\x89\x01p\x80\x01y\x82\x7e\x00\x80" + b"z" * 128 + b"\x81\x00\x88\x02\x03\xe8"
    wanted: list[Message] = [b"abc", "xy", b"z" * 128, ""]
    for seed in range(20):
        choices = random.Random(seed)  # noqa: S311
        cuts = sorted(choices.sample(range(1, len(stream)), choices.randint(0, 40)))
        pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        async with raw_server(short_dir / f"s{seed}", *pieces):
            assert await received(await connect(short_dir / f"s{seed}")) == wanted


async def test_frames_that_come_with_the_answer_are_handled(short_dir: Path) -> None:
    async with raw_server(short_dir / "s", answer=lambda request: answer_to(request) + b"\x81\x05early"):
        assert await received(await connect(short_dir / "s")) == ["early"]


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xc2\x01x",  # a reserved bit
        b"\x83\x01x",  # an unknown opcode
        b"\x8b\x01x",
        b"\x82\x81\0\0\0\0x",  # masked
        b"\x80\x01x",  # goes on with nothing
        b"\x02\x01x\x82\x01y",  # begins within another
        b"\x09\x01x",  # a ping in pieces
        b"\x89\x7e\x00\x80" + b"x" * 128,  # a long ping
        b"\x82\x7f" + (LIMIT_BYTES + 1).to_bytes(8),  # too long
        b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x02\x7f" + LIMIT_BYTES.to_bytes(8) + b"x" * LIMIT_BYTES + b"\x80\x01y",  # too long in all
    ],
)
async def test_a_wrong_frame_breaks_the_connection(short_dir: Path, wrong: bytes) -> None:
    async with raw_server(short_dir / "s", b"\x81\x05right" + wrong):
        messages: list[Message] = []
        connection = await connect(short_dir / "s")
        with pytest.raises(WebSocketError):
            await asyncio.wait_for(connection.receive(messages.append), PATIENCE_S)
    assert messages == ["right"]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "403 Forbidden"},
        {"status": ""},
        {"Sec_WebSocket_Accept": "x"},
        {"sec_websocket_protocol": "another"},
        {"sec_websocket_protocol": None},
        {"Upgrade": None},
        {"Sec_WebSocket_Extensions": "permessage-deflate"},
    ],
)
async def test_a_server_that_does_not_agree_is_refused(short_dir: Path, changes: dict[str, str | None]) -> None:
    async with raw_server(short_dir / "s", answer=lambda request: answer_to(request, **changes)):
        with pytest.raises(WebSocketError):
            await connect(short_dir / "s")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 S", b"x" * 100_000])
async def test_an_answer_without_an_end_is_refused(short_dir: Path, answer: bytes) -> None:
    async with raw_server(short_dir / "s", answer=lambda _: answer):
        with pytest.raises(WebSocketError):
            await connect(short_dir / "s")


async def test_where_nobody_listens_it_fails_at_once(short_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect(short_dir / "s")


async def test_what_a_listener_raises_ends_the_connection(short_dir: Path) -> None:
    def fail(message: Message) -> None:
        raise KeyError(message)

    async with raw_server(short_dir / "s", b"\x81\x03one\x81\x03two"):
        connection = await connect(short_dir / "s")
        with pytest.raises(KeyError, match="one"):
            await asyncio.wait_for(connection.receive(fail), PATIENCE_S)
        connection.send("nobody hears this")
        assert connection.unsent_bytes == 0


async def test_what_came_before_the_other_end_hung_up_is_read_though_writing_fails(short_dir: Path) -> None:
    async with raw_server(short_dir / "s", b"\x89\x01p" * 3 + b"\x81\x04last"):
        connection = await connect(short_dir / "s")
        await asyncio.sleep(0.05)
        connection.send(b"x" * 10_000_000)
        assert await received(connection) == ["last"]
