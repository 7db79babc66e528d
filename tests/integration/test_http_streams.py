"""Events over HTTP, with real clients: server-sent events, NDJSON, replay, silence, slow and vanishing readers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from http_face import Face, serving
from memory_service import MemoryRun

from gateway.handlers import base, streaming, streams
from sessions.errors import Draining, Gone, StoreUnavailable, TooManyRequests
from sessions.model import ANONYMOUS, ArtifactKind, EventType, RunRequest, RunStatus, SessionId, TenantId, Usage


@pytest_asyncio.fixture
async def face() -> AsyncIterator[Face]:
    async with serving() as face:
        yield face


@pytest_asyncio.fixture
async def client(face: Face) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=face.url, timeout=20) as client:
        yield client


def asked(code: str = "1", tenant: TenantId = ANONYMOUS, session_id: str | None = None) -> RunRequest:
    return RunRequest(tenant, code, "python", {}, 30.0, None if session_id is None else SessionId(session_id))


def frames(text: str) -> list[dict[str, Any]]:
    """The events of an SSE text; each frame's own `id` and `event` must say what its data says."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            event = json.loads(lines["data"])
            assert (lines["id"], lines["event"]) == (str(event["seq"]), event["type"])
            events.append(event)
    return events


async def run_of(face: Face) -> MemoryRun:
    async with asyncio.timeout(10):
        while not face.service.runs:
            await asyncio.sleep(0.005)
    return face.service.runs[0]


async def until_left(run: MemoryRun) -> None:
    async with asyncio.timeout(10):
        while run.followers:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("by", ["field", "header", "form", "query"])
