"""What becomes of streams and WebSockets when the token with which they were opened is none any more."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

import httpx
import pytest
from http_face import Face, serving
from websockets import InvalidStatus, Subprotocol
from websockets.asyncio.client import connect
from ws_talk import begun, tell, until

from gateway.auth import StoredTokens
from gateway.http.base.subprotocols import RUNS, TOKEN_PREFIX
from sessions.model import TenantId

PATIENCE_S = 30.0
NOBODY = StoredTokens(ever=True)


def stored(*names: str) -> StoredTokens:
    return StoredTokens({hashlib.sha256(name.encode()).digest(): TenantId(name) for name in names}, ever=True)


def token(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


@pytest.fixture
async def face() -> AsyncIterator[Face]:
    async with serving() as face:
        face.context.set_stored_tokens(stored("alice", "bob"))
        face.service.ends = False
        yield face


async def test_the_websocket_of_a_revoked_token_is_closed_and_no_other(face: Face) -> None:
    async with (
        connect(face.ws_url, additional_headers=token("alice")) as alice,
        connect(face.ws_url, additional_headers=token("bob")) as bob,
    ):
        await tell(alice, op="run", code="1")
        await begun(face)
        face.context.set_stored_tokens(stored("alice", "bob"))
        await until(face, "<Streams 2>")
        face.context.set_stored_tokens(stored("bob"))
        async with asyncio.timeout(PATIENCE_S):
            await alice.wait_closed()
        assert alice.close_code == 1008
        await tell(bob, op="run", code="2")
        assert [run.request.tenant for run in await begun(face, 2)] == ["alice", "bob"]
        await until(face, "<Streams 1>")


async def test_the_websocket_of_a_browser_is_closed_likewise(face: Face) -> None:
    text = base64.urlsafe_b64encode(b"alice").decode().rstrip("=")
    offered = [Subprotocol(RUNS), Subprotocol(f"{TOKEN_PREFIX}{text}")]
    async with connect(face.ws_url, subprotocols=offered) as alice:
        await until(face, "<Streams 1>")
        face.context.set_stored_tokens(stored("bob"))
        async with asyncio.timeout(PATIENCE_S):
            await alice.wait_closed()
        assert alice.close_code == 1008
    with pytest.raises(InvalidStatus) as refused:
        await connect(face.ws_url, subprotocols=offered)
    assert refused.value.response.status_code == 401


async def test_the_first_token_closes_what_was_opened_without_one() -> None:
    async with serving() as face, connect(face.ws_url) as ws:
        await until(face, "<Streams 1>")
        face.context.set_stored_tokens(stored("alice"))
        async with asyncio.timeout(PATIENCE_S):
            await ws.wait_closed()
        assert ws.close_code == 1008


async def test_the_events_of_a_run_are_cut(face: Face) -> None:
    async with httpx.AsyncClient(base_url=face.url, timeout=PATIENCE_S, headers=token("alice")) as client:
        async with client.stream("POST", "/runcode", json={"code": "1", "stream": True}) as answer:
            await begun(face)
            face.context.set_stored_tokens(NOBODY)
            assert "event: end" not in "".join([text async for text in answer.aiter_text()])
        assert (await client.get("/runs")).status_code == 401


async def test_no_further_item_of_a_batch_begins(face: Face) -> None:
    async with httpx.AsyncClient(base_url=face.url, timeout=PATIENCE_S, headers=token("alice")) as client:
        items = [{"code": str(place)} for place in range(20)]
        async with client.stream("POST", "/runcode/batch", json={"runs": items}) as answer:
            runs = [*await begun(face, face.context.batches.at_once)]
            face.context.set_stored_tokens(NOBODY)
            with pytest.raises(httpx.RemoteProtocolError):
                [text async for text in answer.aiter_text()]
    await until(face, "<Streams 0>")
    for run in runs:
        run.end()
    assert len(face.service.runs) == len(runs)
