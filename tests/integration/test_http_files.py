"""The files of a session, over a real server: streamed both ways, atomic, and never outside their directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio
from http_face import Face, serving

from gateway.http.base.limits import HttpBounds
from sessions.errors import InvalidRequest, TooLarge, Unavailable
from sessions.settings import Limits

LIMIT = 3 << 20
REQUEST_LIMIT = 10_000


@pytest_asyncio.fixture
async def face(request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    async with serving(
        limits=Limits(request_bytes=REQUEST_LIMIT, disk_bytes=LIMIT), bounds=getattr(request, "param", None)
    ) as face:
        async with httpx.AsyncClient(base_url=face.url) as client:
            await client.post("/sessions", json={"session_id": "s"})
        yield face


@pytest_asyncio.fixture
async def client(face: Face) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{face.url}/sessions/s") as client:
        yield client


async def raw(face: Face, request: bytes) -> tuple[int, bytes]:
    """A request as it stands: clients normalise paths, attackers do not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


async def test_a_file_goes_up_and_comes_down_in_pieces(face: Face, client: httpx.AsyncClient) -> None:
    data = bytes(range(256)) * 8000  # far more than a request's body may have
    put = await client.put("/files/data/drei eck.bin", content=data, headers={"Content-Type": "application/x-odd"})
    entry = {"path": "data/drei eck.bin", "bytes": len(data), "modified_at": "2026-01-02T03:04:05.000006Z"}
    assert (put.status_code, put.json()) == (201, entry)
    assert face.service.files.largest_piece_bytes <= 256 << 10
    assert (await client.get("/files")).json() == {"files": [entry]}
    got = await client.get(put.headers["Location"])
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["Content-Length"] == str(len(data))
    assert got.headers["Content-Disposition"].startswith('attachment; filename="drei eck.bin"')
    assert got.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Cache-Control"] == "no-store"
    assert face.service.files.open_count == 0


async def test_a_file_that_is_replaced_is_200_without_location(face: Face, client: httpx.AsyncClient) -> None:
    face.service.files.content["a"] = b"old"
    put = await client.put("/files/a", content=b"")
    assert (put.status_code, put.json()["bytes"], "Location" in put.headers) == (200, 0, False)
    assert (await client.get("/files/a")).content == b""


async def test_a_chunked_body_goes_up_too(face: Face, client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%03d" % number * 1000

    put = await client.put("/files/a", content=pieces())
    assert put.status_code == 201
    assert face.service.files.content["a"] == b"".join(b"%03d" % number * 1000 for number in range(100))


async def test_head_tells_the_size_and_sends_nothing(face: Face, client: httpx.AsyncClient) -> None:
    face.service.files.content["a.csv"] = b"x" * 1000
    answer = await client.head("/files/a.csv")
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, "1000", b"")
    assert answer.headers["Content-Type"] == "text/csv"
    assert (await client.head("/files/b.csv")).status_code == 404
    assert face.service.files.open_count == 0


async def test_a_file_is_removed(face: Face, client: httpx.AsyncClient) -> None:
    face.service.files.content["a"] = b"x"
    assert (await client.delete("/files/a")).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await client.request(method, "/files/a")).status_code == 404
    assert face.service.files.content == {}


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..",
        ".",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        "/etc/passwd",
        "%2e%2e",
        "%2e%2e/x",
        "..%2fx",
        "a%2f..%2f..%2fx",
        "%2fetc%2fpasswd",
        "%00",
        "a%00b",
        "%ff",
        "%ed%a0%80",
        "x" * 1025,
        "a/" * 600,
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_path_that_leaves_the_directory_or_is_none_is_400(face: Face, method: str, path: str) -> None:
    status, body = await raw(
        face,
        f"{method} /sessions/s/files/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Length: 1\r\n\r\nx".encode(),
    )
    assert (status, b'"invalid_request"' in body) == (400, True)
    assert face.service.files.content == {}
    assert face.service.files.open_count == 0


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("%252e%252e", "%2e%2e"),
        ("a%2Fb", "a/b"),
        ("..a/...", "..a/..."),
        ("%E4%B8%89+%20", "三+ "),
        ("a\\..\\b", "a\\..\\b"),
        ("x" * 1024, "x" * 1024),
    ],
)
async def test_a_path_is_decoded_once(face: Face, path: str, name: str) -> None:
    status, _ = await raw(
        face,
        f"PUT /sessions/s/files/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Length: 1\r\n\r\nx".encode(),
    )
    assert (status, list(face.service.files.content)) == (201, [name])


@pytest.mark.parametrize("size", [LIMIT + 1, 10**15])
async def test_a_declared_giant_is_refused_before_it_is_sent(face: Face, size: int) -> None:
    head = f"PUT /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    status, body = await raw(face, head.encode())
    assert (status, b'"too_large"' in body, b"limits.disk" in body) == (413, True, True)
    assert not face.service.files.was_opened.is_set()


