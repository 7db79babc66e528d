"""Events over HTTP, with real clients: server-sent events, NDJSON, replay, silence, and what they are made of."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from events_talk import asked, frames, run_of
from http_face import Face

from gateway.http.base.limits import HttpBounds
from sessions.errors import Gone, StoreUnavailable, TooManyRequests
from sessions.model import ArtifactKind, EventType, RunStatus, Usage


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


@pytest.mark.parametrize("face", [HttpBounds(keep_alive_s=0.05)], indirect=True)
async def test_silence_is_filled_with_comments_in_sse_and_with_nothing_in_ndjson(
    face: Face, client: httpx.AsyncClient
) -> None:
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
