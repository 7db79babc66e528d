"""`/api/kernels/{id}/channels` over real sockets: who may come in, in which framing, who is slow, and the end."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from doubles import until
from jupyter_talk import Screen, message
from jupyter_wire import Wire, execute, receive, receive_until, text_of, wired
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from gateway.http.base import websocket
from gateway.http.base.websocket import SocketHandler
from gateway.http.jupyter.channels import MAX_GARBAGE
from gateway.http.jupyter.framing import Framed
from kernel_image.protocol import SUBPROTOCOL
from sessions.jupyter import outbox
from sessions.jupyter.router import MAX_CLIENTS
from sessions.model import SessionId

MIB = 1 << 20


@pytest_asyncio.fixture
async def wire() -> AsyncIterator[Wire]:
    async with wired() as wire:
        yield wire


@pytest_asyncio.fixture
async def lab(wire: Wire) -> AsyncIterator[ClientConnection]:
    async with connect(wire.url(), subprotocols=[SUBPROTOCOL], max_size=None) as lab:  # type: ignore[list-item]
        yield lab


async def closed(ws: ClientConnection) -> int | None:
    async with asyncio.timeout(5):
        await ws.wait_closed()
    return ws.close_code


# --- coming in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offered", [None, ["other"], ["other", SUBPROTOCOL]])
async def test_a_cell_runs_in_whichever_framing_the_client_knows(wire: Wire, offered: list[str] | None) -> None:
    async with connect(wire.url(), subprotocols=offered) as ws:  # type: ignore[arg-type]
        assert ws.subprotocol == (SUBPROTOCOL if offered and SUBPROTOCOL in offered else None)
        await execute(ws, "print(1)")
        kernel = await wire.bench.sent("print(1)")
        kernel.end("1\n")
        heard = await receive_until(ws, "execute_reply")
        assert text_of(heard) == "1\n"
        assert {one.parent_id for one in heard} == {"print(1)"}


async def test_cells_have_the_trace_of_their_connections_handshake(wire: Wire) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    traceparent = f"00-{trace}-00f067aa0ba902b7-01"
    for code, header in (("one", traceparent), ("two", "00-bad-bad-01"), ("three", None)):
        headers = {} if header is None else {"traceparent": header}
        async with connect(wire.url(), additional_headers=headers) as ws:
            await execute(ws, code)
            (await wire.bench.sent(code)).end()
            await receive_until(ws, "execute_reply")
    runs = {stored.run.code: stored.run for stored in wire.bench.store.runs.values()}
    assert {code: run.traceparent for code, run in runs.items()} == {"one": traceparent, "two": None, "three": None}
    assert runs["one"].log_fields()["trace_id"] == trace


@pytest.mark.parametrize("kernel_id", ["unknown", "%00", "..%2F..", "%ff"])
async def test_a_kernel_that_is_not_there_is_not_found_before_there_is_a_websocket(wire: Wire, kernel_id: str) -> None:
    with pytest.raises(InvalidStatus) as error:
        await connect(wire.url(kernel_id=kernel_id))
    assert error.value.response.status_code == 404


async def test_an_id_may_hold_whatever_a_session_may_be_called(wire: Wire) -> None:
    await wire.bench.create(SessionId("a b/\u4e09"))
    async with connect(wire.url(kernel_id="a%20b%2F%E4%B8%89")):
        pass


async def test_more_clients_than_a_kernel_may_have_are_turned_away(wire: Wire) -> None:
    for number in range(MAX_CLIENTS):
        wire.router.connect(str(number))
    with pytest.raises(InvalidStatus) as error:
        await connect(wire.url())
    assert error.value.response.status_code == 429


async def test_a_client_that_calls_itself_something_endless_is_nobody_in_particular(wire: Wire) -> None:
    async with connect(wire.url("x" * 20_000)) as one, connect(wire.url("x" * 20_000)) as other:
        assert wire.router.connections() == 2
        await one.close()
        await until(lambda: wire.router.connections() == 1)
        assert all(len(state.client) < 300 for state in wire.router._states.values())
        await other.close()


# --- what is no message -----------------------------------------------------------------------------------------------


async def test_garbage_is_counted_and_too_much_of_it_closes_that_connection_only(
    wire: Wire, lab: ClientConnection
) -> None:
    async with connect(wire.url("other")) as other:
        with capture_logs() as logs:
            for number in range(MAX_GARBAGE):
                await lab.send(b"garbage" if number % 2 else "{}")
            await execute(lab, "x")
            (await wire.bench.sent("x")).end("out")
            await receive_until(lab, "execute_reply")
            await lab.send(b"once more")
            assert await closed(lab) == 1002
        assert [entry["event"] for entry in logs].count("jupyter_message_refused") == 1
        assert "jupyter_message_failed" not in [entry["event"] for entry in logs]
        await execute(other, "y")
        (await wire.bench.sent("y")).end("out")
        await receive_until(other, "execute_reply")


async def test_a_mistake_of_ours_does_not_end_the_connection(wire: Wire, lab: ClientConnection) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    clients = wire.bench.service._jupyter_clients
    begin, clients.begin = clients.begin, broken  # type: ignore[assignment]
    async with connect(wire.url("other")) as other:
        with capture_logs() as logs:
            await execute(other, "x")
            await until(lambda: any(entry["event"] == "jupyter_message_failed" for entry in logs))
        clients.begin = begin
        await other.send(json.dumps({"channel": "control", "header": {"msg_id": "i", "msg_type": "interrupt_request"}}))
        await receive_until(other, "interrupt_reply")
    await execute(lab, "y")
    (await wire.bench.sent("y")).end()
    await receive_until(lab, "execute_reply")


# --- leaving, coming back, and the end --------------------------------------------------------------------------------


async def test_a_client_that_vanishes_in_mid_run_comes_back_to_all_of_it(wire: Wire, lab: ClientConnection) -> None:
    screen = Screen()
    await execute(lab, "x")
    kernel = await wire.bench.sent("x")
    kernel.print("one ")
    await receive_until(lab, "stream", screen)
    kernel.print("two ")
    lab.transport.abort()
    await until(lambda: not wire.client_state().is_connected)
    kernel.print("three ")
    async with connect(wire.url()) as back:
        while screen.shown != {"x": "one two three "}:
            screen.show(await receive(back))
        kernel.end("four")
        await receive_until(back, "execute_reply", screen)
    assert screen.shown == {"x": "one two three four"}


async def test_a_client_that_came_back_in_mid_run_is_answered_before_its_end(wire: Wire, lab: ClientConnection) -> None:
    await execute(lab, "x")
    kernel = await wire.bench.sent("x")
    kernel.print("one ")
    await until(lambda: wire.client_state().outbox.sent > 0)
    lab.transport.abort()
    await until(lambda: not wire.client_state().is_connected)
    wire.client_state().outbox.replay(next(iter(wire.bench.store.runs)))
    async with connect(wire.url(), subprotocols=[SUBPROTOCOL]) as back:  # type: ignore[list-item]
        screen = Screen()
        while screen.shown != {"x": "one "}:
            screen.show(await receive(back))
        kernel.publish("comm_open", {"comm_id": "w", "target_name": "t", "data": {}})
        await receive_until(back, "comm_open", screen)
        await back.send(Framed().encode(message("interrupt_request", channel="control")))
        await receive_until(back, "interrupt_reply", screen)
        await until(lambda: not wire.client_state().outbox._unconfirmed)
        kernel.end("two")
        await receive_until(back, "execute_reply", screen)
    assert screen.shown == {"x": "one two"}


async def test_a_client_that_connects_anew_replaces_its_connection_and_keeps_its_seat(
    wire: Wire, lab: ClientConnection
) -> None:
    async with connect(wire.url()) as again:
        assert await closed(lab) == 1000
        await until(lambda: repr(wire.face.streams) == "<Streams 1>")
        assert wire.client_state().is_connected
        await execute(again, "x")
        (await wire.bench.sent("x")).end("out")
        assert text_of(await receive_until(again, "execute_reply")) == "out"


async def test_a_gateway_that_stops_asks_to_connect_again(wire: Wire, lab: ClientConnection) -> None:
    await execute(lab, "x")
    kernel = await wire.bench.sent("x")
    kernel.print("one")
    await receive_until(lab, "stream")
    wire.client_state().outbox.replay(next(iter(wire.bench.store.runs)))
    await receive_until(lab, "stream")  # and in the middle of telling it again
    async with asyncio.timeout(10):
        await wire.face.streams.close_all()
    assert await closed(lab) == 1012
    kernel.end()


async def test_a_kernel_that_is_shut_down_says_so_and_hangs_up(lab: ClientConnection) -> None:
    asked = message("shutdown_request", {"restart": False}, channel="control")
    await lab.send(Framed().encode(asked))
    heard = await receive_until(lab, "status")
    assert [one.msg_type for one in heard] == ["shutdown_reply", "status"]
    assert json.loads(heard[-1].content) == {"execution_state": "dead"}
    assert await closed(lab) == 1000


# --- who does not take what it is told --------------------------------------------------------------------------------


async def test_what_has_arrived_is_found_out_by_pings(wire: Wire, lab: ClientConnection) -> None:
    for number in range(outbox._WINDOW * 3):
        await wire.publish("stream", {"name": "stdout", "text": f"{number} "})
    heard = [await receive(lab) for _ in range(outbox._WINDOW * 3)]
    assert text_of(heard) == "".join(f"{number} " for number in range(outbox._WINDOW * 3))
    await until(lambda: not wire.client_state().outbox._unconfirmed)


async def test_what_was_sent_behind_a_ping_is_asked_after_by_the_next_one(wire: Wire) -> None:
    async with wire.raw("lab") as (reader, writer), asyncio.timeout(30):
        await wire.publish("stream", {"name": "stdout", "text": "first"})
        assert b"first" in await reader.readuntil(b"\x89\x011")
        await wire.publish("stream", {"name": "stdout", "text": "second"})
        assert b"second" in await reader.readuntil(b"\x89\x012")
        writer.write(_pong(b"1"))
        await until(lambda: len(wire.client_state().outbox._unconfirmed) == 1)
        writer.write(_pong(b"2"))
        await until(lambda: not wire.client_state().outbox._unconfirmed)


async def test_a_request_behind_a_pong_waits_for_no_acknowledgement(wire: Wire) -> None:
    async with wire.raw("lab") as (reader, writer), asyncio.timeout(30):
        await wire.publish("stream", {"name": "stdout", "text": "out"})
        await reader.readuntil(b"\x89\x011")
        writer.write(_pong(b"1"))
        await until(lambda: not wire.client_state().outbox._unconfirmed)
        (stream,) = wire.face.streams._open
        connection = stream.ws_connection.stream.socket  # type: ignore[attr-defined]
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1


def _pong(payload: bytes) -> bytes:
    return struct.pack("!BB", 0x8A, 0x80 | len(payload)) + bytes(4) + payload


async def test_a_client_that_reads_and_never_answers_a_ping_is_told_no_more_than_can_be_told_again(wire: Wire) -> None:
    async with wire.raw("mute") as (reader, _):
        for number in range(outbox._WINDOW * 3):
            await wire.publish("stream", {"name": "stdout", "text": f"<{number}>"})
        heard = b""
        while f"<{outbox._WINDOW - 1}>".encode() not in heard:
            async with asyncio.timeout(5):
                heard += await reader.read(MIB)
        await asyncio.sleep(0.05)
        assert len(wire.client_state("mute").outbox._unconfirmed) == outbox._WINDOW
        assert f"<{outbox._WINDOW}>".encode() not in heard


async def test_a_client_that_does_not_read_hurts_neither_the_gateway_nor_another_client(
    wire: Wire, lab: ClientConnection
) -> None:
    async with wire.raw("slow") as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await execute(lab, "x")
        kernel = await wire.bench.sent("x")
        heard = asyncio.ensure_future(receive_until(lab, "execute_reply"))
        largest = 0
        for _ in range(300):
            kernel.print("x" * 100_000)
            await wire.publish("display_data", {"data": {"text/plain": "y" * 50_000}})
            largest = max(largest, wire.client_state("slow").outbox.size_bytes)
        kernel.end()
        assert len(text_of(await heard)) > 0
        assert largest < 5 * MIB
        assert max(_unsent_bytes(stream) for stream in wire.face.streams._open) < MIB
    await until(lambda: not wire.client_state("slow").is_connected)


def _unsent_bytes(stream: object) -> int:
    connection = stream.ws_connection  # type: ignore[attr-defined]
    return len(connection.stream._write_buffer) if connection is not None and connection.stream is not None else 0


async def test_others_get_a_turn_while_a_client_takes_much_at_once(
    wire: Wire, lab: ClientConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, written_in, count = 0, Counter[int](), 100

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def write(handler: SocketHandler, *args: Any, **kwargs: Any) -> Any:
        written_in[turn] += 1
        return write_message(handler, *args, **kwargs)

    write_message = SocketHandler.write_message
    monkeypatch.setattr(SocketHandler, "write_message", write)
    kernel_id = wire.bench.session().kernel_id
    assert kernel_id is not None
    turns = asyncio.ensure_future(take_turns())
    for number in range(count):
        wire.bench.engine.publish(kernel_id, "stream", "nobody's", {"name": "stdout", "text": f"{number} "})
    heard = [await receive(lab) for _ in range(count)]
    turns.cancel()
    assert text_of(heard) == "".join(f"{number} " for number in range(count))
    assert written_in.total() == count
    assert max(written_in.values()) <= websocket._AT_ONCE


async def test_a_pong_that_nobody_asked_for_is_no_news(wire: Wire) -> None:
    async with wire.raw("odd") as (reader, writer):
        for payload in (b"", b"x", b"-1", b"\xb2", b"9" * 125):
            writer.write(_pong(payload))
        await writer.drain()
        await asyncio.sleep(0.02)
        await wire.publish("stream", {"name": "stdout", "text": "still there"})
        async with asyncio.timeout(5):
            await reader.readuntil(b"still there")
