"""Connections to `/runcode/ws`: who may come in, what is too large or garbage, who is slow or gone, and the end.

Raw sockets are the clients that must misbehave.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from contextlib import suppress
from typing import Any

import httpx
import pytest
from http_face import Face, serving
from structlog.testing import capture_logs
from websockets import Origin, Subprotocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from ws_talk import TOKENS, UPGRADE, begun, frame_of, hear, tell, until

from gateway.http.base.limits import HttpBounds
from gateway.http.base.outgoing import Place
from gateway.http.base.subprotocols import RUNS, TOKEN_PREFIX
from gateway.http.base.websocket import SocketHandler
from sessions.model import ANONYMOUS, EventType, RunRequest, RunStatus
from sessions.settings import Limits

LIMIT = 10_000


# --- what is too large, and what is no WebSocket ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [LIMIT + 1, 500_000, 5_000_000])
@pytest.mark.parametrize("is_fragmented", [False, True])
async def test_a_message_that_is_too_large_closes_with_1009(
    face: Face,
    size: int,
    is_fragmented: bool,  # noqa: FBT001 - a table
) -> None:
    async with connect(face.ws_url) as ws:
        with suppress(ConnectionClosed):
            await ws.send(["x" * (size // 2), "x" * (size - size // 2)] if is_fragmented else "x" * size)
        async with asyncio.timeout(5):
            await ws.wait_closed()
        assert ws.close_code == 1009
    await until(face, "<Streams 0>")


@pytest.mark.parametrize("request_bytes", [LIMIT, 1 << 20])
async def test_a_message_of_the_limit_is_read_and_none_above_it(request_bytes: int) -> None:
    limit = request_bytes
    async with serving(limits=Limits(request_bytes=request_bytes)) as face, connect(face.ws_url) as ws:
        message = json.dumps({"op": "run", "code": "#"})
        code = "#" * (limit - len(message) + 1)
        await tell(ws, op="run", code=code)
        [run] = await begun(face)
        assert run.request.code == code
        with suppress(ConnectionClosed):
            await tell(ws, op="run", code=code + "#")
        async with asyncio.timeout(5):
            await ws.wait_closed()
        assert ws.close_code == 1009
        assert face.service.runs == [run]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x81\xfe\x00",  # half a header
        b"\xff" * 64,  # reserved bits
        b"\x83\x80\x00\x00\x00\x00",  # an opcode that does not exist
        b"\x89\xff" + b"\xff" * 8,  # a ping of 2**64 bytes
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # text of 2**64 bytes
        b"\x80\x80\x00\x00\x00\x00",  # a continuation of nothing
        b"\x81\x81\x00\x00\x00\x00\xff",  # text that is no UTF-8
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_garbage_closes_that_connection_and_no_other(face: Face, ws: ClientConnection, garbage: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(UPGRADE)
    async with asyncio.timeout(5):
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        assert repr(face.streams) == "<Streams 2>"
        writer.write(garbage)
        writer.write_eof()
        await reader.read()
    writer.close()
    await until(face, "<Streams 1>")
    await tell(ws, op="run", code="1")
    assert (await hear(ws))["type"] == "started"


# --- readers that are slow or gone ------------------------------------------------------------------------------------


async def test_a_client_that_vanishes_ends_its_followings_and_no_run(face: Face) -> None:
    async with connect(face.ws_url) as ws:
        for code in "123":
            await tell(ws, op="run", code=code)
        runs = await begun(face, 3)
        for _ in runs:
            await hear(ws)
        assert [run.followers for run in runs] == [1, 1, 1]
        ws.transport.abort()
    await until(face, "<Streams 0>")
    async with asyncio.timeout(5):
        while any(run.followers for run in runs):
            await asyncio.sleep(0.005)
    assert {run.record.status for run in runs} == {RunStatus.RUNNING}


async def test_a_run_that_was_asked_for_is_begun_though_the_client_has_gone(face: Face) -> None:
    face.service.hold = asyncio.Event()
    before = asyncio.all_tasks()
    async with connect(face.ws_url) as ws:
        await tell(ws, op="run", code="1")
        await face.service.was_asked.wait()
    await until(face, "<Streams 0>")
    face.service.hold.set()
    [run] = await begun(face)
    assert (run.followers, run.record.status) == (0, RunStatus.RUNNING)
    async with asyncio.timeout(5):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left, timeout=0.1)


@pytest.mark.parametrize("face", [HttpBounds(ping_s=0.1)], indirect=True)
async def test_a_client_that_does_not_answer_pings_is_noticed(face: Face) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(UPGRADE)
    async with asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2) == b"\x89\x00"
        await until(face, "<Streams 1>")
        assert (await reader.read())[:1] == b"\x88"
    await until(face, "<Streams 0>")
    writer.close()


@pytest.mark.parametrize("face", [HttpBounds(ping_s=0.05)], indirect=True)
async def test_a_client_that_answers_pings_may_be_silent(face: Face) -> None:
    async with connect(face.ws_url) as ws:
        await asyncio.sleep(0.5)
        await tell(ws, op="run", code="1")
        assert (await hear(ws))["type"] == "started"


@pytest.mark.parametrize("face", [HttpBounds(send_timeout_s=3.0)], indirect=True)
async def test_a_client_that_stops_reading_is_sent_no_more_and_is_hung_up_on(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = face.service.add_run(RunRequest(ANONYMOUS, "1", "python", {}, 30.0, idempotency_key="k"))
    for _ in range(2000):
        run.add(EventType.STDOUT, text="x" * 32_000)
    sent = 0
    send_message = SocketHandler.send_message

    async def counted(self: SocketHandler, message: dict[str, Any], place: Place) -> None:
        nonlocal sent
        await send_message(self, message, place)
        sent += 1

    monkeypatch.setattr(SocketHandler, "send_message", counted)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", face.port))
        connection.sendall(UPGRADE)
        for number in range(20):
            message = {"op": "run", "id": number, "code": "1", "idempotency_key": "k"}
            connection.sendall(frame_of(json.dumps(message).ljust(200)))
        async with asyncio.timeout(10):
            while run.followers < 20:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        held = sent
        assert 0 < held < 1000  # what the socket buffers took, of 20 times 64 MB
        async with asyncio.timeout(10):
            while run.followers:
                await asyncio.sleep(0.01)
    await until(face, "<Streams 0>")
    assert sent == held
    assert run.record.status is RunStatus.RUNNING


# --- coming in, and the end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "unauthorized"),
        ({"Authorization": "Bearer carol"}, 401, "unauthorized"),
        ({"Authorization": "Bearer alice", "Origin": "https://evil.example"}, 403, "forbidden"),
        ({"Authorization": "Bearer alice", "Origin": "null"}, 403, "forbidden"),
        ({"Authorization": "Bearer alice", "Sec-Fetch-Site": "cross-site"}, 403, "forbidden"),
    ],
)
async def test_who_may_not_come_in_is_told_before_the_upgrade(headers: dict[str, str], status: int, code: str) -> None:
    async with serving(tokens=TOKENS) as face:
        with pytest.raises(InvalidStatus) as refused:
            await connect(face.ws_url, additional_headers=headers)
        response = refused.value.response
        assert response.status_code == status
        body = json.loads(response.body or b"")
        assert (body["code"], body.keys()) == (code, {"error", "code", "request_id"})
        assert ("WWW-Authenticate" in response.headers) is (status == 401)
        assert repr(face.in_flight) == "<InFlight 0>"


async def test_a_token_in_the_url_is_none() -> None:
    async with serving(tokens=TOKENS) as face:
        with pytest.raises(InvalidStatus):
            await connect(face.ws_url + "?token=alice")


async def test_a_host_that_is_not_ours_is_refused(face: Face) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(UPGRADE.replace(b"localhost", b"evil.example"))
    async with asyncio.timeout(5):
        assert b" 403 " in await reader.readline()
    writer.close()


def as_browser(token: str) -> list[Subprotocol]:
    """What a browser offers: what is spoken, and the token."""
    text = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    return [Subprotocol(RUNS), Subprotocol(f"{TOKEN_PREFIX}{text}")]


async def test_a_browsers_token_comes_as_a_subprotocol_and_never_goes_back() -> None:
    async with serving(tokens=TOKENS) as face:
        async with connect(face.ws_url, subprotocols=as_browser("alice"), origin=Origin(face.url)) as ws:
            assert ws.subprotocol == RUNS
            await tell(ws, op="run", code="1")
            assert (await hear(ws))["type"] == "started"
        [run] = await begun(face)
        assert run.request.tenant == "alice"
        async with connect(face.ws_url, additional_headers={"Authorization": "Bearer bob"}) as ws:
            assert ws.subprotocol is None


@pytest.mark.parametrize(
    ("subprotocols", "header", "status"),
    [
        (as_browser("mallory"), None, 401),
        ([Subprotocol(RUNS)], None, 401),
        ([Subprotocol(RUNS), Subprotocol(f"{TOKEN_PREFIX}a")], None, 401),
        (as_browser("alice"), "Bearer alice", 400),
    ],
)
async def test_a_wrong_token_among_the_subprotocols_is_refused(
    subprotocols: list[Subprotocol], header: str | None, status: int
) -> None:
    async with serving(tokens=TOKENS) as face:
        headers = {} if header is None else {"Authorization": header}
        with pytest.raises(InvalidStatus) as refused:
            await connect(face.ws_url, subprotocols=subprotocols, additional_headers=headers)
        assert refused.value.response.status_code == status
        assert face.service.runs == []


@pytest.mark.parametrize(("token", "status"), [("alice", 404), ("mallory", 401)])
async def test_a_browsers_token_is_known_to_kernels_channels_too(token: str, status: int) -> None:
    """There is no such kernel, which only who is let in is told."""
    async with serving(tokens=TOKENS) as face:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{face.port}/api/kernels/x/channels", subprotocols=as_browser(token))
        assert refused.value.response.status_code == status


@pytest.mark.parametrize("origin", ["http://127.0.0.1:{port}", "https://chat.example.org"])
async def test_our_own_and_allowed_pages_may_connect(origin: str) -> None:
    async with serving(allowed_origins=("https://chat.example.org",)) as face:
        headers = {"Origin": origin.format(port=face.port)}
        async with connect(face.ws_url, additional_headers=headers) as ws:
            await tell(ws, op="run", code="1")
            assert (await hear(ws))["type"] == "started"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upgrade": "websocket"},
        {"Connection": "Upgrade", "Upgrade": "h2c"},
        {"Connection": "Upgrade", "Upgrade": "websocket"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": "x"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
    ],
)
async def test_what_is_no_handshake_is_400(face: Face, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.get("/runcode/ws", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert (await client.post("/runcode/ws")).status_code == 405
    assert repr(face.streams) == "<Streams 0>"


async def test_sockets_do_not_hold_up_the_shutdown_and_are_told_of_it(face: Face, ws: ClientConnection) -> None:
    await tell(ws, op="run", code="1")
    [run] = await begun(face)
    await hear(ws)
    assert repr(face.in_flight) == "<InFlight 0>"
    async with asyncio.timeout(5):
        await face.streams.close_all()
    with pytest.raises(ConnectionClosed):
        await hear(ws)
    assert ws.close_code == 1012
    assert run.record.status is RunStatus.RUNNING
    with pytest.raises(InvalidStatus) as refused:
        await connect(face.ws_url)
    assert refused.value.response.status_code == 503


async def test_a_client_that_ignores_the_shutdown_is_hung_up_on(face: Face) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(UPGRADE)
    async with asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
        await face.streams.close_all()
        assert (await reader.read())[:1] == b"\x88"
    await until(face, "<Streams 0 closed>")
    writer.close()


async def test_the_log_has_one_line_per_connection_and_no_code() -> None:
    async with serving(tokens=TOKENS) as face:
        with capture_logs() as logs:
            async with connect(face.ws_url, additional_headers={"Authorization": "Bearer alice"}) as ws:
                await tell(ws, op="run", code="very_secret()")
                await hear(ws)
        assert [(line["route"], line["status"], line["tenant"]) for line in logs] == [("/runcode/ws", 101, "alice")]
        assert "secret" not in repr(logs)
