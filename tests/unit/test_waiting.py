"""What commands say while they wait, for a gateway of their own and for one that is there."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gateway.cli import one_off, waiting
from gateway.cli.waiting import saying, saying_why
from sessions.errors import SetUpFailed

REPOSITORY = Path(__file__).parents[2]
READY: dict[str, Any] = {"status": "ready"}
STARTING = "The first sandbox is still being started."

GATEWAY = """
import sys, time
from pathlib import Path
from gateway.host.data_dir import DataDir

print("Kernel image: Step 3/9 : RUN pip", flush=True)
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.02)
DataDir.open(Path(sys.argv[1])).tell_address(sys.argv[2])
time.sleep(600)
"""


def not_ready(*reasons: str) -> dict[str, Any]:
    return {"error": " ".join(reasons), "code": "unavailable", "reasons": list(reasons)}


@asynccontextmanager
async def answering(readiness: Callable[[], dict[str, Any]]) -> AsyncIterator[str]:
    """The address of a gateway that says so at `/readyz`, and has no sessions."""

    async def answer(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        head = (await reading.readuntil(b"\r\n\r\n")).decode()
        body = readiness() if "/readyz" in head else {"sessions": []}
        status = "503 Service Unavailable" if "error" in body else "200 OK"
        text = json.dumps(body)
        writing.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode())
        writing.close()
        await writing.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_each_thing_that_is_waited_for_is_one_line_once_the_moment_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    with saying(Console(file=shown)) as say:
        say("Nobody waits for this.", "")
    monkeypatch.setattr(waiting, "_MOMENT_S", 0.0)
    with saying(Console(file=shown)) as say:
        say("Starting.", "")
        assert not shown.getvalue()
        await until(lambda: bool(shown.getvalue()))
        say("Building.", "Step 1")
        say("Building.", "Step 2")
        say("Building.\x1b]0;title\x07", "Step 3")
    assert shown.getvalue() == "cellblock: Starting.\ncellblock: Building.\n"


async def test_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_MOMENT_S", 0.0)
    shown = io.StringIO()
    with saying(Console(file=shown, force_terminal=True, width=60)) as say:
        say("Building.", "Step 2 [of 9] " + "x" * 100)
        await until(lambda: "Step 2 [of 9]" in shown.getvalue())
    assert "cellblock: " not in shown.getvalue()


async def test_why_a_gateway_keeps_somebody_waiting_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "_MOMENT_S", 0.0)
    monkeypatch.setattr(waiting, "_LOOK_S", 0.01)
    state = not_ready("The Docker engine does not answer.")
    said = ""
    async with answering(lambda: state) as url, saying_why(url):
        for expected in ("The Docker engine does not answer.", "Waiting for the gateway, which is busy."):
            async with asyncio.timeout(30):
                while f"cellblock: {expected}\n" not in said:
                    await asyncio.sleep(0.01)
                    said += capsys.readouterr().err
            state = READY
    assert said.count("\n") == 2


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> dict[str, str]:
    """The environment of commands whose own gateway is `GATEWAY`, with the address that CELLBLOCK_TEST_URL names."""

    async def start(_: Path | None, data_dir: Path, environ: Mapping[str, str]) -> Process:
        with one_off._output(data_dir).open("wb") as output:
            program = [sys.executable, "-c", GATEWAY, str(data_dir), environ["TEST_URL"]]
            return await asyncio.create_subprocess_exec(*program, stdout=output, cwd=REPOSITORY)

    monkeypatch.setattr(one_off, "_start", start)
    monkeypatch.setattr(waiting, "_MOMENT_S", 0.0)
    return {"CELLBLOCK_SERVER_DATA_DIR": str(short_dir / "d")}


def let_go(own: Mapping[str, str]) -> None:
    directory = Path(own["CELLBLOCK_SERVER_DATA_DIR"]) / "one-off"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "go").touch()


async def test_the_way_to_a_gateway_of_ones_own_is_told(
    own: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    state, said = not_ready(STARTING), ""

    async def told(text: str) -> None:
        nonlocal said
        async with asyncio.timeout(30):
            while f"cellblock: {text}\n" not in said:
                await asyncio.sleep(0.01)
                said += capsys.readouterr().err

    async def use(url: str) -> str:
        async with one_off.one_off(None, {**own, "TEST_URL": url}) as address:
            return address

    async with answering(lambda: state) as url:
        using = asyncio.ensure_future(use(url))
        await told("Building the kernel image, which takes minutes the first time.")
        let_go(own)
        await told(STARTING)
        state = READY
        assert await using == url, "the address is the one that it tells"


async def test_a_gateway_of_ones_own_that_will_have_no_sandbox_is_not_waited_for(own: dict[str, str]) -> None:
    why = "No sandbox can be started: There is no image kernel:1."
    async with answering(lambda: not_ready(why)) as url:
        let_go(own)
        with pytest.raises(SetUpFailed) as failure:
            async with one_off.one_off(None, {**own, "TEST_URL": url}):
                pytest.fail("it runs nothing")
    assert str(failure.value) == why
