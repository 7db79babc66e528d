"""`GET /api/kernels/{id}/channels`: Jupyter's WebSocket, over which a client talks with a session's kernel.

sessions/jupyter decides what is sent, to whom and in which order. This module sends it; receipts.py learns how much of
it has arrived.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing, suppress
from typing import Any, ClassVar

import structlog
from tornado.httputil import HTTPServerRequest
from tornado.web import Application
from tornado.websocket import WebSocketClosedError

from gateway.host.clock import SystemClock
from gateway.http.base.outgoing import Place
from gateway.http.base.subprotocols import subprotocol_authorization
from gateway.http.base.websocket import SocketHandler
from gateway.http.jupyter.framing import Framing, framing_of
from gateway.http.jupyter.handler import JupyterHandler
from gateway.http.jupyter.receipts import Receipts
from gateway.http.jupyter.replay import replay_run, with_others
from gateway.http.parse.urls import segment
from kernel_image.protocol import SUBPROTOCOL
from sessions.errors import CellblockError, InvalidRequest, Unavailable
from sessions.jupyter.client import ClientConnection
from sessions.jupyter.message_queue import Replay
from sessions.jupyter.messages import ClientMessage
from sessions.kernels.throttle import Throttle

MAX_GARBAGE = 64
"""Invalid messages that are tolerated on one connection; the next one closes it."""

_NORMAL = 1000
_PROTOCOL_ERROR = 1002

_log = structlog.get_logger("cellblock.http")


class JupyterChannels(JupyterHandler, SocketHandler):
    """One connection.

    Its state: the client's connection, framing and receipts once they are known, the task that sends, when something
    last came from the client, and the number of invalid messages.
    """

    ends_early: ClassVar[bool] = True

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        self._connection: ClientConnection | None = None
        self._framing: Framing = framing_of(None)
        self._sending: asyncio.Task[None] | None = None
        self._receipts: Receipts | None = None
        self._heard_s = 0.0
        self._silence: asyncio.TimerHandle | None = None
        self._garbage = 0
        super().__init__(application, request, **kwargs)
        self._throttle = Throttle(SystemClock(), together=self.context.http.client_time)

    # --- coming and going ---------------------------------------------------------------------------------------------

    async def handle_request(self) -> None:
        """Be a WebSocket until it is closed. Raises NotFound when there is no such kernel, TooManyRequests."""
        self._check_handshake()
        kernel_id = segment(self.request.path, 3)
        session_id = self.context.service.session_of_kernel(self.tenant, kernel_id).session.session_id
        client = self.get_query_argument("session_id", None)
        self._connection = await self.context.service.attach(
            self.tenant, session_id, client or None, traceparent=self.traceparent
        )
        try:
            await super().handle_request()
        finally:
            if self._sending is not None:
                self._sending.cancel()
            self._connection.disconnect()

    def authorization(self) -> str | None:
        """As of all Jupyter routes, or a token among the sub-protocols, which counts after both."""
        given = JupyterHandler.authorization(self)
        return subprotocol_authorization(self.request.headers) if given is None else given

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)
        assert self._connection is not None  # noqa: S101 - for mypy; `handle_request` has set it
        self._framing = framing_of(self.selected_subprotocol)
        self._receipts = Receipts(self._connection, self._ping)
        self._sending = asyncio.ensure_future(self._send_items(self._connection, self._receipts))
        self._connection.on_replaced(self._be_replaced)
        self.patience.timeout_s = self.context.http.bounds.silence_s
        self._note_heard()
        self._watch_silence()

    def _be_replaced(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self.close(_NORMAL, "this client has connected anew")

    def on_close(self) -> None:
        super().on_close()
        if self._sending is not None:
            self._sending.cancel()
        if self._silence is not None:
            self._silence.cancel()
        if self._receipts is not None:
            self._receipts.stop()

    # --- silence ------------------------------------------------------------------------------------------------------

    @property
    def ping_timeout(self) -> float:
        """Zero: tornado would close the connection before its next ping. `_watch_silence` decides instead."""
        return 0.0

    def _note_heard(self) -> None:
        """Something has come from the client. It is acknowledged at once, since the next may wait for that."""
        self._heard_s = asyncio.get_running_loop().time()
        stream = getattr(self.ws_connection, "stream", None)
        if stream is not None and stream.socket is not None:
            with suppress(OSError):  # it is closed, or no TCP
                stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _watch_silence(self) -> None:
        """Close the connection once nothing has come over it for too long."""
        loop, silence_s = asyncio.get_running_loop(), self.context.http.bounds.silence_s
        left_s = self._heard_s + silence_s - loop.time()
        if left_s > 0:
            self._silence = loop.call_later(left_s, self._watch_silence)
        else:
            self.close(_NORMAL, f"nothing came from this client for {silence_s:g} s")

    # --- hearing the client -------------------------------------------------------------------------------------------

    async def on_message(self, message: str | bytes) -> None:
        """Do what is asked; tornado reads the next message when this is done."""
        self._note_heard()
        assert self._connection is not None  # noqa: S101 - for mypy; `handle_request` has set it
        taken: list[ClientMessage] = []
        try:
            with self.holding(message):
                pause_s = await self._throttle.metered_in_turn(
                    len(message), lambda: taken.append(self._framing.decode(message))
                )
                await self._connection.handle_message(taken[0])
        except InvalidRequest as error:
            self._refuse(error)
        except CellblockError as error:
            _log.warning("jupyter_message_dropped", **self.log_fields, reason=str(error))
        except Exception:  # noqa: BLE001 - a bug of ours; the connection goes on
            _log.exception("jupyter_message_failed", **self.log_fields)
        else:
            if pause_s > 0:
                await asyncio.sleep(pause_s)

    def _refuse(self, error: InvalidRequest) -> None:
        """An invalid message gets no answer, since it names no request; the connection goes on."""
        self._garbage += 1
        if self._garbage == 1:
            _log.warning("jupyter_message_refused", **self.log_fields, reason=str(error))
        if self._garbage > MAX_GARBAGE:
            self.close(_PROTOCOL_ERROR, "too many messages that are no Jupyter messages")

    # --- sending to the client ----------------------------------------------------------------------------------------

    async def _send_items(self, connection: ClientConnection, receipts: Receipts) -> None:
        """Send what the client is due, until the kernel is gone."""
        try:
            with self.placing() as place:
                while (item := await connection.next_item()) is not None:
                    if isinstance(item, Replay):
                        await self._replay(connection, item, receipts)
                    else:
                        await self._send(item, place)
                        receipts.note_sent(item)
            self.close(_NORMAL, "this kernel has been shut down")
        except WebSocketClosedError:
            pass  # the client is gone
        except Unavailable as error:  # there was no room in memory; the client reconnects, and gets it then
            _log.warning("jupyter_client_not_told", **self.log_fields, reason=str(error))
            self.disconnect()
        except Exception:  # noqa: BLE001 - a bug of ours; likewise
            _log.exception("jupyter_client_not_told", **self.log_fields)
            self.disconnect()

    async def _replay(self, connection: ClientConnection, replay: Replay, receipts: Receipts) -> None:
        bounds = self.context.http.bounds
        with self.placing() as place, self.placing() as place_ahead:
            replayed = replay_run(
                self.context.service,
                self.tenant,
                replay.run_id,
                connection.client,
                retry_s=bounds.replay_retry_s,
                place=place,
            )
            async with aclosing(replayed), aclosing(with_others(replayed, connection.next_ahead)) as messages:  # type: ignore[type-var]
                async for message, is_of_replay in messages:
                    await self._send(message, place if is_of_replay else place_ahead)
                    receipts.note_sent(message, is_of_replay=is_of_replay)
        connection.replay_sent(replay.run_id)
        receipts.note_sent(None)

    async def _send(self, message: ClientMessage, place: Place) -> None:
        await place.make(message.size_bytes)
        await self.send_encoded(lambda: self._framing.encode(message), place)

    def _ping(self, data: str) -> None:
        with suppress(WebSocketClosedError):
            self.ping(data)

    def on_ping(self, data: bytes) -> None:
        del data
        self._note_heard()

    def on_pong(self, data: bytes) -> None:
        self._note_heard()
        if self._receipts is not None:
            self._receipts.note_pong(data)
