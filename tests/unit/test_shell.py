"""The shell where something goes wrong in the middle of it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.websocket import WebSocketClosedError

from gateway.cli.connection import Address
from gateway.cli.shell import live
from gateway.cli.shell.command import Shell
from gateway.cli.shell.input_lines import InputLines
from gateway.cli.shell.live import LiveRun
from gateway.client import Event, TooManyRequests

REPOSITORY = Path(__file__).parents[2]
ADDRESS = Address("http://gateway:1", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Socket:
    def __init__(self, *, broken: bool) -> None:
        self.broken = broken
        self.sent: list[Any] = []

    async def write_message(self, message: str) -> None:
        if self.broken:
            raise WebSocketClosedError
        self.sent.append(message)

    def close(self) -> None:
        pass


async def test_an_answer_is_sent_although_the_connection_broke_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Socket(broken=False)

    async def connect(*_: Any) -> Any:
        return fresh

    async def ask(*_: Any) -> str:
        return "Ada"

    monkeypatch.setattr(live, "connect", connect)
    run = LiveRun(None, ADDRESS, "s", "python", ask)  # type: ignore[arg-type]
    question = Event("r", 2, "input_request", {"prompt": "who? ", "password": False})
    await run._answer(question, Socket(broken=True))  # type: ignore[arg-type]
    assert fresh.sent == ['{"op": "input", "run_id": "r", "value": "Ada"}']


async def test_a_cell_that_is_refused_ends_the_shell_only_without_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(_: str) -> None:
        raise TooManyRequests("Not now.")

    errors = Terminal()
    monkeypatch.setattr(sys, "stderr", errors)
    session: Any = SimpleNamespace(session_id="s", info=SimpleNamespace(kernel_id="k", runs=0, language="python"))

    def shell() -> Shell:
        made = Shell(None, ADDRESS, session)  # type: ignore[arg-type]
        monkeypatch.setattr(made, "_show", refused)
        return made

    monkeypatch.setattr(sys, "stdin", Terminal())
    await shell()._run_cell("1")
    assert errors.getvalue() == "Not now.\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(TooManyRequests):
        await shell()._run_cell("1")


async def test_a_line_that_nobody_waits_for_any_more_is_the_next_one() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream, os.fdopen(writing, "w") as typing:
        lines = InputLines(stream)
        given_up = asyncio.ensure_future(lines.next())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        typing.write("first\nsecond\n")
        typing.flush()
        assert [await lines.next(), await lines.next()] == ["first\n", "second\n"]
        typing.close()
        assert await lines.next() == ""


WAITING_FOR_A_LINE = """
import asyncio, sys
from gateway.cli.shell.input_lines import InputLines

async def main():
    print("ready", flush=True)
    await InputLines(sys.stdin).next()

asyncio.run(main())
"""


def test_ctrl_c_ends_the_wait_for_a_line_that_does_not_come() -> None:
    command = [sys.executable, "-c", WAITING_FOR_A_LINE]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert process.stderr is not None
        errors = process.stderr.read()
    assert errors.endswith("KeyboardInterrupt\n")
    assert "Fatal" not in errors
