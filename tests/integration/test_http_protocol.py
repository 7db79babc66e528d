"""The server's patience and bounds, tried with raw sockets: sizes, slowness, malformed and smuggled requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from http_face import Face, serving, url_name

from gateway.http.base.handler import MAX_HEADER_BYTES
from gateway.http.base.limits import HttpBounds
from sessions.model import ArtifactKind

LIMIT = 10_000
BUFFERED_BODIES = HttpBounds().buffered_bodies
OF_ONE_CLIENT = BUFFERED_BODIES * 7 // 8


async def talk(face: Face, *parts: bytes, patience_s: float = 10.0) -> bytes:
    """Send all parts and read until the server closes; a server that closes early is no error."""
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    try:
        async with asyncio.timeout(patience_s):
            try:
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                return await reader.read()
            except ConnectionError:
                return await _rest(reader)
    finally:
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def split(answer: bytes) -> tuple[int, dict[str, str]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else {}


def post(length: int | None, *, extra: bytes = b"") -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + framing + b"\r\n" + extra + b"\r\n"


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b" " * size)


async def test_a_body_of_the_limit_is_taken(face: Face) -> None:
    body = b'{"code": "1"}'.ljust(LIMIT)
    assert split(await talk(face, post(LIMIT), body))[0] == 200


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT * 7])
async def test_a_body_over_the_limit_gets_its_413_though_it_is_still_being_sent(face: Face, size: int) -> None:
    status, body = split(await talk(face, post(size), b" " * (size // 2), b" " * (size - size // 2)))
    assert (status, body["code"]) == (413, "too_large")
    assert "limits.request_bytes" in body["error"]


async def test_a_chunked_body_over_the_limit_gets_its_413(face: Face) -> None:
    status, body = split(await talk(face, post(None), chunk(LIMIT), chunk(LIMIT), b"0\r\n\r\n"))
    assert (status, body["code"]) == (413, "too_large")


async def test_a_declared_giant_is_refused_before_it_is_sent(face: Face) -> None:
    status, body = split(await talk(face, post(10**15)))
    assert (status, body["code"]) == (413, "too_large")


async def test_who_asks_first_is_refused_before_sending(face: Face) -> None:
    answer = await talk(face, post(LIMIT + 1, extra=b"Expect: 100-continue\r\n"))
    assert split(answer)[0] == 413
    assert b"100" not in answer.split(b"\r\n")[0]


async def test_a_chunked_body_without_an_end_is_cut_off(face: Face) -> None:
    answer = await talk(face, post(None), *[chunk(LIMIT)] * 100)
    assert answer == b"" or split(answer)[0] == 413  # a client that goes on sending may lose the answer
    assert face.service.requests == []
    assert repr(face.in_flight) == "<InFlight 0>"


async def test_the_connection_serves_on_after_a_413(face: Face) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(post(LIMIT + 1).replace(b"Connection: close\r\n", b"") + b" " * (LIMIT + 1))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()
    assert [line.split()[1] for line in answers.split(b"HTTP/1.1")[1:] for line in [b"x" + line]] == [b"413", b"200"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1_0\r\n\r\n",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_malformed_and_smuggled_requests_run_nothing_and_close(face: Face, request_bytes: bytes) -> None:
    smuggled = b"GET /runcode?code=smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = await talk(face, request_bytes + smuggled)
    assert 400 <= split(answer)[0] < 500
    assert split(answer)[1].keys() == {"error", "code", "request_id"}
    assert split(answer)[1]["request_id"].encode() in answer.partition(b"\r\n\r\n")[0]
    assert face.service.requests == []
    assert split(await talk(face, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))[0] == 200


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"GET /runcode?code=1 HTTP/1.1\r\nHost: loc",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
        b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=["silent", "slow header", "slow body", "slow chunk"],
)
async def test_slow_clients_are_hung_up_on(opening: bytes) -> None:
    async with serving(bounds=HttpBounds(header_timeout_s=0.3, body_timeout_s=0.3)) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(opening)

        async def trickle() -> None:
            while True:
                await asyncio.sleep(0.1)
                writer.write(b"a" if opening else b"")

        trickling = asyncio.ensure_future(trickle())
        async with asyncio.timeout(5):
            assert await _rest(reader) == b""
        trickling.cancel()
        writer.close()
        assert face.service.requests == []
        assert repr(face.in_flight) == "<InFlight 0>"


async def test_a_patient_server_is_the_negative_control() -> None:
    async with serving(bounds=HttpBounds(header_timeout_s=30, body_timeout_s=30)) as face:
        reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: loc")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await reader.read()
        writer.close()


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "opening",
    [b"", b"GET /runcode?code=1 HTTP/1.1\r\nHost: loc", HEALTH.replace(b"Connection: close\r\n", b"")],
    ids=["silent", "slow header", "kept alive"],
)
async def test_who_is_silent_makes_room_for_others(opening: bytes) -> None:
    async with serving(bounds=HttpBounds(connections=8)) as face:
        idle = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
            writer.write(opening)
            if opening.endswith(b"\r\n\r\n"):
                async with asyncio.timeout(30):
                    await reader.readuntil(b"}")
            idle.append((reader, writer))
        body = b'{"code": "1"}'
        assert split(await talk(face, post(len(body)) + body))[0] == 200
        async with asyncio.timeout(30):
            for reader, _ in idle[:12]:
                assert await _rest(reader) == b""
        for _, writer in idle:
            writer.close()


async def test_one_connection_too_many_is_told_so_and_the_others_live() -> None:
    async with serving(bounds=HttpBounds(connections=2)) as face:
        face.service.hold = asyncio.Event()
        body = b'{"code": "1"}'
        served = [asyncio.ensure_future(talk(face, post(len(body)) + body, patience_s=30)) for _ in range(2)]
        async with asyncio.timeout(30):
            while len(face.service.requests) < 2:
                await asyncio.sleep(0.01)
        answer = await talk(face, post(len(body)) + body)
        assert (split(answer)[0], split(answer)[1]["code"]) == (503, "unavailable")
        assert len(split(answer)[1]["request_id"]) == 32
        assert b"Retry-After: 1\r\n" in answer
        for target in (b"/healthz", b"/readyz?x=1", b"http://localhost/healthz"):
            assert split(await talk(face, HEALTH.replace(b"/healthz", target)))[0] == 200
        assert len(face.service.requests) == 2
        face.service.hold.set()
        assert [split(answer)[0] for answer in await asyncio.gather(*served)] == [200, 200]
        assert split(await talk(face, post(len(body)) + body))[0] == 200


async def test_health_is_told_though_silent_ones_stand_before_the_door() -> None:
    async with serving(bounds=HttpBounds(connections=1)) as face:
        face.service.hold = asyncio.Event()
        body = b'{"code": "1"}'
        served = asyncio.ensure_future(talk(face, post(len(body)) + body, patience_s=30))
        await asyncio.wait_for(face.service.was_asked.wait(), 30)
        idle = [await asyncio.open_connection("127.0.0.1", face.port) for _ in range(40)]
        assert split(await talk(face, HEALTH))[0] == 200
        face.service.hold.set()
        assert split(await served)[0] == 200
        for _, writer in idle:
            writer.close()


async def test_clients_that_vanish_leave_no_task_behind(face: Face) -> None:
    before = asyncio.all_tasks()
    shapes: list[Callable[[], bytes]] = [
        lambda: post(100) + b"{",
        lambda: post(None) + b"5\r\n{",
        lambda: post(LIMIT * 5) + b" " * LIMIT * 2,
        lambda: b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    for shape in shapes * 5:
        _, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(shape())
        await writer.drain()
        writer.transport.abort()
    async with asyncio.timeout(5):
        await face.in_flight.wait_for_none()
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left, timeout=0.1)
    assert face.service.requests == []


@pytest.mark.parametrize("face", [HttpBounds(send_timeout_s=0.3)], indirect=True)
async def test_a_client_that_does_not_take_its_answer_is_hung_up_on(face: Face) -> None:
    ref = face.service.add("big.bin", bytes(40 << 20), ArtifactKind.FILE)
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port, limit=1024)
    writer.write(f"GET /file/{url_name(ref)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(10):
        await reader.readline()
        assert repr(face.in_flight) == "<InFlight 1>"
        await face.in_flight.wait_for_none()
        assert len(await _rest(reader)) < 40 << 20
    writer.close()


async def test_a_client_that_takes_its_time_within_the_bound_gets_it_all(face: Face) -> None:
    ref = face.service.add("big.bin", bytes(40 << 20), ArtifactKind.FILE)
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port, limit=1024)
    request = f"GET /file/{url_name(ref)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    await asyncio.sleep(0.5)
    async with asyncio.timeout(20):
        assert len((await reader.read()).partition(b"\r\n\r\n")[2]) == 40 << 20
    writer.close()


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES, 3 * MAX_HEADER_BYTES])
async def test_an_overlong_url_or_header_gets_its_413(face: Face, size: int) -> None:
    for request in (
        b"GET /runcode?code=" + b"1" * size + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"a" * size + b"\r\n\r\n",
    ):
        status, body = split(await talk(face, request))
        assert (status, body["code"]) == (413, "too_large")
    assert face.service.requests == []


async def test_headers_that_do_not_end_get_their_413(face: Face) -> None:
    status, body = split(await talk(face, b"GET / HTTP/1.1\r\nX: ".ljust(4 * MAX_HEADER_BYTES + 1, b"a")))
    assert (status, body["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://127.0.0.1:8000/healthz", b"127.0.0.1:8000", 200),
        (b"HTTP://LocalHost/healthz?x=1", b"localhost", 200),
        (b"http://localhost", b"localhost", 200),
        (b"http://localhost?x", b"localhost", 200),
        (b"http://localhost/nowhere", b"localhost", 404),
        (b"http://evil.example/healthz", b"evil.example", 403),
        (b"http://evil.example/healthz", b"localhost", 400),
        (b"http://localhost/healthz", b"evil.example", 400),
        (b"http://user@localhost/healthz", b"localhost", 400),
        (b"http:///healthz", b"", 403),
    ],
)
async def test_the_host_of_an_absolute_target_is_checked_too(
    face: Face, target: bytes, host: bytes, status: int
) -> None:
    request = b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (target, host)
    assert split(await talk(face, request))[0] == status


async def test_an_old_client_has_no_host_but_the_targets(face: Face) -> None:
    assert split(await talk(face, b"GET http://localhost/healthz HTTP/1.0\r\n\r\n"))[0] == 200
    assert split(await talk(face, b"GET http://evil.example/healthz HTTP/1.0\r\n\r\n"))[0] == 403


async def test_all_bodies_of_a_client_are_bounded_and_given_back(face: Face) -> None:
    started = post(LIMIT)
    writers = []
    for _ in range(OF_ONE_CLIENT):
        _, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(started + b" " * (LIMIT - 1))
        writers.append(writer)
    async with asyncio.timeout(10):
        while repr(face.bodies) != f"<BufferedBodies {OF_ONE_CLIENT * (LIMIT - 1)}>":
            await asyncio.sleep(0.01)
    answer = await talk(face, post(LIMIT), b'{"code": "1"}'.ljust(LIMIT))
    assert (split(answer)[0], split(answer)[1]["code"]) == (503, "unavailable")
    assert b"Retry-After: " in answer
    assert face.service.requests == []
    assert repr(face.bodies) == f"<BufferedBodies {OF_ONE_CLIENT * (LIMIT - 1)}>"
    for writer in writers:
        writer.transport.abort()
    async with asyncio.timeout(10):
        await face.in_flight.wait_for_none()
    assert repr(face.bodies) == "<BufferedBodies 0>"
    assert split(await talk(face, post(LIMIT), b'{"code": "1"}'.ljust(LIMIT)))[0] == 200
    assert repr(face.bodies) == "<BufferedBodies 0>"


async def test_one_address_leaves_room_for_the_bodies_of_others(face: Face) -> None:
    writers = []
    for _ in range(2 * BUFFERED_BODIES):
        _, writer = await asyncio.open_connection("127.0.0.1", face.port, local_addr=("127.0.0.2", 0))
        writer.write(post(LIMIT) + b" " * (LIMIT - 1))
        writers.append(writer)
    async with asyncio.timeout(30):
        while repr(face.bodies) != f"<BufferedBodies {OF_ONE_CLIENT * (LIMIT - 1)}>":
            await asyncio.sleep(0.01)
    assert split(await talk(face, post(LIMIT), b'{"code": "1"}'.ljust(LIMIT)))[0] == 200
    for writer in writers:
        writer.transport.abort()


async def test_a_small_body_finds_room_beside_large_ones_of_the_same_address(face: Face) -> None:
    writers = []
    for _ in range(2 * BUFFERED_BODIES):
        _, writer = await asyncio.open_connection("127.0.0.1", face.port)
        writer.write(post(LIMIT) + b" " * (LIMIT - 1))
        writers.append(writer)
    async with asyncio.timeout(30):
        while repr(face.bodies) != f"<BufferedBodies {OF_ONE_CLIENT * (LIMIT - 1)}>":
            await asyncio.sleep(0.01)
    body = b'{"code": "1"}'
    assert split(await talk(face, post(len(body)) + body))[0] == 200
    for writer in writers:
        writer.transport.abort()


async def test_a_slow_body_makes_room_for_others(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.base.connections._PATIENCE_S", 0.5)
    slow = [await asyncio.open_connection("127.0.0.1", face.port) for _ in range(OF_ONE_CLIENT)]
    for _, writer in slow:
        writer.write(post(LIMIT) + b" " * (LIMIT - 1))
    await asyncio.sleep(1.5)  # the time in which nothing more comes
    assert split(await talk(face, post(LIMIT), b'{"code": "1"}'.ljust(LIMIT)))[0] == 200
    async with asyncio.timeout(30):
        answer = await slow[0][0].read()
    assert (split(answer)[0], split(answer)[1]["code"]) == (503, "unavailable")
    assert len(face.service.requests) == 1
    for _, writer in slow:
        writer.transport.abort()


async def test_the_body_of_a_run_counts_until_the_run_ends_though_its_client_has_gone(face: Face) -> None:
    face.service.hold = asyncio.Event()
    body = b'{"code": "1"}'
    _, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(post(len(body)) + body)
    async with asyncio.timeout(10):
        await face.service.was_asked.wait()
        writer.transport.abort()
        await face.in_flight.wait_for_none()
        assert repr(face.bodies) == f"<BufferedBodies {len(body)}>"
        face.service.hold.set()
        while repr(face.bodies) != "<BufferedBodies 0>":
            await asyncio.sleep(0.01)
