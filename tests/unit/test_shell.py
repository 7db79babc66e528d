"""The shell where something goes wrong in the middle of it."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.websocket import WebSocketClosedError

from gateway.cli.connection import Address
from gateway.cli.shell import live
from gateway.cli.shell.command import Shell
from gateway.cli.shell.live import LiveRun
from gateway.client import Event, TooManyRequests

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
    shell = Shell(None, ADDRESS, session)  # type: ignore[arg-type]
    monkeypatch.setattr(shell, "_show", refused)
    monkeypatch.setattr(sys, "stdin", Terminal())
    await shell._run_cell("1")
    assert errors.getvalue() == "Not now.\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(TooManyRequests):
        await shell._run_cell("1")
