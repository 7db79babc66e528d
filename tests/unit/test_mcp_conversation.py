"""The sessions of an MCP conversation, at a gateway that only says whether a session is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.client import AsyncClient, ClientError, NotFound
from gateway.mcp.conversation import Conversation


class SessionStub:
    def __init__(self, session_id: str, language: str | None) -> None:
        self.session_id = session_id
        self.language = language
        self.is_there = True
        self.restarts = 0
        self.is_streaming = False

    async def stream(self, _: str, **__: Any) -> AsyncIterator[Any]:
        """A run that never begins."""
        self.is_streaming = True
        await asyncio.Event().wait()
        yield

    async def refresh(self) -> None:
        if not self.is_there:
            raise NotFound("There is no such session.")

    async def restart(self) -> None:
        await self.refresh()
        self.restarts += 1

    async def end(self) -> None:
        if not self.is_there:
            raise ClientError("It cannot be ended.")
        self.is_there = False


class GatewayStub:
    def __init__(self) -> None:
        self.made: list[SessionStub] = []
        self.cancelled: list[str] = []

    async def runs(self, *, session_id: str, limit: int) -> list[SimpleNamespace]:
        assert (session_id, limit) == (self.made[0].session_id, 1)
        return [SimpleNamespace(run_id="latest", finished_at=None)]

    async def cancel(self, run_id: str) -> None:
        self.cancelled.append(run_id)

    async def session(self, session_id: str | None = None, *, language: str | None = None) -> SessionStub:
        await asyncio.sleep(0)
        self.made.append(SessionStub(session_id or f"s{len(self.made)}", language))
        return self.made[-1]


async def nothing(_: int, __: str) -> None:
    """Whom the output does not matter to."""


@pytest.fixture
def gateway() -> GatewayStub:
    return GatewayStub()


def conversation(gateway: GatewayStub, *, is_lasting: bool = True) -> Conversation:
    async def connected() -> AsyncClient:
        return cast("AsyncClient", gateway)

    return Conversation(connected, is_lasting=is_lasting)


async def test_there_is_one_session_for_each_language(gateway: GatewayStub) -> None:
    asked = conversation(gateway)
    first, second = await asyncio.gather(asked.session(), asked.session())
    other: Any = await asked.session(None, "r")
    assert first is second
    assert (other.language, len(gateway.made)) == ("r", 2)
    assert await asked.files_session(None) is other
    assert await asked.reset(None) == 2


async def test_one_that_has_expired_is_replaced(gateway: GatewayStub) -> None:
    asked = conversation(gateway)
    first: Any = await asked.session()
    first.is_there = False
    assert await asked.reset(None) == 0
    assert await asked.files_session(None) is gateway.made[1]


async def test_the_end_ends_what_can_be_ended(gateway: GatewayStub) -> None:
    asked = conversation(gateway)
    first: Any = await asked.session()
    await asked.session(None, "r")
    first.is_there = False
    await asked.end()
    assert not gateway.made[1].is_there


async def test_without_a_conversation_nothing_is_kept(gateway: GatewayStub) -> None:
    asked = conversation(gateway, is_lasting=False)
    assert await asked.session() is not await asked.session()
    named = await asked.files_session("mine")
    assert named.session_id == "mine"
    await asked.end()
    assert all(session.is_there for session in gateway.made)


async def test_a_run_that_is_cancelled_before_it_has_begun_is_cancelled_there(gateway: GatewayStub) -> None:
    asked = conversation(gateway)
    running = asyncio.ensure_future(asked.run("1", nothing, session_id=None, language=None, timeout_s=None))
    async with asyncio.timeout(30):
        while not gateway.made or not gateway.made[0].is_streaming:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert gateway.cancelled == ["latest"]
