"""A Jupyter client of a session of a `Bench`: it sends requests, and shows what it receives as a notebook does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from doubles import until
from workbench import Bench, S

from gateway.http.jupyter.replay import replay_run, with_others
from sessions.jupyter.client import ClientConnection
from sessions.jupyter.message_queue import Replay
from sessions.jupyter.messages import ClientMessage
from sessions.model import ANONYMOUS, RunId, SessionId, TenantId


def message(
    msg_type: str,
    content: Mapping[str, Any] | None = None,
    *,
    msg_id: str = "m",
    channel: str = "iopub",
    parent_id: str = "",
    **header: Any,
) -> ClientMessage:
    """A message; `header` are further fields of its header."""
    parent = {"msg_id": parent_id} if parent_id else {}
    fields = {"msg_id": msg_id, "msg_type": msg_type, "session": "notebook", **header}
    return ClientMessage(channel, fields, parent, content=json.dumps(content or {}).encode())


def content(message: ClientMessage) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(message.content)
    return fields


class Screen:
    """What a client that honours `clear_output` shows of each of its requests, by msg_id."""

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}
        self._clears: set[str] = set()

    def show(self, message: ClientMessage) -> None:
        cell, fields = message.parent_id, content(message)
        if message.msg_type == "clear_output":
            if fields["wait"]:
                self._clears.add(cell)
            else:
                self.shown[cell] = ""
        elif message.msg_type in ("stream", "error"):
            if cell in self._clears:
                self._clears.remove(cell)
                self.shown[cell] = ""
            self.shown[cell] = self.shown.get(cell, "") + str(fields.get("text", fields.get("ename")))


class Client:
    """One connection, which receives for as long as it is open. `messages` is all that it was sent."""

    def __init__(self, bench: Bench, connection: ClientConnection, tenant: TenantId, *, confirms: bool) -> None:
        self.bench = bench
        self.connection = connection
        self.messages: list[ClientMessage] = []
        self.screen = Screen()
        self.replayed: list[RunId] = []
        self.is_over = False
        self._tenant = tenant
        self._confirms = confirms
        self._receiving = asyncio.ensure_future(self._receive())
        connection.on_replaced(self._receiving.cancel)

    @classmethod
    async def attach(
        cls,
        bench: Bench,
        client: str | None = "lab",
        session_id: SessionId = S,
        *,
        tenant: TenantId = ANONYMOUS,
        confirms: bool = True,
    ) -> Client:
        return cls(bench, await bench.service.attach(tenant, session_id, client), tenant, confirms=confirms)

    async def _receive(self) -> None:
        while (item := await self.connection.next_item()) is not None:
            if isinstance(item, Replay):
                self.replayed.append(item.run_id)
                replay = replay_run(self.bench.service, self._tenant, item.run_id, self.connection.client, retry_s=1.0)
                async with aclosing(replay), aclosing(with_others(replay, self.connection.next_ahead)) as messages:  # type: ignore[type-var]
                    async for one, _ in messages:
                        self._receive_one(one)
                        if self._confirms:
                            self.connection.confirm(self.connection.sent)
                self.connection.replay_sent(item.run_id)
            else:
                self._receive_one(item)
            if self._confirms:
                self.connection.confirm(self.connection.sent)
        self.is_over = True

    def _receive_one(self, message: ClientMessage) -> None:
        self.messages.append(message)
        self.screen.show(message)

    @property
    def is_replaced(self) -> bool:
        return self._receiving.cancelled()

    def disconnect(self) -> None:
        self._receiving.cancel()
        self.connection.disconnect()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def send(self, msg_type: str, fields: Mapping[str, Any] | None = None, **given: Any) -> None:
        await self.connection.handle_message(message(msg_type, fields, **{"channel": "shell", **given}))

    async def execute(self, code: str, **fields: Any) -> None:
        """Request this code, under a msg_id that is the code."""
        header = {name: fields.pop(name) for name in ("session", "subshell") if name in fields}
        await self.send("execute_request", {"code": code, **fields}, msg_id=code, **header)

    # --- what has come ------------------------------------------------------------------------------------------------

    def told(self, msg_type: str, parent_id: str | None = None) -> list[dict[str, Any]]:
        """The contents of all messages of a type, or those that name this request."""
        return [
            content(one) for one in self.messages if one.msg_type == msg_type and parent_id in (None, one.parent_id)
        ]

    def states(self, parent_id: str | None = None) -> list[str]:
        return [fields["execution_state"] for fields in self.told("status", parent_id)]

    async def receives(self, msg_type: str, parent_id: str | None = None) -> dict[str, Any]:
        """The first message of a type, once it has come."""
        await until(lambda: bool(self.told(msg_type, parent_id)))
        return self.told(msg_type, parent_id)[0]

    async def reply(self, code: str) -> dict[str, Any]:
        """The reply to a cell, once reply and idle have come, and each of them once."""
        await until(lambda: bool(self.told("execute_reply", code)) and "idle" in self.states(code))
        (reply,) = self.told("execute_reply", code)
        return reply
