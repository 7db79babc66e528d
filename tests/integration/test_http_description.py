"""The description: it is valid, has every route and nothing else, and is true of the answers to its own examples."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from described import ALICE, BOB, CALLS, HANDSHAKE, TOKENS, BriefService, Call, bearer, check, described, judge, lay_out
from http_face import Face, serving
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.http.base.errors import STATUS_OF_CODE
from gateway.http.description.events import Event
from gateway.http.description.operation import Stream
from gateway.http.description.parameters import PATH_PARAMETERS, RUN_ID
from gateway.http.description.schemas import structs_in
from gateway.http.description.table import OPERATIONS
from gateway.http.routes import ROUTES
from sessions.model import (
    ANONYMOUS,
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    EventType,
    ExceptionInfo,
    Result,
    RunId,
    RunRequest,
    RunStatus,
    SessionId,
    Usage,
)

LISTED = [route for route in ROUTES if route.is_listed]
CREDENTIALS = [pytest.param({}, id="no token"), pytest.param(bearer("wrong"), id="a wrong token")]


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(described()).validate()


def test_every_method_of_every_route_is_described_and_nothing_else() -> None:
    """A new route is described in gateway/http/description/, in the module of its resource."""
    shown = {f"{call.method} {call.path}" for call in CALLS}
    assert shown == {f"{method} {route.path}" for route in LISTED for method in route.methods}
    assert set(OPERATIONS) == {name for name in shown if not name.startswith("HEAD ")}
    prefixes = {route.path[: match.end()] for route in LISTED for match in re.finditer(r"\{\w+\}", route.path)}
    assert set(PATH_PARAMETERS) == prefixes


def test_every_field_has_a_meaning() -> None:
    """It is the sentence below the field, in the struct."""
    for name, schema in described()["components"]["schemas"].items():
        for field, shown in schema.get("properties", {}).items():
            assert shown.get("description") or field == "type", f"{name}.{field}"
    for call in CALLS:
        for parameter in call.parameters:
            assert parameter.get("description"), (str(call), parameter["name"])


def test_every_event_and_every_error_code_is_described() -> None:
    tags = {struct.__struct_config__.tag for struct in structs_in(Event)} - {None}
    assert tags == {kind.value for kind in EventType}
    text = " ".join(response["description"] for response in described()["components"]["responses"].values())
    assert {code for code in (*STATUS_OF_CODE, "internal") if f"`{code}`: " not in text} == {"timeout"}


def test_examples_of_answers_are_as_described() -> None:
    count = 0
    for call in CALLS:
        for response in call.said["responses"].values():
            for media in response.get("content", {}).values():
                if "example" in media:
                    judge(media["schema"]).validate(media["example"])
                    count += 1
    assert count > 5


async def test_examples_are_answered_as_described() -> None:
    """But for the channels of a kernel, which memory_service.py lacks."""
    async with serving(tokens=TOKENS, service=BriefService()) as face, httpx.AsyncClient(base_url=face.url) as client:
        for call in CALLS:
            if call.path != "/api/kernels/{id}/channels":
                await _send_examples(call, face, client)


async def _send_examples(call: Call, face: Face, client: httpx.AsyncClient) -> None:
    for body in call.bodies():
        await lay_out(face.service)
        headers = bearer(ALICE) | (HANDSHAKE if call.is_socket else {})
        async with client.stream(call.method, call.url(), params=call.query, headers=headers, **body) as answer:
            if call.is_socket:
                assert answer.status_code == 101
                continue
            await answer.aread()
            check(call, answer)
            assert answer.status_code < 300, (str(call), answer.text)


@pytest.mark.parametrize("headers", CREDENTIALS)
async def test_who_has_no_token_gets_what_is_open(headers: dict[str, str]) -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        await lay_out(face.service)
        for call in CALLS:
            answer = await client.request(call.method, call.url(), headers=headers | HANDSHAKE, params=call.query)
            check(call, answer)
            assert (answer.status_code == 401) == bool(call.said["security"]), str(call)
            assert answer.headers.get("WWW-Authenticate") == ("Bearer" if answer.status_code == 401 else None)
        assert face.service.requests == []


async def test_what_is_another_tenants_does_not_exist() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        await lay_out(face.service)
        kept = dict(face.service.sessions)
        guarded = [call for call in CALLS if "{id}" in call.path]
        for call in guarded:
            for body in call.bodies():
                headers = bearer(BOB) | (HANDSHAKE if call.is_socket else {})
                answer = await client.request(call.method, call.url(), params=call.query, headers=headers, **body)
                check(call, answer)
                assert answer.status_code == 404, str(call)
        assert len(guarded) > 20
        assert face.service.sessions == kept


async def test_the_token_of_a_jupyter_route_may_be_in_the_query() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        await lay_out(face.service)
        for call in CALLS:
            in_query = {"query": []} in call.said["security"]
            if call.said["security"] and call.method == "GET" and not call.is_socket:
                answer = await client.get(call.url(), params=call.query | {"token": ALICE})
                assert (answer.status_code == 401) != in_query, str(call)


async def test_a_whole_answer_is_as_described(face: Face, client: httpx.AsyncClient) -> None:
    ref = ArtifactRef(ArtifactId(RUN_ID), ArtifactKind.IMAGE, "a.png", "image/png", 3)
    face.service.next_result = {
        "status": RunStatus.TIMEOUT,
        "output": "a",
        "stderr": "b",
        "error": "c",
        "exception": ExceptionInfo("E", "v", ("t",), None),
        "results": ({"text/plain": "1", "application/json": {"a": 1}},),
        "images": {"a.png": ref},
        "files": {"d/b": ArtifactRef(ref.id, ArtifactKind.FILE, "d/b", "text/plain", 3)},
        "execution_count": 1,
        "truncated": True,
        "usage": Usage(1.5, 1.0, 1),
        "session_lost": True,
    }
    body: dict[str, Any] = {"code": "x", "session_id": "s"}
    late = await client.post("/runcode", json=body)
    assert late.status_code == 504
    check(Call("POST", "/runcode"), late)
    face.service.next_result["status"] = RunStatus.ERROR
    answer = await client.post("/runcode", json=body)
    check(Call("POST", "/runcode"), answer)
    assert set(answer.json()) == set(described()["components"]["schemas"]["RunAnswer"]["properties"])


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_events_are_as_described(face: Face, client: httpx.AsyncClient, accept: str) -> None:
    request = RunRequest(ANONYMOUS, "x", "python", {}, 1.0, session_id=SessionId("s"))
    memory = face.service.add_run(request)
    memory.add(EventType.STDOUT, text="a")
    memory.add(EventType.STDERR, text="b")
    artifact = {"name": "f.png", "artifact_id": RUN_ID, "content_type": "image/png", "bytes": 3}
    memory.add(EventType.IMAGE, **artifact)
    memory.add(EventType.FILE, **artifact)
    memory.add(EventType.RESULT, data={"text/plain": "1"}, metadata={}, display_id=None, is_main_result=True)
    memory.add(EventType.UPDATE, data={"text/plain": "1"}, display_id="d")
    memory.add(EventType.CLEAR, wait=True)
    memory.add(EventType.ERROR, name="E", value="v", traceback=["t"])
    memory.add(EventType.INPUT_REQUEST, prompt="? ", password=False)
    memory.add(EventType.TRUNCATED, what="output", dropped_bytes=3)
    memory.end(usage=Usage(1.5, 1.0, 1))
    assert isinstance(memory.record.result, Result)
    answer = await client.get(f"/runs/{RunId(memory.run_id)}/events", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith(accept)
    check(Call("GET", "/runs/{id}/events"), answer)


def test_streams_are_described_as_what_they_consist_of() -> None:
    streaming = {
        name
        for name, operation in OPERATIONS.items()
        if any(isinstance(kind, Stream) for answer in operation.answers.values() for kind in answer.content.values())
    }
    assert {"GET /runcode", "POST /runcode", "GET /runs/{id}/events"} <= streaming
