"""Tokens that are made and revoked while gateways run. The database has their SHA-256 alone."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.auth import StoredTokens
from gateway.store.postgres import PostgresStore
from gateway.store.tables import tokens
from sessions.errors import NotFound, StoreUnavailable
from sessions.model import TenantId

_PREFIX = "cb_"  # so that scanners for secrets, and people, know what it is
_RANDOM_BYTES = 32
_ID_CHARACTERS = 12
_POLL_S = 2.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as lists show it. `id` is the beginning of its SHA-256 in hexadecimal."""

    id: str
    tenant: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


class TokenStore:
    """The table of tokens. Every method raises StoreUnavailable."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    async def create(self, tenant: str, name: str) -> tuple[str, StoredToken]:
        """Make a token; returns it, which nothing can do a second time."""
        text = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        digest = hashlib.sha256(text.encode()).digest()
        made = StoredToken(_id(digest), tenant, name, datetime.now(UTC), None)
        row = {"token_sha256": digest, "tenant": tenant, "name": name, "created_at": made.created_at}

        def work(connection: Connection) -> None:
            connection.execute(insert(tokens).values(row).on_conflict_do_nothing())  # it may be called twice

        await self._store.run(work)
        return text, made

    async def list(self) -> list[StoredToken]:
        """All of them, oldest first, revoked ones included."""

        def work(connection: Connection) -> list[StoredToken]:
            rows = connection.execute(select(tokens).order_by(tokens.c.created_at, tokens.c.token_sha256))
            return [
                StoredToken(_id(row.token_sha256), row.tenant, row.name, row.created_at, row.revoked_at) for row in rows
            ]

        return await self._store.run(work)

    async def revoke(self, token_id: str) -> StoredToken:
        """Have a token be none any more; one that was revoked stays so. Raises NotFound for what is no token's id."""
        known = {token.id: token for token in await self.list()}
        if token_id not in known:
            raise NotFound(f"There is no token {token_id}: `cellblock token list` shows those that there are.")
        now = datetime.now(UTC)

        def work(connection: Connection) -> None:
            for digest in connection.execute(select(tokens.c.token_sha256)).scalars().all():
                if _id(digest) == token_id:
                    of_this = (tokens.c.token_sha256 == digest) & tokens.c.revoked_at.is_(None)
                    connection.execute(update(tokens).where(of_this).values(revoked_at=now))

        await self._store.run(work)
        return known[token_id]

    async def stored(self) -> StoredTokens:
        """What the authenticator has to know of them."""

        def work(connection: Connection) -> StoredTokens:
            rows = connection.execute(select(tokens.c.token_sha256, tokens.c.tenant, tokens.c.revoked_at)).all()
            valid = {bytes(row.token_sha256): TenantId(row.tenant) for row in rows if row.revoked_at is None}
            return StoredTokens(valid, ever=bool(rows))

        return await self._store.run(work)

    async def follow(self, changed: Callable[[StoredTokens], None]) -> None:
        """Say what is `stored` every two seconds, until cancelled. While the database fails, nothing changes."""
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                changed(await self.stored())
            except StoreUnavailable:
                continue
            except Exception:  # noqa: BLE001 - no error may have revoked tokens be valid until the gateway is restarted
                _log.exception("tokens_not_read")


def _id(digest: bytes) -> str:
    return bytes(digest).hex()[:_ID_CHARACTERS]
