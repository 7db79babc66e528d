"""The MCP server over Streamable HTTP at `/mcp`, in a process of its own beside the gateway.

Each request's bearer token goes on to the gateway, which decides whose it is; conversations belong to their token.
Only this machine can reach it, and no web page: `Host` and `Origin` are checked as the gateway does.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import httpx
import uvicorn
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.auth import SiteRules
from gateway.client import AsyncClient, ClientError, Unauthorized
from gateway.host.bound_sockets import BoundSockets
from gateway.mcp.conversation import Conversation
from gateway.mcp.server import Context, make_server
from sessions.errors import Forbidden

PATH = "/mcp"
_BODY_BYTES = 16 << 20
_GRACE_S = 5
_KNOWN_FOR_S = 60.0
_MOST_KNOWN = 10_000
_SESSION_HEADER = "mcp-session-id"

Address = Callable[[], Awaitable[str]]


async def serve(
    version: str, address: Address, port: int, allowed_hosts: Iterable[str], announce: Callable[[str], None]
) -> None:
    """Serve until this is cancelled, on loopback. Raises SetUpFailed when the port is taken."""
    sockets = BoundSockets.bind("127.0.0.1", port)
    connections = httpx.AsyncClient(limits=httpx.Limits(max_connections=None))
    clients = _Clients(address, connections)
    manager = StreamableHTTPSessionManager(
        make_server(version, clients.conversation), max_request_body_size=_BODY_BYTES
    )
    site = SiteRules.of(loopback=True, public_url="", allowed_origins=(), allowed_hosts=allowed_hosts)
    front = _Front(site, clients, manager)
    config = uvicorn.Config(
        front, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_S
    )
    server = _Server(config)
    try:
        async with connections, manager.run():
            serving = asyncio.ensure_future(server.serve([*sockets.listen()]))
            announce(f"http://127.0.0.1:{sockets.port}{PATH}")
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                server.should_exit = True
                await serving
                raise
    finally:
        sockets.close()


class _Server(uvicorn.Server):
    """Leaves the signals to the command."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Clients:
    """The gateway, for every token. The mutable state is which tokens it has taken, and until when that is believed."""

    def __init__(self, address: Address, connections: httpx.AsyncClient) -> None:
        self._address = address
        self._connections = connections
        self._known_until_s: dict[str, float] = {}

    def conversation(self, context: Context) -> Conversation:
        """That of the request's MCP session; where it has none, one for this request alone."""
        assert context.request is not None  # noqa: S101 - this is HTTP
        headers = context.request.headers

        async def connected() -> AsyncClient:
            return AsyncClient(await self._address(), token_in(headers), http=self._connections)

        if _SESSION_HEADER not in headers:
            return Conversation(connected, is_lasting=False)
        connection = context.session._connection  # noqa: SLF001 - the SDK has no other way to it
        conversation: Conversation | None = connection.state.get("conversation")
        if conversation is None:
            conversation = connection.state["conversation"] = Conversation(connected, is_lasting=True)
            connection.exit_stack.push_async_callback(conversation.end)
        return conversation

    async def check(self, token: str) -> None:
        """Raise Unauthorized where the gateway does not take this token. A gateway that is away is asked later."""
        if not token.isascii():  # no header can carry it on
            raise Unauthorized("This token is not known here: check it, or ask for a new one.")
        digest, now_s = digest_of(token), time.monotonic()
        if self._known_until_s.get(digest, 0.0) > now_s:
            return
        client = AsyncClient(await self._address(), token, patience_s=0.0, http=self._connections)
        try:
            await client.sessions()
        except Unauthorized:
            self._known_until_s.pop(digest, None)
            raise
        except ClientError:
            return
        if len(self._known_until_s) >= _MOST_KNOWN:
            self._known_until_s.clear()
        self._known_until_s[digest] = now_s + _KNOWN_FOR_S


class _Front:
    """The ASGI application: what is refused before the SDK sees it."""

    def __init__(self, site: SiteRules, clients: _Clients, manager: StreamableHTTPSessionManager) -> None:
        self._site = site
        self._clients = clients
        self._manager = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._manager.handle_request(scope, receive, send)

    async def _refusal(self, scope: Scope) -> JSONResponse | None:
        if scope["type"] != "http" or scope["path"].rstrip("/") != PATH:
            return _error(HTTPStatus.NOT_FOUND, f"There is nothing here. MCP is at {PATH}.")
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        try:
            self._site.check_host(host)
        except Forbidden:
            return _error(
                HTTPStatus.FORBIDDEN,
                "This host name is not ours: use localhost or 127.0.0.1, or name it with `--allowed-host`.",
            )
        try:
            self._site.check_origin(headers.get("origin"), host)
            self._site.check_fetch_site(headers.get("sec-fetch-site"), headers.get("origin"))
        except Forbidden:
            return _error(HTTPStatus.FORBIDDEN, "Web pages of other sites may not run code here.")
        token = token_in(headers)
        try:
            await self._clients.check(token)
        except Unauthorized as error:
            return _error(HTTPStatus.UNAUTHORIZED, str(error), {"WWW-Authenticate": "Bearer"})
        # The SDK lets a conversation be used by those alone who have the token of the one who began it.
        scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=digest_of(token), scopes=[]))
        return None


def token_in(headers: Any) -> str:
    """The token of a request; empty where it has none."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() in ("bearer", "token") else ""


def digest_of(token: str) -> str:
    """What a token is known by."""
    return hashlib.sha256(token.encode()).hexdigest()


def _error(status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)
