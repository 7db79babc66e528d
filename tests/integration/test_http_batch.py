"""`POST /runcode/batch` over a real server: its items, its lines, and clients that read slowly or not at all."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
from http_face import Face, serving, stingy_connection
from memory_service import MemoryService
from structlog.testing import capture_logs

from gateway.auth import Token
from gateway.http.base.limits import HttpBounds
from gateway.http.parse import run_request
from sessions.errors import Conflict, Draining, EndNotStored, Gone, NoKernelInTime, TooManyRequests
from sessions.model import RunId, RunRequest, RunStatus
from sessions.settings import Limits

PATIENCE_S = 30
AT_ONCE = 6
"""A quarter of the default of `pool.max`."""
LARGE_BYTES = 8 << 20

Json = dict[str, Any]


@dataclass
class EndingService(MemoryService):
    """Its runs end at once, unless the test ends them. What it is to refuse stands in `refusals`, by the code."""

    ends: bool = True
    refusals: dict[str, list[Exception]] = field(default_factory=dict)

    async def begin(self, request: RunRequest) -> RunId:
        if self.refusals.get(request.code):
            raise self.refusals[request.code].pop(0)
        run_id = await super().begin(request)
        memory = self._run(None, run_id)
        if self.ends and memory.record.result is None:
            memory.end(**{"output": request.code, **self.next_result})
        return run_id

    async def stored_bytes(self, run_id: RunId) -> int:
        return await self.run_bytes(run_id) if self._run(None, run_id).record.result is not None else 0


@pytest_asyncio.fixture
async def face(request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    limits = Limits(request_bytes=200_000)
    async with serving(bounds=getattr(request, "param", None), service=EndingService(), limits=limits) as face:
        yield face


def lines(answer: httpx.Response) -> list[Json]:
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.content.decode().removesuffix("\n").split("\n")]


async def batch(client: httpx.AsyncClient, *items: Any) -> dict[Any, Json]:
    """The lines by their ids."""
    heard = lines(await client.post("/runcode/batch", json={"runs": items}))
    assert len(heard) == len(items)
    return {line["id"]: line for line in heard}


async def until_begun(face: Face, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(face.service.runs) < count:
            await asyncio.sleep(0.005)


def ask(connection: socket.socket, *codes: str) -> None:
    body = json.dumps({"runs": [{"code": code} for code in codes]})
    head = f"POST /runcode/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())


# --- lines ------------------------------------------------------------------------------------------------------------


async def test_each_item_has_the_answer_of_its_run_on_a_line(face: Face, client: httpx.AsyncClient) -> None:
    items = [{"code": "one"}, {"code": "two", "session_id": "s", "variables": {"x": 1}, "timeout": 5}]
    answer = await client.post("/runcode/batch", json={"runs": items}, headers={"X-Request-Id": "mine"})
    assert answer.headers["Content-Type"] == "application/x-ndjson; charset=utf-8"
    assert (answer.headers["X-Accel-Buffering"], answer.headers["X-Request-Id"]) == ("no", "mine")
    by_id = {line["id"]: line for line in lines(answer)}
    runs = {run.request.code: run.run_id for run in face.service.runs}
    in_session = {"session_id": "s", "session_created": False, "session_lost": False}
    assert by_id == {
        0: {"id": 0, "status_code": 200, "run_id": runs["one"], "status": "ok", "output": "one"},
        1: {"id": 1, "status_code": 200, "run_id": runs["two"], "status": "ok", "output": "two", **in_session},
    }
    asked = next(run.request for run in face.service.runs if run.request.code == "two")
    assert (asked.session_id, asked.variables, asked.timeout_s) == ("s", {"x": 1}, 5.0)


async def test_ids_come_back_as_they_were_sent(client: httpx.AsyncClient) -> None:
    ids = ["", "a b", "ü" * 128, 0, -7, 1 << 70, "5"]
    heard = await batch(
        client, *({"code": "1", "id": given} for given in ids), {"code": "1"}, {"code": "1", "id": None}
    )
    assert set(heard) == {*ids, 7, 8}


async def test_a_line_comes_as_soon_as_its_run_has_ended(face: Face, client: httpx.AsyncClient) -> None:
    face.service.ends = False
    items = [{"code": str(place)} for place in range(20)]
    async with client.stream("POST", "/runcode/batch", json={"runs": items}) as answer:
        assert answer.status_code == 200
        arriving = answer.aiter_lines()
        ended: set[int] = set()
        async with asyncio.timeout(PATIENCE_S):
            for count in range(20):
                await until_begun(face, min(count + AT_ONCE, 20))
                alive = [place for place in range(len(face.service.runs)) if place not in ended]
                assert len(alive) <= AT_ONCE
                face.service.runs[alive[-1]].end()
                ended.add(alive[-1])
                assert json.loads(await anext(arriving))["run_id"] == face.service.runs[alive[-1]].run_id
            assert [line async for line in arriving] == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Conflict("x"), 409, "conflict"),
        (Gone(), 410, "gone"),
        (TooManyRequests(), 429, "too_many_requests"),
        (NoKernelInTime(), 503, "unavailable"),
        (Draining(), 503, "unavailable"),
        (EndNotStored("x"), 500, "end_not_stored"),
        (RuntimeError("secret"), 500, "internal"),
    ],
)
@pytest.mark.parametrize("face", [HttpBounds(batch_patience_s=0.0)], indirect=True)
async def test_a_refused_item_has_the_error_of_post_runcode(
    face: Face, client: httpx.AsyncClient, error: Exception, status: int, code: str
) -> None:
    face.service.refusals["bad"] = [error, error]
    single = await client.post("/runcode", json={"code": "bad", "stream": True}, headers={"X-Request-Id": "r"})
    answer = await client.post(
        "/runcode/batch", json={"runs": [{"code": "good"}, {"code": "bad"}]}, headers={"X-Request-Id": "r"}
    )
    good, bad = sorted(lines(answer), key=lambda line: line["id"])
    assert (good["status_code"], good["output"]) == (200, "good")
    assert (single.status_code, single.json()["code"]) == (status, code)
    retry_after = bad.pop("retry_after", None)
    assert bad == {"id": 1, "status_code": status, **single.json()}
    assert single.headers.get("Retry-After") == (None if retry_after is None else str(retry_after))


async def test_a_run_past_its_time_limit_is_a_504_with_its_whole_answer(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_result = {"status": RunStatus.TIMEOUT}
    line = (await batch(client, {"code": "x"}))[0]
    assert (line["status_code"], line["status"], line["code"], line["output"]) == (504, "timeout", "timeout", "x")
    assert line["request_id"]


async def test_what_the_load_refuses_is_tried_again(face: Face, client: httpx.AsyncClient) -> None:
    face.service.refusals["x"] = [TooManyRequests(retry_after_s=0)]
    assert (await batch(client, {"code": "x"}))[0]["status_code"] == 200
    assert face.service.refusals == {"x": []}


# --- bad items and bad requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "code", "said"),
    [
        ({"coed": "1"}, "invalid_request", '"code"'),
        ({"code": "1", "tiemout": 1}, "invalid_request", 'did you mean "timeout"'),
        ({}, "invalid_request", '"code" is required'),
        ({"code": 1}, "invalid_request", '"code" must be a string'),
        ({"code": "1", "timeout": "5"}, "invalid_request", '"timeout"'),
        ({"code": "1", "timeout": -5}, "invalid_request", '"timeout"'),
        ({"code": "1", "variables": {"a b": 1}}, "invalid_request", '"variables"'),
        ({"code": "1", "session_id": ""}, "invalid_request", '"session_id"'),
        ({"code": "1", "language": "cobol"}, "unsupported_language", "cobol"),
        ({"code": "1", "stream": True}, "invalid_request", '"stream"'),
        ({"code": "1", "stream": False}, "invalid_request", '"stream"'),
        ({"code": "1", "idempotency_key": ""}, "invalid_request", "Idempotency-Key"),
        ({"code": "1", "idempotency_key": 5}, "invalid_request", '"idempotency_key"'),
        ("1", "invalid_request", '"runs"'),
        (None, "invalid_request", '"runs"'),
        (["code"], "invalid_request", '"runs"'),
    ],
)
async def test_a_bad_item_fails_alone(face: Face, client: httpx.AsyncClient, item: Any, code: str, said: str) -> None:
    heard = await batch(client, {"code": "first"}, item, {"code": "last"})
    assert [heard[place]["status_code"] for place in range(3)] == [200, 400, 200]
    assert heard[1]["code"] == code
    assert said in heard[1]["error"]
    assert heard[1].keys() == {"id", "status_code", "error", "code", "request_id"}
    assert [run.request.code for run in face.service.runs] == ["first", "last"]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"", "invalid_json", "JSON"),
        (b"{", "invalid_json", "line 1"),
        (b"[]", "invalid_json", "one JSON object"),
        (b"{}", "invalid_request", '"runs" is required'),
        (b'{"runs": null}', "invalid_request", '"runs" must be a list'),
        (b'{"runs": {"code": "1"}}', "invalid_request", '"runs" must be a list'),
        (b'{"runs": []}', "invalid_request", '"runs" must hold 1 to 1000'),
        (b'{"runs": [{"code": "1"}], "run": 1}', "invalid_request", 'did you mean "runs"'),
        (b'{"runs": [{"code": "1"}], "stream": true}', "invalid_request", '"stream"'),
        (b'{"runs": [{"code": "1", "id": 1.5}]}', "invalid_request", "runs[0]"),
        (b'{"runs": [{"code": "1", "id": true}]}', "invalid_request", '"id"'),
        (b'{"runs": [{"code": "1"}, {"code": "1", "id": []}]}', "invalid_request", "runs[1]"),
        (b'{"runs": [{"code": "1", "id": "' + b"x" * 129 + b'"}]}', "invalid_request", "128"),
        (b'{"runs": [{"code": "1", "id": 1' + b"0" * 200 + b"}]}", "invalid_request", "128"),
        (b'{"runs": [{"code": "1", "id": "\\ud800"}]}', "invalid_request", "lone surrogate"),
        (b'{"runs": [{"code": "1", "id": "a"}, {"code": "2", "id": "a"}]}', "invalid_request", 'the id "a"'),
        (b'{"runs": [{"code": "1", "id": 1}, {"code": "2"}]}', "invalid_request", "the id 1:"),
    ],
)
async def test_a_bad_request_runs_nothing(
    face: Face, client: httpx.AsyncClient, body: bytes, code: str, said: str
) -> None:
    answer = await client.post("/runcode/batch", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert said in answer.json()["error"]
    assert face.service.requests == []


async def test_a_thousand_items_are_taken_and_no_more(face: Face, client: httpx.AsyncClient) -> None:
    items = [{"code": str(place)} for place in range(1001)]
    assert len(await batch(client, *items[:1000])) == 1000
    refused = await client.post("/runcode/batch", json={"runs": items})
    assert (refused.status_code, len(face.service.runs)) == (400, 1000)
    assert "not 1001" in refused.json()["error"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ({"data": {"runs": "[]"}}, 415, "JSON"),
        ({"files": {"runs": (None, "[]")}}, 415, "JSON"),
        ({"content": b"{}", "headers": {"Content-Type": "application/x-ndjson"}}, 415, "application/json"),
        ({"content": b"{}", "headers": {"Content-Encoding": "gzip"}}, 415, "Content-Encoding"),
        ({"json": {"runs": [{"code": "1"}]}, "headers": {"Idempotency-Key": "k"}}, 400, '"idempotency_key"'),
        ({"json": {"runs": [{"code": "1"}]}, "params": {"code": "1"}}, 400, "query"),
        ({"json": {"runs": [{"code": "x" * 200_000}]}}, 413, "limits.request_bytes"),
    ],
)
async def test_what_the_headers_say_is_refused_as_elsewhere(
    face: Face, client: httpx.AsyncClient, arguments: Json, status: int, said: str
) -> None:
    answer = await client.post("/runcode/batch", **arguments)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert face.service.requests == []


async def test_others_have_their_turn_after_each_item_that_takes_long_to_check(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, seen = 0, []
    check = run_request.run_request

    def slow(*arguments: Any, **options: Any) -> RunRequest:
        seen.append(turns)
        time.sleep(0.02)
        return check(*arguments, **options)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(run_request, "run_request", slow)
    waiting = asyncio.ensure_future(others())
    try:
        assert len(await batch(client, *({"code": str(place)} for place in range(10)))) == 10
    finally:
        waiting.cancel()
    assert len(set(seen)) == 10


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_a_batch_that_is_sent_again_gets_the_answers_of_those_that_ran(
    face: Face, client: httpx.AsyncClient
) -> None:
    items = [{"code": str(place), "id": f"i{place}", "idempotency_key": f"k{place}"} for place in range(10)]
    first = await batch(client, *items[:6])
    again = await batch(client, *items)
    assert {name: again[name] for name in first} == first
    assert len(face.service.runs) == 10
    other = await batch(client, {**items[0], "code": "other"})
    assert other["i0"]["status_code"] == 409
    assert len(face.service.runs) == 10


# --- clients ----------------------------------------------------------------------------------------------------------


async def test_when_the_client_hangs_up_no_further_item_begins(face: Face) -> None:
    face.service.ends = False
    async with httpx.AsyncClient(base_url=face.url, timeout=PATIENCE_S) as client:
        items = [{"code": str(place)} for place in range(20)]
        async with client.stream("POST", "/runcode/batch", json={"runs": items}):
            await until_begun(face, AT_ONCE)
    async with asyncio.timeout(PATIENCE_S):
        while repr(face.streams) != "<Streams 0>":
            await asyncio.sleep(0.005)
    for run in face.service.runs:
        run.end()
    await asyncio.sleep(0.1)
    assert len(face.service.runs) == AT_ONCE
    assert (repr(face.in_flight), repr(face.answers)) == ("<InFlight 0>", "<AnswerRoom 0>")
    async with asyncio.timeout(PATIENCE_S):
        while repr(face.bodies) != "<BufferedBodies 0>":
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("face", [HttpBounds(answers_bytes=200 << 20)], indirect=True)
async def test_nothing_begins_while_the_client_does_not_read(face: Face) -> None:
    face.service.next_result = {"output": "x" * LARGE_BYTES}
    with stingy_connection(face.port) as connection:
        ask(connection, *(str(place) for place in range(50)))
        await until_begun(face, AT_ONCE)
        await asyncio.sleep(0.5)
        begun = len(face.service.runs)
        assert begun <= AT_ONCE + 1  # the first line may have gone
        connection.settimeout(0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        async with asyncio.timeout(PATIENCE_S):
            while len(face.service.runs) == begun:
                await asyncio.get_running_loop().sock_recv(connection, 1 << 20)


@pytest.mark.parametrize("face", [HttpBounds(send_timeout_s=0.5)], indirect=True)
async def test_a_client_that_does_not_read_is_hung_up_on(face: Face) -> None:
    face.service.next_result = {"output": "x" * LARGE_BYTES}
    with stingy_connection(face.port) as connection:
        ask(connection, *(str(place) for place in range(50)))
        await until_begun(face, 1)
        async with asyncio.timeout(PATIENCE_S):
            while repr(face.streams) != "<Streams 0>" or repr(face.answers) != "<AnswerRoom 0>":
                await asyncio.sleep(0.01)
        assert len(face.service.runs) <= AT_ONCE + 1


@pytest.mark.parametrize("face", [HttpBounds(answers_bytes=44 << 20, send_timeout_s=1.0)], indirect=True)
async def test_an_answer_that_finds_no_room_is_told_of_and_the_others_go_on(
    face: Face, client: httpx.AsyncClient
) -> None:
    large = "x" * (100 << 10)
    with face.answers.place() as place:
        await place.take(44 << 20)
        heard = await batch(client, {"code": f"len('{large}')"}, {"code": "small"})
    assert (heard[0]["status_code"], heard[0]["code"]) == (500, "end_not_stored")
    assert next(run.run_id for run in face.service.runs if run.request.code != "small") in heard[0]["error"]
    assert (heard[1]["status_code"], heard[1]["output"]) == (200, "small")


async def test_an_item_is_held_until_it_is_answered_and_counts_as_the_body_did(
    face: Face, client: httpx.AsyncClient
) -> None:
    face.service.ends = False
    body = {"runs": [{"code": f"x = '{str(place) * 30_000}'"} for place in range(4)] + [{"code": 7}]}
    size_bytes = len(json.dumps(body))
    async with client.stream("POST", "/runcode/batch", content=json.dumps(body)) as answer:
        await until_begun(face, 4)
        arriving = answer.aiter_lines()
        assert json.loads(await anext(arriving))["status_code"] == 400
        for left in (3, 2, 1):
            run = face.service.runs[0]
            code = run.request.code
            run.end()
            await anext(arriving)
            assert size_bytes * left / 4 - 500 < face.bodies.size_bytes < size_bytes * left / 4 + 500
            face.service.requests.clear()
            face.service.runs.remove(run)
            del run
            gc.collect()
            assert not [one for one in gc.get_objects() if isinstance(one, RunRequest) and one.code == code]
        face.service.runs[0].end()
    async with asyncio.timeout(PATIENCE_S):
        while repr(face.bodies) != "<BufferedBodies 0>":
            await asyncio.sleep(0.005)


ALICE, BOB, EVE = (
    Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in ("alice", "bob", "eve")
)


async def test_slow_batches_leave_room_for_others() -> None:
    """Half of the room is there for them, a quarter for those of one tenant; single runs of others find some."""
    limits = Limits(request_bytes=100_000)
    large = {"code": f"x = '{'y' * 95_000}'"}
    async with AsyncExitStack() as stack:
        service = EndingService(ends=False)
        face = await stack.enter_async_context(serving(service=service, limits=limits, tokens=(ALICE, BOB, EVE)))

        async def client(tenant: str) -> httpx.AsyncClient:
            headers = {"Authorization": f"Bearer {tenant}"}
            made = httpx.AsyncClient(base_url=face.url, timeout=PATIENCE_S, headers=headers)
            return await stack.enter_async_context(made)

        alice, bob, eve = [await client(name) for name in ("alice", "bob", "eve")]
        for tenant in (alice, bob):
            for _ in range(4):
                begun = tenant.stream("POST", "/runcode/batch", json={"runs": [large]})
                assert (await stack.enter_async_context(begun)).status_code == 200
            refused = await tenant.post("/runcode/batch", json={"runs": [large]})
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert "Retry-After" in refused.headers
        assert (await eve.post("/runcode/batch", json={"runs": [large]})).status_code == 503
        small = eve.stream("POST", "/runcode/batch", json={"runs": [{"code": "small"}]})
        assert (await stack.enter_async_context(small)).status_code == 200
        service.ends = True
        assert (await eve.post("/runcode", json=large)).status_code == 200
        for run in service.runs:
            run.end()


@pytest.mark.parametrize("face", [HttpBounds(streams_per_tenant=1)], indirect=True)
async def test_a_batch_counts_as_a_stream(face: Face, client: httpx.AsyncClient) -> None:
    face.service.ends = False
    body = {"runs": [{"code": "1"}]}
    async with client.stream("POST", "/runcode/batch", json=body) as answer:
        await until_begun(face, 1)
        refused = await client.post("/runcode/batch", json=body)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        face.service.runs[0].end()
        assert len([line async for line in answer.aiter_lines()]) == 1
    assert repr(face.streams) == "<Streams 0>"


async def test_an_answer_that_is_not_whole_does_not_end_as_if_it_were(face: Face, client: httpx.AsyncClient) -> None:
    face.service.ends = False
    async with client.stream("POST", "/runcode/batch", json={"runs": [{"code": "1"}, {"code": "2"}]}) as answer:
        await until_begun(face, 2)
        face.service.runs[0].end()
        arriving = answer.aiter_lines()
        assert json.loads(await anext(arriving))["run_id"] == face.service.runs[0].run_id
        for stream in list(face.streams._open):
            stream.end_stream()
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(arriving)


async def test_the_access_log_says_how_many_items_there_were(client: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await batch(client, {"code": "1"}, {"code": 2})
    (access,) = [line for line in logs if line["event"] == "request"]
    assert (access["route"], access["status"], access["items"]) == ("/runcode/batch", 200, 2)
