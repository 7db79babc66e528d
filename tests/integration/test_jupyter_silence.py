"""Jupyter clients that read nothing for a while, and answer no ping: agents', while their models think."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from doubles import until
from jupyter_talk import Screen
from jupyter_wire import Wire, execute, receive_until, text_of, wired
from websockets.asyncio.client import connect

from gateway.http.base.limits import HttpBounds
from kernel_image import protocol
from sessions.jupyter import outbox

PING_S = 0.05


async def answer_questions(wire: Wire) -> None:
    """Be the kernels that are asked for their info."""
    engine, answered = wire.bench.engine, set()
    while True:
        for kernel_id, (_, link) in list(engine.dialled.items()):
            for frame in list(link.binary):
                header = json.loads(protocol.decode_message(frame)[1][0])
                if header["msg_type"] == "kernel_info_request" and header["msg_id"] not in answered:
                    answered.add(header["msg_id"])
                    engine.publish(kernel_id, "kernel_info_reply", header["msg_id"], {"status": "ok"}, channel="shell")
        await asyncio.sleep(0.01)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it asks jsonschema for a name that will go
async def test_ag2_finds_its_kernel_again_when_its_model_has_thought(tmp_path: Path) -> None:
    from autogen.coding import CodeBlock, jupyter  # noqa: PLC0415 - it takes seconds, and each worker collects this

    async with wired(HttpBounds(ping_s=PING_S)) as wire:
        answering = asyncio.ensure_future(answer_questions(wire))
        connection = jupyter.JupyterConnectionInfo("127.0.0.1", use_https=False, port=wire.face.port)
        executor = await asyncio.to_thread(jupyter.JupyterCodeExecutor, connection, output_dir=tmp_path)

        async def run(code: str, output: str) -> Any:
            blocks = [CodeBlock(code=code, language="python")]
            running = asyncio.ensure_future(asyncio.to_thread(executor.execute_code_blocks, blocks))
            (await wire.bench.sent(code)).end(output)
            return await running

        try:
            assert (await run("print(1)", "1")).output == "1"
            await asyncio.sleep(20 * PING_S)
            assert (await run("print(2)", "2")).output == "2"
        finally:
            await asyncio.to_thread(executor._jupyter_kernel_client.stop)
            executor._jupyter_client._session.close()
            answering.cancel()


async def test_a_client_that_takes_nothing_for_a_while_finds_all_of_its_cell_and_costs_little() -> None:
    size_bytes, count = 100_000, 100
    async with wired(HttpBounds(ping_s=PING_S, send_timeout_s=PING_S)) as wire:
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.connect(("127.0.0.1", wire.face.port))
            async with connect(wire.url(), sock=narrow, max_queue=1, max_size=None, close_timeout=0.1) as ws:
                await execute(ws, "x")
                kernel = await wire.bench.sent("x")
                ws.transport.pause_reading()
                for number in range(count):
                    kernel.print(f"{number} ")
                    await wire.publish("display_data", {"data": {"text/plain": "x" * size_bytes}})
                    await asyncio.sleep(0.2 * PING_S)
                    assert wire.client_state().outbox.size_bytes < outbox.LIMIT_BYTES + 2 * size_bytes
                kernel.end()
                ws.transport.resume_reading()
                screen = Screen()
                await receive_until(ws, "execute_reply", screen)
                assert wire.client_state().is_connected
    assert screen.shown["x"] == "".join(f"{number} " for number in range(count))


async def test_a_client_that_answers_nothing_at_all_is_hung_up_on_in_the_end() -> None:
    async with wired(HttpBounds(ping_s=PING_S, silence_s=10 * PING_S)) as wire, wire.raw("gone") as (reader, _):
        async with asyncio.timeout(30):
            heard = await reader.read()
        assert heard.count(b"\x89\x00") > 2
        assert b"nothing came from this client" in heard
        await until(lambda: not wire.client_state("gone").is_connected)


@pytest.mark.parametrize("speaks", [False, True])
async def test_a_client_that_answers_pings_or_speaks_may_stay(*, speaks: bool) -> None:
    ping_s = 60.0 if speaks else PING_S
    async with wired(HttpBounds(ping_s=ping_s, silence_s=2.0)) as wire, connect(wire.url()) as ws:
        for _ in range(6):
            await asyncio.sleep(0.5)
            if speaks:
                await ws.ping()
        await execute(ws, "x")
        (await wire.bench.sent("x")).end("out")
        assert text_of(await receive_until(ws, "execute_reply")) == "out"
