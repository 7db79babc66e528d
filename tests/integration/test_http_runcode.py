"""What /runcode answers, over a real server: fields, errors, shapes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from http_face import Face
from structlog.testing import capture_logs

from sessions.errors import Conflict, StoreUnavailable, TooManyRequests
from sessions.model import ArtifactId, ArtifactKind, ArtifactRef, ExceptionInfo, RunStatus, Usage


async def test_an_answer_has_run_id_status_and_output_and_nothing_that_says_nothing(
    face: Face, client: httpx.AsyncClient
) -> None:
    face.service.next_result = {"output": "Hello, World!\n"}
    answer = await client.post("/runcode", json={"languageType": "python", "variables": {}, "code": "print('x')"})
    assert answer.status_code == 200
    body = answer.json()
    assert body["output"] == "Hello, World!\n"
    assert body.keys() == {"run_id", "status", "output"}
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert "Server" not in answer.headers


async def test_post_get_and_both_forms_ask_for_the_same_run(face: Face, client: httpx.AsyncClient) -> None:
    fields = {"code": "print(x)", "languageType": "python", "variables": '{"x": 1}', "timeout": "5"}
    answers = [
        await client.post("/runcode", json={**fields, "variables": {"x": 1}, "timeout": 5}),
        await client.get("/runcode", params=fields),
        await client.post("/runcode", data=fields),
        await client.post("/runcode", files={name: (None, value) for name, value in fields.items()}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    first, *others = face.service.requests
    assert others == [first] * 3
    assert (first.code, first.variables, first.timeout_s) == ("print(x)", {"x": 1}, 5.0)


async def test_every_part_of_a_result_is_in_the_answer(face: Face, client: httpx.AsyncClient) -> None:
    image = ArtifactRef(
        ArtifactId("0f000000-0000-4000-8000-000000000000"), ArtifactKind.IMAGE, "a/dréi eck.png", "image/png", 3
    )
    face.service.next_result = {
        "status": RunStatus.ERROR,
        "stderr": "careful",
        "error": "Traceback …",
        "exception": ExceptionInfo("ZeroDivisionError", "division by zero", ("one", "two"), 1),
        "results": ({"text/plain": "42"},),
        "images": {"a/dréi eck.png": image},
        "execution_count": 1,
        "truncated": True,
        "usage": Usage(1.5, 0.5, 1000),
    }
    answer = await client.post("/runcode", json={"code": "1/0"})
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("run_id")
    assert body == {
        "status": "error",
        "output": "",
        "stderr": "careful",
        "error": "Traceback …",
        "exception": {"name": "ZeroDivisionError", "value": "division by zero", "traceback": ["one", "two"], "line": 1},
        "results": [{"text/plain": "42"}],
        "images": {"a/dréi eck.png": f"{face.url}/image/0f000000-0000-4000-8000-000000000000_dr%C3%A9i%20eck.png"},
        "execution_count": 1,
        "truncated": True,
        "usage": {"wall_ms": 1.5, "cpu_ms": 0.5, "memory_peak_bytes": 1000},
    }


async def test_a_timed_out_run_is_504_with_its_whole_answer(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_result = {"status": RunStatus.TIMEOUT, "output": "so far"}
    answer = await client.post("/runcode", json={"code": "while True: pass"})
    assert answer.status_code == 504
    body = answer.json()
    assert body["code"] == "timeout"
    assert body["output"] == "so far"
    assert body["status"] == "timeout"
    assert "time limit" in body["error"]
    assert body["request_id"] == answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "status", [s for s in RunStatus if s.is_final() and s not in (RunStatus.OK, RunStatus.TIMEOUT)]
)
async def test_every_other_end_is_200_with_an_error_text(
    face: Face, client: httpx.AsyncClient, status: RunStatus
) -> None:
    face.service.next_result = {"status": status}
    answer = await client.post("/runcode", json={"code": "x"})
    assert (answer.status_code, answer.json()["status"]) == (200, status.value)
    assert answer.json()["error"]


async def test_what_json_cannot_say_is_replaced(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_result = {
        "output": "nul \x00, lone \ud800, pair \ud83d\ude00",
        "results": ({"application/json": {"nan": float("nan"), "list": [float("inf"), 1.5]}},),
    }
    answer = await client.post("/runcode", json={"code": "x"})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = json.loads(answer.content.decode("utf-8"), parse_constant=refuse)
    assert body["output"] == "nul \x00, lone \ufffd, pair \U0001f600"
    assert body["results"] == [{"application/json": {"nan": None, "list": [None, 1.5]}}]


async def test_nul_and_lone_surrogates_get_through_to_the_code(face: Face, client: httpx.AsyncClient) -> None:
    answer = await client.post("/runcode", content=rb'{"code": "\u0000\ud800", "variables": {"x": "\udfff"}}')
    assert answer.status_code == 200
    assert face.service.requests[0].code == "\x00\ud800"
    assert face.service.requests[0].variables == {"x": "\udfff"}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b'"x"', "invalid_json"),
        (b'{"code": "\xff"}', "invalid_json"),
        (b'{"code": "\xed\xa0\x80"}', "invalid_json"),
        (b'{"code": "1", "timeout": NaN}', "invalid_json"),
        (b'{"code": "1", "variables": {"x": -Infinity}}', "invalid_json"),
        (b'{"code": "1", "variables": {"x": ' + b"9" * 5000 + b"}}", "invalid_json"),
        (b'{"code": "1", "variables": {"x": ' + b"[" * 4000 + b"]" * 4000 + b"}}", "invalid_json"),
        (b'{"code": "1", "variables": {"x": ' + b"[" * 200 + b"]" * 200 + b"}}", "invalid_json"),
        (b"[" * 9000, "invalid_json"),
        (b"{}", "invalid_request"),
        (b'{"code": 1}', "invalid_request"),
        (b'{"code": null}', "invalid_request"),
        (b'{"code": "1", "timeout": true}', "invalid_request"),
        (b'{"code": "1", "timeout": "5"}', "invalid_request"),
        (b'{"code": "1", "timeout": 0}', "invalid_request"),
        (b'{"code": "1", "timeout": -1}', "invalid_request"),
        (b'{"code": "1", "timeout": 1e999}', "invalid_request"),
        (b'{"code": "1", "timeout": 1' + b"0" * 400 + b"}", "invalid_request"),
        (b'{"code": "1", "timeout": 601}', "invalid_request"),
        (b'{"code": "1", "variables": [1]}', "invalid_request"),
        (b'{"code": "1", "variables": "{}"}', "invalid_request"),
        (b'{"code": "1", "variables": {"1x": 1}}', "invalid_request"),
        (b'{"code": "1", "variables": {"class": 1}}', "invalid_request"),
        (b'{"code": "1", "variables": {"": 1}}', "invalid_request"),
        (b'{"code": "1", "variables": {"x\\ud800": 1}}', "invalid_request"),
        (b'{"code": "1", "\\ud800": 1}', "invalid_request"),
        (b'{"code": "1", "language": "python", "languageType": "r"}', "invalid_request"),
        (b'{"code": "1", "languageType": "cobol"}', "unsupported_language"),
        (b'{"code": "1", "session_id": ""}', "invalid_request"),
        (b'{"code": "1", "session_id": "a b"}', "invalid_request"),
        (b'{"code": "1", "session_id": "a\\n"}', "invalid_request"),
        (b'{"code": "1", "session_id": "../x"}', "invalid_request"),
        (b'{"code": "1", "session_id": 7}', "invalid_request"),
        (b'{"code": "1", "session_id": "' + b"x" * 129 + b'"}', "invalid_request"),
        (b'{"code": "1", "stream": "yes"}', "invalid_request"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else None,
)
async def test_bad_bodies_are_400_with_a_sentence(
    face: Face, client: httpx.AsyncClient, content: bytes, code: str
) -> None:
    answer = await client.post("/runcode", content=content)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert answer.json().keys() == {"error", "code", "request_id"}
    assert answer.json()["error"][-1] in ".?"
    assert face.service.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"session_id": None, "stream": False, "variables": None, "timeout": None},
        {"variables": [], "stream": None, "language": "Python"},
    ],
)
async def test_fields_that_ask_for_nothing_are_fine(
    face: Face, client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    answer = await client.post("/runcode", json={"code": "1", **fields})
    assert answer.status_code == 200, answer.text
    assert face.service.requests[0].variables == {}
    assert face.service.requests[0].timeout_s == 30.0


async def test_a_mistyped_field_is_named_and_the_near_one_suggested(client: httpx.AsyncClient) -> None:
    by_post = await client.post("/runcode", json={"coed": "1"})
    by_get = await client.get("/runcode", params={"coed": "1"})
    assert "coed" in by_post.json()["error"]
    assert 'did you mean "code"?' in by_post.json()["error"]
    assert by_get.json()["error"] == by_post.json()["error"]


async def test_a_session_is_asked_for_the_same_way_by_every_form(face: Face, client: httpx.AsyncClient) -> None:
    longest = "aZ0._:-" + "x" * 121
    answers = [
        await client.post("/runcode", json={"code": "1", "session_id": longest}),
        await client.get("/runcode", params={"code": "1", "session_id": longest}),
        await client.post("/runcode", data={"code": "1", "session_id": longest}),
    ]
    assert [answer.json()["session_id"] for answer in answers] == [longest] * 3
    assert [request.session_id for request in face.service.requests] == [longest] * 3
    assert face.service.requests[0].allow_stdin is False


async def test_an_empty_session_id_of_a_form_or_query_is_none(face: Face, client: httpx.AsyncClient) -> None:
    await client.get("/runcode", params={"code": "1", "session_id": ""})
    await client.post("/runcode", data={"code": "1", "session_id": ""})
    assert [request.session_id for request in face.service.requests] == [None, None]


async def test_a_bad_session_id_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.get("/runcode", params={"code": "1", "session_id": "a/b"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert '"session_id"' in answer.json()["error"]


async def test_an_answer_tells_all_of_its_session_or_nothing(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_result = {"session_created": True}
    with_one = (await client.post("/runcode", json={"code": "1", "session_id": "s"})).json()
    assert {name: with_one[name] for name in with_one if name.startswith("session")} == {
        "session_id": "s",
        "session_created": True,
        "session_lost": False,
    }
    without = (await client.post("/runcode", json={"code": "1"})).json()
    assert not [name for name in without if name.startswith("session")]


@pytest.mark.parametrize("key", ["k", "x" * 255, " spaces and ~ are printable".strip(), 'a,b;c="d"'])
async def test_an_idempotency_key_goes_to_the_service(face: Face, client: httpx.AsyncClient, key: str) -> None:
    asking = asyncio.ensure_future(client.post("/runcode", json={"code": "1"}, headers={"Idempotency-Key": key}))
    async with asyncio.timeout(30):
        while not face.service.runs:
            await asyncio.sleep(0.01)
    face.service.runs[0].end(output="1")
    answer = await asking
    assert (answer.status_code, answer.json()["output"]) == (200, "1")
    assert face.service.requests[0].idempotency_key == key


@pytest.mark.parametrize("key", [b"", b"x" * 256, "schlüssel".encode(), b"\x80", b"a\tb"])
async def test_a_bad_idempotency_key_is_400_and_runs_nothing(face: Face, client: httpx.AsyncClient, key: bytes) -> None:
    answer = await client.post("/runcode", json={"code": "1"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "Idempotency-Key" in answer.json()["error"]
    assert face.service.requests == []


async def test_a_key_used_for_something_else_is_409(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_error = Conflict("This Idempotency-Key was used with another body.")
    answer = await client.post("/runcode", json={"code": "1"}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "application/vnd.api+json"}, 200),
        ({}, 200),
        ({"Content-Encoding": "identity"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/xml"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
async def test_media_types_that_are_read_and_that_are_not(
    client: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    answer = await client.post("/runcode", content=b'{"code": "1"}', headers=headers)
    assert answer.status_code == status, answer.text


async def test_json_declared_as_a_form_is_told_so(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.post("/runcode", content=b'{"code": "print(1)"}', headers=headers)
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]


@pytest.mark.parametrize("query", ["code=%ff", "code=1&code=2", "code=1&variables={", "code=1&variables=3", "", "x=1"])
async def test_bad_queries_are_400(face: Face, client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/runcode?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert face.service.requests == []


async def test_a_get_unescapes_what_would_not_compile(face: Face, client: httpx.AsyncClient) -> None:
    await client.get("/runcode", params={"code": r"for i in range(3):\n    print(i)"})
    await client.get("/runcode", params={"code": r"print('a\nb')"})
    await client.post("/runcode", json={"code": r"for i in range(3):\n    print(i)"})
    assert [request.code for request in face.service.requests] == [
        "for i in range(3):\n    print(i)",
        r"print('a\nb')",
        r"for i in range(3):\n    print(i)",
    ]


async def test_errors_of_the_service_become_their_status(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_error = TooManyRequests()
    busy = await client.post("/runcode", json={"code": "1"})
    assert (busy.status_code, busy.json()["code"], busy.headers["Retry-After"]) == (429, "too_many_requests", "1")
    face.service.next_error = StoreUnavailable()
    down = await client.post("/runcode", json={"code": "1"})
    assert (down.status_code, down.json()["code"], down.headers["Retry-After"]) == (503, "unavailable", "2")


async def test_an_unforeseen_error_tells_nothing_and_logs_its_traceback(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_error = RuntimeError("path /etc/shadow")
    with capture_logs() as logs:
        answer = await client.get("/runcode", params={"code": "secret_code()"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "shadow" not in answer.text
    error, access = logs
    assert error["exc_info"][1] is face.service.next_error
    assert access["request_id"] == error["request_id"] == answer.json()["request_id"]
    assert "secret_code" not in repr(logs)


async def test_a_client_that_hangs_up_does_not_stop_its_run(face: Face) -> None:
    face.service.hold = asyncio.Event()
    _, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"GET /runcode?code=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        await face.service.was_asked.wait()
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)  # the server gets to see it
        face.service.hold.set()
        await face.service.has_finished.wait()
    assert face.service.finished == 1
