"""`files`, `fetch` and `env`, over a real server: on every way to ask for a run, and for a session."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from http_face import Face, serving
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from ws_talk import begun, hear, tell

from sessions.inputs import RunInputs

GIVEN = {
    "files": {"d/a.csv": {"text": "1,2\n"}, "b": {"base64": "AP8="}},
    "fetch": ["out"],
    "env": {"API_KEY": "s3cret"},
}
INPUTS = RunInputs({"d/a.csv": b"1,2\n", "b": b"\0\xff"}, ("out",), {"API_KEY": "s3cret"})


@pytest.fixture
async def face() -> AsyncIterator[Face]:
    async with serving(env_allowed=("API_KEY",)) as face:
        yield face


@pytest.fixture
async def client(face: Face) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=face.url) as client:
        yield client


async def test_every_way_to_ask_for_a_run_takes_them(face: Face, client: httpx.AsyncClient) -> None:
    texts = {"code": "1", **{name: json.dumps(value) for name, value in GIVEN.items()}}
    with capture_logs() as logs:
        answers = [
            await client.post("/runcode", json={"code": "1", **GIVEN}),
            await client.get("/runcode", params=texts),
            await client.post("/runcode", data=texts),
            await client.post("/runcode", files={name: (None, value) for name, value in texts.items()}),
        ]
        assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
        async with connect(face.url.replace("http", "ws") + "/runcode/ws") as ws:
            await tell(ws, op="run", code="1", **GIVEN)
            (run,) = await begun(face)
            run.end()
            while (await hear(ws))["type"] != "end":
                pass
    assert [request.inputs for request in face.service.requests] == [INPUTS] * 5
    assert "s3cret" not in str(logs)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"files": {"../a": {"text": ""}}}, '"files" has the path "../a"'),
    ({"files": {"a": {"text": 1}}}, '"files": the file "a"'),
    ({"fetch": ["/a"]}, '"fetch" has the path "/a"'),
    ({"env": {"PATH": "s3cret"}}, 'not "PATH"'),
    ({"file": {}}, 'There is no field "file", did you mean "files"?'),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED)
async def test_what_is_refused_is_a_400_that_names_the_field(
    face: Face, client: httpx.AsyncClient, fields: dict[str, Any], said: str
) -> None:
    texts = {"code": "1", **{name: json.dumps(value) for name, value in fields.items()}}
    for answer in (
        await client.post("/runcode", json={"code": "1", **fields}),
        await client.get("/runcode", params=texts),
        await client.post("/runcode", data=texts),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert said in answer.json()["error"]
        assert "s3cret" not in answer.text
    assert face.service.requests == []


async def test_files_count_into_the_size_of_a_request(client: httpx.AsyncClient) -> None:
    answer = await client.post("/runcode", json={"code": "1", "files": {"a": {"text": "x" * 20_000}}})
    assert answer.status_code == 413


async def test_a_session_may_be_made_with_files_and_with_no_environment(face: Face, client: httpx.AsyncClient) -> None:
    made = await client.post("/sessions", json={"files": GIVEN["files"]})
    assert made.status_code == 201
    assert face.service.session_requests[0].files == INPUTS.files
    refused = await client.post("/sessions", json={"env": GIVEN["env"]})
    assert (refused.status_code, "for one run" in refused.json()["error"]) == (400, True)
    assert (await client.post("/sessions", json={"fetch": ["a"]})).status_code == 400