async def test_a_body_over_the_limit_is_refused_while_it_comes(face: Face, client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(LIMIT // 65536 + 1):
            yield bytes(65536)

    try:
        put = await client.put("/files/a", content=pieces())
        assert (put.status_code, put.json()["code"]) == (413, "too_large")
    except httpx.TransportError:
        pass  # who goes on sending may lose the answer
    assert face.service.files.content == {}
    assert face.service.files.open_count == 0


async def test_a_full_disk_is_413_and_leaves_the_old_file(face: Face, client: httpx.AsyncClient) -> None:
    face.service.files.content["a"] = b"old"
    face.service.files.next_error = TooLarge("The disk has no room for this file.")
    put = await client.put("/files/a", content=b"x" * 50_000)
    assert (put.status_code, put.json()["error"]) == (413, "The disk has no room for this file.")
    assert face.service.files.content == {"a": b"old"}
    assert face.service.files.open_count == 0


async def test_a_sandbox_that_does_not_answer_is_503(face: Face, client: httpx.AsyncClient) -> None:
    face.service.files.next_error = Unavailable("The sandbox does not answer.")
    assert (await client.put("/files/a", content=b"x")).status_code == 503

    async def unavailable(*_: object) -> None:
        raise Unavailable

    face.service.session_files = unavailable  # type: ignore[method-assign,assignment]
    for method in ("GET", "PUT", "DELETE"):
        assert (await client.request(method, "/files/a", content=b"x")).status_code == 503, method


async def test_what_the_sandbox_refuses_is_known_before_the_body_is_sent(face: Face) -> None:
    async def refuse(*_: object) -> None:
        raise InvalidRequest("This path is behind a link.")

    face.service.files.create = refuse  # type: ignore[method-assign,assignment]
    status, _ = await raw(
        face,
        b"PUT /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1000\r\n"
        b"Expect: 100-continue\r\n\r\n",
    )
    assert status == 400


async def test_who_asks_first_is_told_to_go_on(face: Face) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(
        b"PUT /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    async with asyncio.timeout(5):
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"ok")
        assert b" 201 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert face.service.files.content == {"a": b"ok"}


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
async def test_a_client_that_hangs_up_in_mid_upload_leaves_no_file(face: Face, framing: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"PUT /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n\r\n5\r\nhello\r\n")
    async with asyncio.timeout(5):
        while not face.service.files.written_bytes:
            await asyncio.sleep(0.005)
        writer.transport.abort()
        await face.service.files.was_closed.wait()
        await face.in_flight.wait_for_none()
    assert face.service.files.content == {}
    assert face.service.files.open_count == 0


async def test_a_slow_sandbox_slows_the_upload(face: Face) -> None:
    face.service.files.gate = asyncio.Event()
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.transport.set_write_buffer_limits(high=1)
    writer.write(b"PUT /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % LIMIT)
    sent = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while sent < LIMIT:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536
    assert face.service.files.written_bytes == 0
    face.service.files.gate.set()
    async with asyncio.timeout(10):
        while sent < LIMIT:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
        assert b" 201 " in await reader.readline()
    writer.close()
    assert len(face.service.files.content["a"]) == LIMIT


async def test_a_stalled_upload_is_hung_up_on_and_a_long_one_gets_its_time() -> None:
    limits = Limits(request_bytes=REQUEST_LIMIT, disk_bytes=LIMIT)
    async with serving(limits=limits, bounds=HttpBounds(body_timeout_s=0.2)) as face:
        async with httpx.AsyncClient(base_url=face.url) as client:
            await client.post("/sessions", json={"session_id": "s"})
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"PUT /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        assert face.service.files.open_count == 0
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"PUT /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 131072\r\n\r\n")
        writer.write(bytes(65536))
        await asyncio.sleep(0.5)
        writer.write(bytes(65536))
        async with asyncio.timeout(5):
            assert b" 201 " in await reader.readline()
        writer.close()


async def test_a_file_that_shrinks_does_not_look_whole(face: Face, client: httpx.AsyncClient) -> None:
    face.service.files.content["a"] = bytes(1 << 20)
    face.service.files.shrinks = True
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/files/a")
    assert face.service.files.open_count == 0


@pytest.mark.parametrize("face", [HttpBounds(send_timeout_s=0.3)], indirect=True)
async def test_a_client_that_does_not_take_the_file_is_hung_up_on(face: Face) -> None:
    face.service.files.content["a"] = bytes(40 << 20)
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port, limit=1024)
    writer.write(b"GET /sessions/s/files/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        await reader.readline()
        await face.service.files.was_closed.wait()
        await face.in_flight.wait_for_none()
    writer.close()
    assert face.service.files.open_count == 0


async def test_other_bodies_keep_their_own_limit(face: Face) -> None:
    for method, path in (("DELETE", "/sessions/s/files/a"), ("PATCH", "/sessions/s"), ("POST", "/sessions")):
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 20000\r\n\r\n"
        status, _ = await raw(face, head.encode() + b" " * 20_000)
        assert status == 413, path
