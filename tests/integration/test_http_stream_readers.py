"""Who reads a stream of events, and how it ends: readers that are slow, gone or many, streams that break, shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from events_talk import asked, frames, run_of, until_left
from http_face import Face, stingy_connection

from gateway.http.base.limits import HttpBounds
from sessions.errors import Draining, StoreUnavailable
from sessions.model import EventType, RunStatus


async def test_a_client_that_vanishes_ends_its_following_and_not_its_run(face: Face) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"GET /runcode?code=1&stream=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.readuntil(b"\n\n")
    run = face.service.runs[0]
    assert (run.followers, repr(face.streams)) == (1, "<Streams 1>")
    writer.close()
    await until_left(run)
    assert run.record.status is RunStatus.RUNNING
    assert repr(face.bodies) == "<BufferedBodies 0>"
    async with asyncio.timeout(5):
        while repr(face.streams) != "<Streams 0>":
            await asyncio.sleep(0.005)


async def test_a_client_that_vanishes_before_its_run_has_begun_leaves_nothing(face: Face) -> None:
    face.service.hold = asyncio.Event()
    _, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"GET /runcode?code=1&stream=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await face.service.was_asked.wait()
    writer.transport.abort()
    await asyncio.sleep(0.05)
    face.service.hold.set()
    run = await run_of(face)
    await until_left(run)
    async with asyncio.timeout(5):
        while repr(face.streams) != "<Streams 0>":
            await asyncio.sleep(0.005)
    assert run.record.status is RunStatus.RUNNING


@pytest.mark.parametrize("face", [HttpBounds(send_timeout_s=2.0)], indirect=True)
async def test_a_client_that_takes_nothing_is_sent_no_more_and_is_hung_up_on(face: Face) -> None:
    run = face.service.add_run(asked())
    pulled = 0
    follow = face.service.follow

    async def counted(run_id: Any, after: int) -> AsyncIterator[Any]:
        nonlocal pulled
        async for batch in follow(run_id, after):
            for event in batch:
                pulled += 1
                yield [event]

    face.service.follow = counted  # type: ignore[method-assign,assignment]
    for _ in range(2000):
        run.add(EventType.STDOUT, text="x" * 32_000)
    with stingy_connection(face.port) as connection:
        connection.sendall(f"GET /runs/{run.run_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(10):
            while not pulled:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        held = pulled
        assert held < 1000  # what the socket buffers took, of 64 MB
        async with asyncio.timeout(10):
            while repr(face.streams) != "<Streams 0>":
                await asyncio.sleep(0.01)
    assert pulled == held


@pytest.mark.parametrize("face", [HttpBounds(send_timeout_s=0.5)], indirect=True)
async def test_a_reader_that_is_slow_but_reads_gets_everything(face: Face) -> None:
    run = face.service.add_run(asked())
    for _ in range(300):
        run.add(EventType.STDOUT, text="x" * 32_000)
    run.end(output="")
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port, limit=4096)
    writer.write(f"GET /runs/{run.run_id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    received = 0
    async with asyncio.timeout(30):
        while piece := await reader.read(1 << 20):
            received += piece.count(b"event: ")
            await asyncio.sleep(0.001)
    writer.close()
    assert received == 302


async def test_a_stream_that_breaks_does_not_look_whole(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    face.service.follow_error = StoreUnavailable()
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get(f"/runs/{run.run_id}/events")
    face.service.follow_error = None
    run.end()
    assert [event["seq"] for event in frames((await client.get(f"/runs/{run.run_id}/events")).text)] == [1, 2]


async def test_streams_do_not_hold_up_the_shutdown(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    asking = asyncio.ensure_future(client.get(f"/runs/{run.run_id}/events"))
    async with asyncio.timeout(5):
        while not run.followers:
            await asyncio.sleep(0.005)
        assert repr(face.in_flight) == "<InFlight 0>"
        await face.streams.close_all()
        answer = await asking
    assert [event["type"] for event in frames(answer.text)] == ["started"]
    assert run.record.status is RunStatus.RUNNING
    late = await client.get(f"/runs/{run.run_id}/events")
    assert (late.status_code, late.json()["error"]) == (503, str(Draining()))


async def test_an_end_that_comes_with_the_shutdown_is_still_sent(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    asking = asyncio.ensure_future(client.get(f"/runs/{run.run_id}/events"))
    async with asyncio.timeout(5):
        while not run.followers:
            await asyncio.sleep(0.005)
        closing = asyncio.ensure_future(face.streams.close_all())
        await asyncio.sleep(0)
        run.end()
        await closing
        assert frames((await asking).text)[-1]["type"] == "end"


@pytest.mark.parametrize("face", [HttpBounds(streams_per_tenant=1)], indirect=True)
async def test_streams_are_bounded_before_anything_is_run(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    asking = asyncio.ensure_future(client.get(f"/runs/{run.run_id}/events"))
    async with asyncio.timeout(5):
        while not run.followers:
            await asyncio.sleep(0.005)
    refused = await client.post("/runcode", json={"code": "1", "stream": True})
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert face.service.requests == []
    run.end()
    assert (await asking).status_code == 200


async def test_one_key_gives_one_run_however_often_it_is_followed(face: Face, client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"code": "1", "stream": True}
    asking = [asyncio.ensure_future(client.post("/runcode", json=body, headers=headers)) for _ in range(3)]
    run = await run_of(face)
    async with asyncio.timeout(5):
        while run.followers < 3:
            await asyncio.sleep(0.005)
    run.end()
    texts = [(await one).text for one in asking]
    assert texts[0]
    assert texts == [texts[0]] * 3
    other = await client.post("/runcode", json={"code": "2", "stream": True}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


async def test_an_old_client_gets_its_stream_up_to_the_close(face: Face) -> None:
    run = face.service.add_run(asked())
    run.end()
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(
        f"GET /runs/{run.run_id}/events HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.endswith(b"\n\n")
    assert b"event: end" in answer
