"""A run that somebody sits before: its events as they come, and answers to its questions.

It begins over a WebSocket, where `input()` works. When that breaks, the events go on over the client's own streams, and
answers are sent over a WebSocket made for them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from gateway.cli.connection import Address
from gateway.client import AsyncClient, ClientError, Event
from gateway.client.errors import error_of
from gateway.client.results import event_of

_MOST_BYTES = 64 << 20
_CONNECT_S = 10.0

Ask = Callable[[str, bool], Awaitable[str | None]]
"""Asks a person: the prompt, and whether what is typed is hidden. None: there is no answer."""


class LiveRun:
    """One run in a session. The mutable state: its id and the number of its last event, once they are known."""

    def __init__(self, client: AsyncClient, address: Address, session_id: str, language: str, ask: Ask) -> None:
        """`language` is the session's, for one that has ended meanwhile and is made again."""
        self._client = client
        self._address = address
        self._session_id = session_id
        self._language = language
        self._ask = ask
        self._run_id = ""
        self._seq = 0

    async def events(self, code: str) -> AsyncIterator[Event]:
        """Run code; the last event is of type `end`. Raises ClientError."""
        key = str(uuid4())
        has_ended = False
        async for event in self._first_connection(code, key):
            yield event
            has_ended = event.type == "end"
        if has_ended:
            return
        rest = (
            self._client.events(self._run_id, self._seq)
            if self._run_id
            else self._client.stream(code, session_id=self._session_id, language=self._language, idempotency_key=key)
        )
        async for event in rest:
            yield event
            await self._answer(event, None)

    async def _first_connection(self, code: str, key: str) -> AsyncIterator[Event]:
        """The events until the end, or until the connection breaks."""
        socket = await connect(self._address, "/runcode/ws")
        if socket is None:
            return
        try:
            fields = {"code": code, "session_id": self._session_id, "language": self._language, "idempotency_key": key}
            await socket.write_message(json.dumps({"op": "run", "id": key, **fields}))
            while (text := await socket.read_message()) is not None:
                fields = json.loads(text)
                if "seq" not in fields:
                    raise ClientError(fields["error"], code=fields["code"])
                event = event_of({name: value for name, value in fields.items() if name != "id"})
                self._run_id, self._seq = event.run_id, event.seq
                yield event
                if event.type == "end":
                    return
                await self._answer(event, socket)
        except WebSocketClosedError:
            return
        finally:
            socket.close()

    async def _answer(self, event: Event, socket: WebSocketClientConnection | None) -> None:
        if event.type != "input_request":
            return
        answer = await self._ask(event.fields["prompt"], event.fields["password"])
        if answer is None:
            return
        message = json.dumps({"op": "input", "run_id": event.run_id, "value": answer})
        if socket is not None:
            with suppress(WebSocketClosedError):  # it broke while somebody thought about the answer
                await socket.write_message(message)
                return
        if (own := await connect(self._address, "/runcode/ws")) is not None:
            await own.write_message(message)
            own.close()


async def connect(address: Address, path: str) -> WebSocketClientConnection | None:
    """A WebSocket of the gateway; None where it cannot be reached. Raises ClientError where it refuses."""
    headers = {"Authorization": f"Bearer {address.token}"} if address.token else {}
    url = address.url.replace("http", "ws", 1) + path
    request = HTTPRequest(url, headers=headers, connect_timeout=_CONNECT_S)
    try:
        return await websocket_connect(request, max_message_size=_MOST_BYTES)
    except HTTPClientError as error:
        body: bytes | Mapping[str, Any] = error.response.body if error.response is not None else b""
        raise error_of(error.code, body) from error
    except OSError:
        return None
