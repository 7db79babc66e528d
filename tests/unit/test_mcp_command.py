"""Which gateway `cellblock mcp` works with. That one of its own starts and ends is tests/e2e/test_one_off.py's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.cli import mcp, one_off
from sessions.errors import SetUpFailed

Found = Callable[..., Awaitable[str]]
OWN = "http://127.0.0.1:1"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """The address that is found, and ended again."""

    async def find(named: str, *, failure: str = "", content: bytes | None = None) -> str:
        is_up = False

        @asynccontextmanager
        async def starting(_: Path | None) -> AsyncIterator[str]:
            nonlocal is_up
            if failure:
                raise SetUpFailed(failure)
            is_up = True
            yield OWN
            is_up = False

        async def answer(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
            await reading.readuntil(b"\r\n\r\n")
            if content is not None:
                writing.write(content)
            writing.close()
            await writing.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        monkeypatch.setattr(mcp, "DEFAULT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.setattr(one_off, "one_off", starting)
        async with server:
            finding: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            done = asyncio.Event()
            keeping = asyncio.ensure_future(mcp._keep_gateway(named, "token", None, finding, done))
            try:
                address = await finding
                assert is_up is (address == OWN)
                return address
            finally:
                done.set()
                await keeping
                assert not is_up

    return find


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


async def test_the_one_that_is_named_is_asked_nothing(found: Found) -> None:
    assert await found("https://cells.example.org") == "https://cells.example.org"


@pytest.mark.parametrize(
    "content",
    [http("200 OK", '{"sessions": []}'), http("401 Unauthorized", '{"error": "No.", "code": "unauthorized"}')],
)
async def test_one_that_runs_on_this_machine_is_used(found: Found, content: bytes) -> None:
    assert await found("", content=content) == mcp.DEFAULT_URL


@pytest.mark.parametrize(
    "content",
    [None, http("200 OK", "<html>"), http("200 OK", "[]"), http("404 Not Found", '{"error": "No.", "code": "none"}')],
)
async def test_where_something_else_answers_one_is_started(found: Found, content: bytes | None) -> None:
    assert await found("", content=content) == OWN


async def test_why_none_is_started_is_said_to_whoever_asks(found: Found, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SetUpFailed, match="The disk is full"):
        await found("", failure="The disk is full.")
    assert capsys.readouterr().err == "cellblock: The disk is full.\n"
