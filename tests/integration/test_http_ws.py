"""What is said over `/runcode/ws`, with a real WebSocket client: runs, input, and messages that are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from http_face import Face, serving
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from ws_talk import TOKENS, begun, hear, tell

from gateway.http.api.runcode_ws import RunCodeSocket
from gateway.http.base.limits import HttpBounds
from sessions.errors import StoreUnavailable, TooManyRequests
from sessions.model import EventType, RunRequest

UNKNOWN = "0f000000-0000-4000-8000-000000000000"


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identifier", ["mine", "x" * 128, "", 0, 7, 1.5, -3, "\u4e09 \"'"])
async def test_a_runs_events_carry_its_id_unchanged(face: Face, ws: ClientConnection, identifier: str | float) -> None:
    await tell(ws, op="run", id=identifier, code="print(1)", variables={"x": 1}, session_id="s", timeout=5)
    [run] = await begun(face)
    run.add(EventType.STDOUT, text="1\n")
    run.end()
    events = [await hear(ws) for _ in range(3)]
    assert [event["type"] for event in events] == ["started", "stdout", "end"]
    assert [event["seq"] for event in events] == [1, 2, 3]
    assert [event["id"] for event in events] == [identifier] * 3
    assert events[2]["output"] == "1\n"
    asked = face.service.requests[0]
    assert (asked.code, asked.variables, asked.session_id, asked.timeout_s) == ("print(1)", {"x": 1}, "s", 5.0)
    assert asked.allow_stdin is True


async def test_without_an_id_there_is_none(face: Face, ws: ClientConnection) -> None:
    await tell(ws, op="run", code="1", stream=True)
    await begun(face)
    assert (await hear(ws)).keys() == {"run_id", "seq", "type", "execution_count"}


async def test_an_idempotency_key_gives_the_same_run(ws: ClientConnection) -> None:
    for _ in range(2):
        await tell(ws, op="run", code="1", idempotency_key="k")
    assert (await hear(ws))["run_id"] == (await hear(ws))["run_id"]
    await tell(ws, op="run", id=1, code="2", idempotency_key="k")
    assert (await hear(ws))["code"] == "conflict"
    await tell(ws, op="run", id=1, code="2", idempotency_key="")
    assert (await hear(ws))["code"] == "invalid_request"


async def test_several_runs_share_one_connection(face: Face, ws: ClientConnection) -> None:
    for number in range(5):
        await tell(ws, op="run", id=number, code=str(number))
    runs = await begun(face, 5)
    for text in "abc":
        for run in runs:
            run.add(EventType.STDOUT, text=text)
    for run in runs:
        run.end()
    events = [await hear(ws) for _ in range(25)]
    for number, run in enumerate(runs):
        own = [event for event in events if event["id"] == number]
        assert {event["run_id"] for event in own} == {run.run_id}
        assert [event["seq"] for event in own] == [1, 2, 3, 4, 5]


async def test_runs_of_one_session_begin_in_the_order_they_were_sent(face: Face, ws: ClientConnection) -> None:
    order: list[str] = []
    begin = face.service.begin

    async def sluggish(request: RunRequest) -> Any:
        await asyncio.sleep(0.1 if request.code == "0" else 0)
        order.append(request.code)
        return await begin(request)

    face.service.begin = sluggish  # type: ignore[method-assign]
    for code in "0123":
        await tell(ws, op="run", code=code, session_id="s")
    await tell(ws, op="run", code="other", session_id="t")
    await begun(face, 5)
    assert order == ["other", "0", "1", "2", "3"]


async def test_a_run_that_is_given_up_lets_no_later_one_overtake_the_first(face: Face, ws: ClientConnection) -> None:
    face.service.hold = asyncio.Event()
    for code in "012":
        await tell(ws, op="run", code=code, session_id="s")
    (socket,) = face.streams._open
    assert isinstance(socket, RunCodeSocket)
    async with asyncio.timeout(30):
        while len(socket._runs) < 3:
            await asyncio.sleep(0.005)
    _, second, _ = sorted(socket._runs, key=lambda task: int(task.get_name().removeprefix("Task-")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    await asyncio.sleep(0.05)
    assert [request.code for request in face.service.requests] == ["0"]
    face.service.hold.set()
    assert [run.request.code for run in await begun(face, 2)] == ["0", "2"]


@pytest.mark.parametrize("face", [HttpBounds(runs_per_socket=2)], indirect=True)
async def test_too_many_runs_in_flight_are_refused_and_the_others_go_on(face: Face, ws: ClientConnection) -> None:
    for number in range(3):
        await tell(ws, op="run", id=number, code="1")
    heard = [await hear(ws) for _ in range(3)]
    [refused] = [message for message in heard if message["type"] == "error"]
    assert (refused["id"], refused["code"], refused["retry_after"]) == (2, "too_many_requests", 1)
    for run in await begun(face, 2):
        run.end()
    assert [(await hear(ws))["type"] for _ in range(2)] == ["end", "end"]
    await tell(ws, op="run", id="again", code="1")
    assert (await hear(ws))["id"] == "again"


async def test_a_waiting_run_does_not_hold_up_other_messages(face: Face, ws: ClientConnection) -> None:
    face.service.hold = asyncio.Event()
    await tell(ws, op="run", code="1")
    await tell(ws, op="interrupt", id="i", run_id=UNKNOWN)
    assert (await hear(ws))["id"] == "i"
    face.service.hold.set()
    assert (await hear(ws))["type"] == "started"


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [(TooManyRequests(), "too_many_requests", 1), (StoreUnavailable(), "unavailable", 2)],
)
async def test_what_the_service_refuses_is_an_error_message(
    face: Face, ws: ClientConnection, error: Exception, code: str, retry_after: int
) -> None:
    face.service.next_error = error
    await tell(ws, op="run", id="a", code="1")
    assert await hear(ws) == {"type": "error", "error": str(error), "code": code, "id": "a", "retry_after": retry_after}


async def test_an_unforeseen_error_tells_nothing_and_is_logged(face: Face, ws: ClientConnection) -> None:
    face.service.next_error = RuntimeError("path /etc/shadow")
    with capture_logs() as logs:
        await tell(ws, op="run", id="a", code="secret()")
        heard = await hear(ws)
    assert (heard["code"], "shadow" in heard["error"]) == ("internal", False)
    assert logs[0]["exc_info"] is face.service.next_error
    assert "secret" not in repr(logs)


async def test_following_that_breaks_is_told(face: Face, ws: ClientConnection) -> None:
    face.service.follow_error = StoreUnavailable()
    await tell(ws, op="run", id="a", code="1")
    assert [(await hear(ws))["type"] for _ in range(2)] == ["started", "error"]


# --- input and interrupt ----------------------------------------------------------------------------------------------


async def test_input_is_asked_for_and_answered(face: Face, ws: ClientConnection) -> None:
    await tell(ws, op="run", id="a", code="input()")
    [run] = await begun(face)
    await tell(ws, op="input", id="early", run_id=run.run_id, value="x")
    early = next(message for message in [await hear(ws), await hear(ws)] if message["type"] == "error")
    assert (early["code"], early["id"]) == ("conflict", "early")
    run.add(EventType.INPUT_REQUEST, prompt="? ", password=True)
    asked = await hear(ws)
    assert (asked["prompt"], asked["password"], asked["id"]) == ("? ", True, "a")
    await tell(ws, op="input", run_id=run.run_id, value="zwölf\n")
    await tell(ws, op="interrupt", run_id=run.run_id)
    async with asyncio.timeout(5):
        while not run.interrupts:
            await asyncio.sleep(0.005)
    assert run.inputs == ["zwölf\n"]


async def test_another_tenants_run_can_neither_be_answered_nor_interrupted() -> None:
    async with (
        serving(tokens=TOKENS) as face,
        connect(face.ws_url, additional_headers={"Authorization": "Bearer alice"}) as alice,
        connect(face.ws_url, additional_headers={"Authorization": "token bob"}) as bob,
    ):
        await tell(alice, op="run", code="input()")
        [run] = await begun(face)
        assert run.request.tenant == "alice"
        run.add(EventType.INPUT_REQUEST, prompt="", password=False)
        await tell(bob, op="input", id=1, run_id=run.run_id, value="x")
        await tell(bob, op="interrupt", id=2, run_id=run.run_id)
        assert [(await hear(bob))["code"] for _ in range(2)] == ["not_found", "not_found"]
        assert (run.inputs, run.interrupts) == ([], 0)


# --- bad messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code", "identifier"),
    [
        ("", "invalid_json", None),
        ("{", "invalid_json", None),
        ("[]", "invalid_json", None),
        ("null", "invalid_json", None),
        ('{"op": "run", "code": NaN}', "invalid_json", None),
        ("[" * 5000, "invalid_json", None),
        (b'{"op": "run", "code": "1"}', "invalid_request", None),
        (b"\x00\xff", "invalid_request", None),
        ("{}", "invalid_request", None),
        ('{"id": 1' + "0" * 400 + "}", "invalid_request", None),
        ('{"id": 1' + "0" * 4000 + "}", "invalid_request", None),
        ('{"id": "a\\ud800", "op": "run", "code": "1"}', "invalid_request", None),
        ('{"id": "a"}', "invalid_request", "a"),
        ('{"id": "a", "op": 7}', "invalid_request", "a"),
        ('{"id": "a", "op": ["run"]}', "invalid_request", "a"),
        ('{"id": "a", "op": "rnu", "code": "1"}', "invalid_request", "a"),
        ('{"id": "a", "op": "run"}', "invalid_request", "a"),
        ('{"id": "a", "op": "run", "coed": "1"}', "invalid_request", "a"),
        ('{"id": "a", "op": "run", "code": 1}', "invalid_request", "a"),
        ('{"id": "a", "op": "run", "code": "1", "session_id": ""}', "invalid_request", "a"),
        ('{"id": "a", "op": "run", "code": "1", "timeout": -1}', "invalid_request", "a"),
        ('{"id": "a", "op": "run", "code": "1", "language": "cobol"}', "unsupported_language", "a"),
        ('{"id": true, "op": "run", "code": "1"}', "invalid_request", None),
        ('{"id": {}, "op": "run", "code": "1"}', "invalid_request", None),
        ('{"id": 1e999, "op": "run", "code": "1"}', "invalid_request", None),
        ('{"id": "' + "x" * 129 + '", "op": "run", "code": "1"}', "invalid_request", None),
        ('{"id": 1' + "0" * 200 + ', "op": "run", "code": "1"}', "invalid_request", None),
        ('{"id": 1, "op": "input", "run_id": "x"}', "invalid_request", 1),
        ('{"id": 1, "op": "input", "run_id": "x", "value": 1}', "invalid_request", 1),
        ('{"id": 1, "op": "input", "run_id": "x", "value": ""}', "not_found", 1),
        ('{"id": 1, "op": "interrupt"}', "invalid_request", 1),
        ('{"id": 1, "op": "interrupt", "run_id": 1}', "invalid_request", 1),
        ('{"id": 1, "op": "interrupt", "run_id": "../x\\u0000"}', "not_found", 1),
        ('{"id": 1, "op": "interrupt", "run_id": "' + UNKNOWN + '"}', "not_found", 1),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
async def test_a_bad_message_is_told_and_the_connection_goes_on(
    face: Face, ws: ClientConnection, message: str | bytes, code: str, identifier: str | int | None
) -> None:
    await ws.send(message)
    heard = await hear(ws)
    assert heard.keys() == {"type", "error", "code", "id"}
    assert (heard["type"], heard["code"], heard["id"]) == ("error", code, identifier)
    assert heard["error"][-1] in ".?"
    assert face.service.requests == []
    await tell(ws, op="run", id="next", code="1")
    assert (await hear(ws))["id"] == "next"
