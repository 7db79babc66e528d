"""`GET /runcode/ws`: runs whose events come over one WebSocket, and that can be answered and interrupted over it.

When a client vanishes its runs go on, and are no longer followed.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing, nullcontext
from typing import Any

import structlog
from tornado.httputil import HTTPServerRequest
from tornado.web import Application
from tornado.websocket import WebSocketClosedError

from gateway.http.api.streaming import wire_events
from gateway.http.base.errors import error_message
from gateway.http.base.subprotocols import RUNS
from gateway.http.base.websocket import SocketHandler
from gateway.http.parse import run_request, socket_messages
from gateway.http.parse.socket_messages import InputMessage, InterruptMessage, MessageId, RunMessage
from gateway.http.parse.urls import run_id_of
from sessions.concurrency import BackgroundTasks, KeyedLock
from sessions.errors import CellblockError, TooManyRequests
from sessions.model import RunId, RunRequest, SessionId

_log = structlog.get_logger("cellblock.http")


class RunCodeSocket(SocketHandler):
    """One connection. Its state: its runs, those of them that are being followed, and a lock per session."""

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        self._runs = BackgroundTasks("/runcode/ws")
        self._followed: set[asyncio.Task[None]] = set()
        self._turns: KeyedLock[SessionId] = KeyedLock()
        super().__init__(application, request, **kwargs)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return RUNS if RUNS in subprotocols else None

    async def on_message(self, message: str | bytes) -> None:
        """Do what is asked; tornado reads the next message when this is done."""
        identifier: MessageId | None = None
        try:
            with ExitStack() as held:
                held.enter_context(self.holding(message))
                value = socket_messages.parse_message(message)
                identifier = socket_messages.message_id(value)
                await self._handle(socket_messages.typed(value), identifier, held)
        except WebSocketClosedError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, the connection goes on
            await self._send_error(error, identifier)

    def on_close(self) -> None:
        """Stop following. Runs that were asked for still begin, as they do for a client of POST /runcode."""
        super().on_close()
        for task in self._followed:
            task.cancel()

    async def _handle(
        self, message: RunMessage | InputMessage | InterruptMessage, identifier: MessageId | None, held: ExitStack
    ) -> None:
        service = self.context.service
        match message:
            case RunMessage():
                self._start(self._request(message), identifier, held)
            case InputMessage():
                await service.answer_input(self.tenant, run_id_of(message.run_id), message.value)
            case InterruptMessage():
                await service.interrupt(self.tenant, run_id_of(message.run_id))

    def _request(self, message: RunMessage) -> RunRequest:
        return run_request.run_request(
            message,
            tenant=self.tenant,
            languages=self.context.config.languages,
            limits=self.context.config.limits,
            allow_stdin=True,
            idempotency_key=message.idempotency_key,
            env_allowed=self.context.config.env_allowed,
            traceparent=self.traceparent,
        )

    # --- runs ---------------------------------------------------------------------------------------------------------

    def _start(self, request: RunRequest, identifier: MessageId | None, held: ExitStack) -> None:
        most = self.context.http.bounds.runs_per_socket
        if len(self._runs) >= most:
            raise TooManyRequests(f"This connection has {most} runs in flight: wait for one of them to end.")
        self._runs.spawn(self._run(request, identifier, held.pop_all()))

    async def _run(self, request: RunRequest, identifier: MessageId | None, held: ExitStack) -> None:
        """Begin a run and send its events. `held` counts its message until it has begun."""
        try:
            with held:
                # Runs in one session begin in the order in which they were sent.
                turn = nullcontext() if request.session_id is None else self._turns.hold(request.session_id)
                async with turn:
                    run_id = await self.context.service.begin(request)
                del request
            if not self.is_closed:
                await self._follow(run_id, identifier)
        except WebSocketClosedError:
            return
        except Exception as error:  # noqa: BLE001 - the connection and its other runs go on
            await self._send_error(error, identifier)

    async def _follow(self, run_id: RunId, identifier: MessageId | None) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy; only `_run` calls this, and that is a task
        self._followed.add(task)
        yours = {} if identifier is None else {"id": identifier}
        try:
            with self.placing() as place:
                async with aclosing(wire_events(self.context.service, run_id, 0, self.base_url, place)) as batches:
                    async for batch in batches:
                        for event in batch:
                            await self.send_message(event | yours, place)
        finally:
            self._followed.discard(task)

    async def _send_error(self, error: Exception, identifier: MessageId | None) -> None:
        """Send the error; an unexpected one is logged."""
        if self.is_closed:
            return
        message = error_message(error, identifier)
        if not isinstance(error, CellblockError):
            _log.error("unexpected error", route=self.route.path, **self.log_fields, exc_info=error)
        try:
            with self.placing() as place:
                await self.send_message(message, place)
        except WebSocketClosedError:
            return
