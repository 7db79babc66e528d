"""Tokens in a real database."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from gateway.auth import StoredTokens
from gateway.store import tokens as module
from gateway.store.postgres import PostgresStore
from gateway.store.tokens import TokenStore
from sessions.errors import NotFound


async def test_a_token_is_made_listed_and_revoked(postgres_store: PostgresStore) -> None:
    tokens = TokenStore(postgres_store)
    assert await tokens.stored() == ({}, False)
    secret, made = await tokens.create("alice", "laptop")
    assert secret.startswith("cb_")
    digest = hashlib.sha256(secret.encode()).digest()
    assert await tokens.stored() == ({digest: "alice"}, True)
    assert await tokens.list() == [made]
    other, second = await tokens.create("bob", "")
    assert other != secret
    await tokens.revoke(made.id)
    first = (await tokens.list())[0]
    assert first.revoked_at is not None
    await tokens.revoke(made.id)
    assert (await tokens.list())[0] == first, "the first time counts"
    assert await tokens.stored() == ({hashlib.sha256(other.encode()).digest(): "bob"}, True)
    await tokens.revoke(second.id)
    assert await tokens.stored() == ({}, True)
    with pytest.raises(NotFound):
        await tokens.revoke("0" * 12)


async def test_the_database_does_not_have_the_token(postgres_store: PostgresStore) -> None:
    secret, _ = await TokenStore(postgres_store).create("alice", "laptop")
    rows = await postgres_store.run(
        lambda connection: connection.execute(text("SELECT tokens::text FROM tokens")).all()
    )
    assert secret not in str(rows)
    assert secret.removeprefix("cb_") not in str(rows)


async def test_what_has_changed_is_told_within_seconds(postgres_store: PostgresStore) -> None:
    tokens = TokenStore(postgres_store)
    told: asyncio.Queue[StoredTokens] = asyncio.Queue()
    following = asyncio.ensure_future(tokens.follow(told.put_nowait))
    try:
        _, made = await tokens.create("alice", "")
        async with asyncio.timeout(30):
            while not (await told.get()).valid:
                pass
            await tokens.revoke(made.id)
            while (await told.get()).valid:
                pass
    finally:
        following.cancel()


async def test_an_unforeseen_error_does_not_end_it(
    postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokenStore(postgres_store)
    answers = iter([RuntimeError("unforeseen"), StoredTokens(ever=True)])

    async def stored() -> StoredTokens:
        answer = next(answers, StoredTokens())
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "_POLL_S", 0)
    monkeypatch.setattr(tokens, "stored", stored)
    told: asyncio.Queue[StoredTokens] = asyncio.Queue()
    with capture_logs() as logs:
        following = asyncio.ensure_future(tokens.follow(told.put_nowait))
        try:
            async with asyncio.timeout(30):
                assert (await told.get()).ever
        finally:
            following.cancel()
    assert [line["event"] for line in logs] == ["tokens_not_read"]
