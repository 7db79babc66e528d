"""Large answers that clients do not read: how much of them is held, for how long, and what others get meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from events_talk import asked, frames
from http_face import Face, stingy_connection
from memory_service import MemoryRun
from websockets.asyncio.client import connect
from ws_talk import UPGRADE, frame_of

from gateway.http.base.limits import HttpBounds
from sessions.model import ANONYMOUS, EventType, RunRequest

PATIENCE_S = 30
LARGE_BYTES = 8 << 20
# While two of them are sent there is no room to make a third.
BOUNDS = HttpBounds(answers_bytes=44 << 20, answer_wait_s=0.5, stall_s=60.0)
HASTY = HttpBounds(answers_bytes=44 << 20, answer_wait_s=0.5, stall_s=1.0)


@pytest.fixture
def unread(face: Face) -> Iterator[Unread]:
    with ExitStack() as stack:
        yield Unread(face, stack)


class Unread:
    """Connections that ask and do not read."""

    def __init__(self, face: Face, stack: ExitStack) -> None:
        self.face = face
        self.connections: list[socket.socket] = []
        self._stack = stack

    def ask(self, path: str, method: str = "GET") -> socket.socket:
        connection = self._stack.enter_context(stingy_connection(self.face.port))
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self.connections.append(connection)
        return connection

    async def fill(self, path: str) -> None:
        """Ask until there is no room left, and nothing is being made any more."""
        for _ in range(3):
            self.ask(path)
        async with asyncio.timeout(PATIENCE_S):
            while not self.face.answers.is_wanted:
                await asyncio.sleep(0.01)


def large_run(face: Face) -> MemoryRun:
    run = face.service.add_run(asked())
    run.end(output="x" * LARGE_BYTES)
    return run


async def until_empty(face: Face) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while repr(face.answers) != "<AnswerRoom 0>":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("face", [BOUNDS], indirect=True)
async def test_unread_answers_take_no_more_than_their_room(
    face: Face, client: httpx.AsyncClient, unread: Unread
) -> None:
    run, small = large_run(face), face.service.add_run(asked())
    small.end(output="x" * 1000)
    for _ in range(20):
        unread.ask(f"/runs/{run.run_id}")
    refused = await client.get(f"/runs/{run.run_id}")
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert face.service.gets <= 4  # what finds no room is not read from the database either
    for path in ("/healthz", "/readyz", "/", "/runs", f"/runs/{small.run_id}"):
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("face", [BOUNDS], indirect=True)
async def test_stored_answers_that_are_asked_for_again_are_read_when_there_is_room(face: Face, unread: Unread) -> None:
    run = face.service.add_run(RunRequest(ANONYMOUS, "1", "python", {}, 30.0, idempotency_key="k"))
    run.end(output="x" * LARGE_BYTES)
    asking = (
        "POST /runcode HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k\r\n"
        'Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{"code":"1"}'
    )
    for _ in range(20):
        unread.ask("/runs").sendall(asking.encode())
    async with asyncio.timeout(PATIENCE_S):
        while len(face.service.requests) < 20:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    assert 1 <= face.service.gets <= 4


@pytest.mark.parametrize("face", [HASTY], indirect=True)
@pytest.mark.parametrize("path", ["/runs/{}", "/runcode?code=1"])
async def test_a_client_that_takes_nothing_is_hung_up_on_and_makes_room(
    face: Face, client: httpx.AsyncClient, unread: Unread, path: str
) -> None:
    run = large_run(face)
    face.service.next_result = {"output": "x" * LARGE_BYTES}
    await unread.fill(path.format(run.run_id))
    await until_empty(face)
    assert (await client.get(f"/runs/{run.run_id}")).json()["output"] == "x" * LARGE_BYTES
    assert repr(face.answers) == "<AnswerRoom 0>"
    assert repr(face.in_flight) == "<InFlight 0>"


@pytest.mark.parametrize("face", [HASTY], indirect=True)
async def test_what_is_left_of_an_answer_that_nobody_takes_is_not_sent(face: Face) -> None:
    run = large_run(face)
    with stingy_connection(face.port) as connection:
        connection.sendall(f"GET /runs/{run.run_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            while repr(face.answers) == "<AnswerRoom 0>":
                await asyncio.sleep(0.01)
        await until_empty(face)
        connection.settimeout(0)
        received = 0
        async with asyncio.timeout(PATIENCE_S):
            while piece := await asyncio.get_running_loop().sock_recv(connection, 1 << 20):
                received += len(piece)
    assert received < LARGE_BYTES


@pytest.mark.parametrize("face", [HttpBounds(stall_s=1.0)], indirect=True)
async def test_a_client_that_reads_slowly_gets_its_answer(face: Face) -> None:
    """It reads less in a second than the buffers of its connection have to drain before they take more."""
    run = large_run(face)
    loop, received = asyncio.get_running_loop(), 0
    with stingy_connection(face.port) as connection:
        connection.settimeout(0)
        request = f"GET /runs/{run.run_id} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(connection, request.encode())
        begun_s = loop.time()
        async with asyncio.timeout(PATIENCE_S):
            while piece := await loop.sock_recv(connection, 4096 if loop.time() < begun_s + 2.5 else 1 << 20):
                received += len(piece)
                await asyncio.sleep(0.1 if loop.time() < begun_s + 2.5 else 0)
    assert received > LARGE_BYTES


@pytest.mark.parametrize("face", [BOUNDS], indirect=True)
async def test_an_answer_waits_a_while_for_room(face: Face, client: httpx.AsyncClient, unread: Unread) -> None:
    run = large_run(face)
    await unread.fill(f"/runs/{run.run_id}")
    for connection in unread.connections:
        connection.close()
    assert (await client.get(f"/runs/{run.run_id}")).status_code == 200


@pytest.mark.parametrize(
    "face", [HttpBounds(answers_bytes=44 << 20, answer_wait_s=0.1, stall_s=1.0, send_timeout_s=20.0)], indirect=True
)
async def test_the_answer_of_a_run_waits_for_as_long_as_others_may_take(
    face: Face, client: httpx.AsyncClient, unread: Unread
) -> None:
    run = large_run(face)
    face.service.next_result = {"output": "y" * LARGE_BYTES}
    await unread.fill(f"/runs/{run.run_id}")
    answer = await client.post("/runcode", json={"code": "1"})
    assert (answer.status_code, answer.json()["output"]) == (200, "y" * LARGE_BYTES)


@pytest.mark.parametrize(
    "face", [HttpBounds(answers_bytes=44 << 20, answer_wait_s=0.1, stall_s=60.0, send_timeout_s=1.0)], indirect=True
)
async def test_who_gets_no_answer_of_a_run_is_not_told_that_nothing_was_run(face: Face) -> None:
    face.service.next_result = {"output": "y" * LARGE_BYTES}
    place = face.answers.place()
    await place.take(44 << 20)
    async with httpx.AsyncClient(base_url=face.url, timeout=PATIENCE_S) as client:
        answer = await client.post("/runcode", json={"code": "1"})
    assert (answer.status_code, answer.json()["code"]) == (500, "end_not_stored")
    assert "Do not run it again." in answer.json()["error"]
    place.leave()


@pytest.mark.parametrize("face", [HASTY], indirect=True)
async def test_streams_that_nobody_reads_make_room_for_others(
    face: Face, client: httpx.AsyncClient, unread: Unread
) -> None:
    run = large_run(face)
    for _ in range(5):
        unread.ask(f"/runs/{run.run_id}/events")
    answer = await client.get(f"/runs/{run.run_id}/events", timeout=PATIENCE_S)
    assert frames(answer.text)[-1]["output"] == "x" * LARGE_BYTES


@pytest.mark.parametrize("face", [HASTY], indirect=True)
async def test_a_stream_may_pause_where_nobody_needs_its_room(face: Face) -> None:
    run = face.service.add_run(asked())
    run.add(EventType.STDOUT, text="x" * LARGE_BYTES)
    run.end(output="")
    with stingy_connection(face.port) as connection:
        request = f"GET /runs/{run.run_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(request.encode())
        await asyncio.sleep(2 * HASTY.stall_s)
        assert run.followers == 1
        connection.settimeout(0)
        loop, end = asyncio.get_running_loop(), b""
        async with asyncio.timeout(PATIENCE_S):
            while b"event: end" not in end:
                end = end[-100:] + await loop.sock_recv(connection, 1 << 20)
    await until_empty(face)


@pytest.mark.parametrize("face", [HASTY], indirect=True)
async def test_a_stream_takes_no_room_while_its_run_says_nothing(face: Face, client: httpx.AsyncClient) -> None:
    """Its text takes more than 64 KiB as it is kept, and less as it is sent."""
    run = face.service.add_run(asked())
    run.add(EventType.STDOUT, text="x" * 30_000 + "\N{GRINNING FACE}")
    async with client.stream("GET", f"/runs/{run.run_id}/events") as stream:
        pieces, received = stream.aiter_bytes(), 0
        async with asyncio.timeout(PATIENCE_S):
            while received < 30_000:
                received += len(await anext(pieces))
        await until_empty(face)
        assert run.followers == 1


@pytest.mark.parametrize("face", [HASTY], indirect=True)
async def test_websockets_that_nobody_reads_make_room_for_others(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    run = face.service.add_run(RunRequest(ANONYMOUS, "1", "python", {}, 30.0, idempotency_key="k"))
    run.add(EventType.STDOUT, text="x" * LARGE_BYTES)
    run.end(output="x" * LARGE_BYTES)
    asking = json.dumps({"op": "run", "code": "1", "idempotency_key": "k"})
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(stingy_connection(face.port))
            connection.sendall(UPGRADE + frame_of(asking))
        async with asyncio.timeout(PATIENCE_S), connect(face.ws_url, max_size=None) as ws:
            await ws.send(asking)
            while (event := json.loads(await ws.recv()))["type"] != "end":
                pass
    assert len(event["output"]) == LARGE_BYTES
    await until_empty(face)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
