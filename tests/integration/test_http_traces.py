"""`traceparent` over HTTP: kept with the run, shown with it, and in the lines of the log about the request."""

from __future__ import annotations

import httpx
import pytest
from events_talk import run_of
from http_face import Face, serving
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from ws_talk import begun, tell

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("header", "kept"), [(TRACEPARENT, TRACEPARENT), ("00-bad-bad-01", None), (None, None)])
async def test_a_run_keeps_it(
    face: Face, client: httpx.AsyncClient, method: str, header: str | None, kept: str | None
) -> None:
    headers = {} if header is None else {"traceparent": header}
    given = {"params": {"code": "1"}} if method == "GET" else {"json": {"code": "1"}}
    assert (await client.request(method, "/runcode", headers=headers, **given)).status_code == 200
    assert [request.traceparent for request in face.service.requests] == [kept]


async def test_two_of_them_are_none(face: Face, client: httpx.AsyncClient) -> None:
    headers = [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)]
    await client.post("/runcode", json={"code": "1"}, headers=headers)
    assert face.service.requests[0].traceparent is None


async def test_a_run_shows_it_if_there_is_one(face: Face, client: httpx.AsyncClient) -> None:
    for headers in ({"traceparent": TRACEPARENT}, {}):
        async with client.stream("POST", "/runcode", json={"code": "1", "stream": True}, headers=headers):
            await run_of(face)
            face.service.runs[-1].end()
    with_one, without = [
        (await client.get(f"/runs/{run.run_id}", headers={"traceparent": "other"})).json() for run in face.service.runs
    ]
    assert with_one["traceparent"] == TRACEPARENT
    assert "traceparent" not in without


async def test_runs_of_a_socket_have_that_of_its_handshake(face: Face) -> None:
    async with connect(face.ws_url, additional_headers={"traceparent": TRACEPARENT}) as ws:
        await tell(ws, op="run", code="1")
        await begun(face)
    assert face.service.requests[0].traceparent == TRACEPARENT


async def test_the_lines_of_the_log_about_a_request_have_the_trace(face: Face, client: httpx.AsyncClient) -> None:
    face.service.next_error = RuntimeError("a bug")
    with capture_logs() as logs:
        await client.post("/runcode", json={"code": "1"}, headers={"traceparent": TRACEPARENT})
        await client.get("/runs")
    assert [(line["event"], line["route"], line.get("trace_id")) for line in logs] == [
        ("unexpected error", "/runcode", TRACE),
        ("request", "/runcode", TRACE),
        ("request", "/runs", None),
    ]


async def test_pages_of_allowed_origins_may_send_it() -> None:
    origin = "https://chat.example.org"
    async with serving(allowed_origins=(origin,)) as face, httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.options("/runcode", headers={"Origin": origin})
    assert "Traceparent" in answer.headers["Access-Control-Allow-Headers"].split(", ")