async def test_every_way_to_ask_for_a_stream_gives_server_sent_events(
    face: Face, client: httpx.AsyncClient, by: str
) -> None:
    ways = {
        "field": client.build_request("POST", "/runcode", json={"code": "1", "stream": True}),
        "header": client.build_request("POST", "/runcode", json={"code": "1"}, headers={"Accept": "text/event-stream"}),
        "form": client.build_request("POST", "/runcode", data={"code": "1", "stream": "true"}),
        "query": client.build_request("GET", "/runcode", params={"code": "1", "stream": "1"}),
    }
    asking = asyncio.ensure_future(client.send(ways[by]))
    run = await run_of(face)
    run.add(EventType.STDOUT, text="hi\n")
    run.end()
    answer = await asking
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert [event["type"] for event in frames(answer.text)] == ["started", "stdout", "end"]
    assert [event["seq"] for event in frames(answer.text)] == [1, 2, 3]
    assert {event["run_id"] for event in frames(answer.text)} == {run.run_id}


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/event-stream;q=0", "text/event-streams"])
async def test_who_does_not_ask_for_events_gets_none(client: httpx.AsyncClient, accept: str) -> None:
    answer = await client.post("/runcode", json={"code": "1"}, headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("application/json")


async def test_events_arrive_one_by_one_while_the_run_goes_on(face: Face, client: httpx.AsyncClient) -> None:
    async with client.stream("POST", "/runcode", json={"code": "1", "stream": True}) as answer:
        lines = answer.aiter_lines()
        run = face.service.runs[0]
        for text in ("one", "two"):
            run.add(EventType.STDOUT, text=text)
            async with asyncio.timeout(5):
                async for line in lines:
                    if f'"text":"{text}"' in line:
                        break
        assert run.record.finished_at is None
        run.end()


async def test_the_headers_are_there_before_the_first_event(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    run.events.clear()
    async with asyncio.timeout(5), client.stream("GET", f"/runs/{run.run_id}/events") as answer:
        assert answer.status_code == 200


async def test_events_have_their_wire_form(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked(session_id="s"))
    run.events[0].fields["session_created"] = True  # type: ignore[index]
    image = face.service.add("a/dréi.png", b"x", ArtifactKind.IMAGE, "image/png")
    file = face.service.add("t.csv", b"y", ArtifactKind.FILE, "text/csv")
    for ref in (image, file):
        run.add(EventType(ref.kind.value), name=ref.name, artifact_id=ref.id, content_type=ref.content_type, bytes=1)
    run.add(EventType.RESULT, data={"text/plain": "\ud800"}, metadata={}, display_id=None, is_main_result=True)
    run.end(RunStatus.ERROR, error="boom", usage=Usage(1.0, 2.0, 3), execution_count=1, truncated=True)
    events = frames((await client.get(f"/runs/{run.run_id}/events")).text)
    common = {"run_id": run.run_id}
    assert events == [
        {**common, "seq": 1, "type": "started", "session_id": "s", "session_created": True, "execution_count": 1},
        {
            **common,
            "seq": 2,
            "type": "image",
            "name": "a/dréi.png",
            "url": f"{face.url}/image/{image.id}_dr%C3%A9i.png",
            "content_type": "image/png",
            "bytes": 1,
        },
        {
            **common,
            "seq": 3,
            "type": "file",
            "name": "t.csv",
            "url": f"{face.url}/file/{file.id}_t.csv",
            "content_type": "text/csv",
            "bytes": 1,
        },
        {
            **common,
            "seq": 4,
            "type": "result",
            "data": {"text/plain": "\ufffd"},
            "metadata": {},
            "display_id": None,
            "is_main_result": True,
        },
        {
            **common,
            "seq": 5,
            "type": "end",
            "status": "error",
            "output": "",
            "error": "boom",
            "execution_count": 1,
            "session_id": "s",
            "session_created": False,
            "session_lost": False,
            "truncated": True,
            "usage": {"wall_ms": 1.0, "cpu_ms": 2.0, "memory_peak_bytes": 3},
        },
    ]


async def test_the_end_is_the_plain_answer(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    run.add(EventType.STDOUT, text="x")
    run.end(RunStatus.TIMEOUT)
    end = frames((await client.get(f"/runs/{run.run_id}/events")).text)[-1]
    stored = (await client.get(f"/runs/{run.run_id}")).json()
    assert (end.pop("seq"), end.pop("type")) == (3, "end")
    assert end == {name: stored[name] for name in end}
    assert end.keys() == {"run_id", "status", "output", "error"}


async def test_no_session_is_said_to_have_started_where_there_is_none(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    run.end()
    started = frames((await client.get(f"/runs/{run.run_id}/events")).text)[0]
    assert started.keys() == {"run_id", "seq", "type", "execution_count"}


@pytest.mark.parametrize(("error", "status"), [(TooManyRequests(), 429), (StoreUnavailable(), 503), (Gone(), 410)])
async def test_errors_before_the_run_are_ordinary(
    face: Face, client: httpx.AsyncClient, error: Exception, status: int
) -> None:
    face.service.next_error = error
    answer = await client.post("/runcode", json={"code": "1", "stream": True})
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json; charset=utf-8")
    assert repr(face.streams) == "<Streams 0>"


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [
        ("", {}, 1),
        ("?after=0", {}, 1),
        ("?after=3", {}, 4),
        ("?after=", {}, 1),
        ("", {"Last-Event-ID": "2"}, 3),
        ("?after=1", {"Last-Event-ID": "4"}, 5),
        ("?after=4", {"Last-Event-ID": "1"}, 5),
        ("", {"Last-Event-ID": ""}, 1),
        ("?after=99", {}, None),
        ("?after=999999999999999999", {}, None),
    ],
)
async def test_a_replay_begins_behind_what_the_client_has(
    face: Face, client: httpx.AsyncClient, query: str, headers: dict[str, str], first: int | None
) -> None:
    run = face.service.add_run(asked())
    for text in "abcd":
        run.add(EventType.STDOUT, text=text)
    run.end()
    answer = await client.get(f"/runs/{run.run_id}/events{query}", headers=headers)
    assert [event["seq"] for event in frames(answer.text)] == ([] if first is None else list(range(first, 7)))


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?after=-1", {}),
        ("?after=x", {}),
        ("?after=1.5", {}),
        ("?after=" + "9" * 5000, {}),
        ("?after=%c2%b2", {}),
        ("?after=1&after=2", {}),
        ("?since=1", {}),
        ("", {"Last-Event-ID": "-1"}),
        ("", {"Last-Event-ID": "abc"}),
    ],
)
async def test_a_bad_beginning_is_400(
    face: Face, client: httpx.AsyncClient, query: str, headers: dict[str, str]
) -> None:
    run = face.service.add_run(asked())
    answer = await client.get(f"/runs/{run.run_id}/events{query}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_lines_of_json_for_who_accepts_them(face: Face, client: httpx.AsyncClient) -> None:
    run = face.service.add_run(asked())
    run.add(EventType.STDOUT, text="a\nb\u2028c")
    run.end()
    answer = await client.get(f"/runs/{run.run_id}/events", headers={"Accept": "application/x-ndjson"})
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    lines = answer.content.decode().removesuffix("\n").split("\n")
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[1])["text"] == "a\nb\u2028c"


async def test_silence_is_filled_with_comments_in_sse_and_with_nothing_in_ndjson(
    face: Face, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)
    run = face.service.add_run(asked())
    lines = asyncio.ensure_future(client.get(f"/runs/{run.run_id}/events", headers={"Accept": "application/x-ndjson"}))
    async with client.stream("GET", f"/runs/{run.run_id}/events") as answer:
        text = ""
        async with asyncio.timeout(5):
            async for piece in answer.aiter_text():
                text += piece
                if text.count(": keep-alive\n\n") >= 3 and run.record.finished_at is None:
                    run.add(EventType.STDOUT, text="late")
                    run.end()
    assert [event["type"] for event in frames(text)] == ["started", "stdout", "end"]
    assert len((await lines).content.splitlines()) == 3


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


def _stingy_connection(port: int) -> socket.socket:
    """A connection whose buffers are small, so that not reading is soon noticed."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


async def test_a_client_that_takes_nothing_is_sent_no_more_and_is_hung_up_on(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SEND_TIMEOUT_S", 2.0)
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
    with _stingy_connection(face.port) as connection:
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


async def test_a_reader_that_is_slow_but_reads_gets_everything(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "SEND_TIMEOUT_S", 0.5)
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


async def test_streams_are_bounded_before_anything_is_run(
    face: Face, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS_PER_TENANT", 1)
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
