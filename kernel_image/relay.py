"""The supervisor's WebSocket to the gateway: dialling, the hello, sending the spool, dialling again.

It moves frames and keeps them until they are acknowledged; what they mean is the supervisor's business.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any, Protocol

from kernel_image import protocol, websocket
from kernel_image.sandbox_log import describe, log_event
from kernel_image.spool import Frame, Gap, Spool
from kernel_image.websocket import WebSocket, WebSocketError

_MAX_REQUEST_BYTES = 256 << 20
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_CONNECT_TIMEOUT_S = 10.0
_UNFLUSHED_LIMIT_BYTES = 1 << 20
_MOST_FAILURES = 3
_NETWORK_ERRORS = (OSError, WebSocketError)
"""What is raised when there is no gateway. Anything else is somebody's bug, and is logged with its traceback."""


class GatewayListener(Protocol):
    """What the relay calls on the supervisor."""

    def hello(self) -> dict[str, Any]:
        """The fields of `hello` that are the supervisor's to fill."""
        ...

    def on_message(self, channel: str, parts: list[bytes]) -> None:
        """A Jupyter message from the gateway."""
        ...

    def on_control(self, op: str, fields: dict[str, Any]) -> None:
        """A control message from the gateway, other than those about the connection itself."""
        ...

    def on_dropped(self, frame: str | bytes, why: str) -> None:
        """A frame from the gateway cannot be handled, however often it comes."""
        ...

    def on_disconnected(self) -> None:
        """The connection is gone, and with it everything that is not numbered."""
        ...


class Relay:
    """Keeps one WebSocket to the gateway alive, and every numbered frame until it is acknowledged.

    Its state: the connection, whether the gateway has welcomed it, the last `seq` sent on it, and which frame of the
    gateway has failed how often.
    """

    def __init__(self, settings: protocol.SupervisorSettings, listener: GatewayListener) -> None:
        self._settings = settings
        self._listener = listener
        self._boot_id = secrets.token_hex(16)
        self._spool = Spool(settings.spool_bytes, self._render_gap)
        self._connection: WebSocket | None = None
        self._welcomed = False
        self._sent_seq = 0
        self._acknowledged = asyncio.Event()
        self._dial_failure = ""
        self._failure: tuple[int, int] = (0, 0)

    def put_message(self, channel: str, parts: list[bytes], *, droppable: bool) -> None:
        """Send a Jupyter message as soon as possible, and keep it until it is acknowledged."""
        frame = protocol.encode_message(channel, parts)
        self._spool.add(lambda seq: protocol.number_frame(seq, frame), len(frame), droppable=droppable)
        self._send_unsent()

    def put_control(self, op: str, **fields: Any) -> None:
        """Send a numbered control message; it is never dropped."""
        self._spool.add(lambda seq: protocol.encode_control(op, seq=seq, **fields), 256, droppable=False)
        self._send_unsent()

    def send_unnumbered(self, frame: str | bytes) -> None:
        """Send a frame now, if a gateway has welcomed us. It is not kept: whoever asked for it asks again."""
        if self._welcomed and self._connection is not None:
            self._connection.send(frame)

    async def wait_for_room(self) -> None:
        """Return once half of the spool is free, so that what comes next does not overflow it."""
        while self._spool.size_bytes > self._settings.spool_bytes // 2:
            self._acknowledged.clear()
            await self._acknowledged.wait()

    async def run(self) -> None:
        """Stay connected. Returns once no gateway has been there for `orphan_timeout_s`."""
        last_seen_s = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while time.monotonic() - last_seen_s < self._settings.orphan_timeout_s:
            if await self._converse():
                last_seen_s = time.monotonic()
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        log_event("no_gateway", waited_s=self._settings.orphan_timeout_s)

    async def _converse(self) -> bool:
        """Dial, say hello, and handle frames until the connection ends. Returns whether the gateway welcomed us."""
        try:
            connection = await self._dial()
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer is to dial again
            self._log_dial_failure(error)
            return False
        try:
            hello = {
                "protocol": protocol.PROTOCOL_VERSION,
                "kernel_id": self._settings.kernel_id,
                "credential": self._settings.credential,
                "boot_id": self._boot_id,
                "oldest_seq": self._spool.oldest_seq,
                "next_seq": self._spool.next_seq,
                **self._listener.hello(),
            }
            self._connection = connection
            connection.on_flushed = self._send_unsent
            connection.send(protocol.encode_control(protocol.HELLO, **hello))
            await connection.receive(self._handle_or_drop)
            log_event("link_closed", code=connection.close_code, reason=connection.close_reason)
        except Exception as error:  # noqa: BLE001 - likewise
            log_event("link_broken", error, with_traceback=not isinstance(error, _NETWORK_ERRORS))
        welcomed, self._welcomed = self._welcomed, False
        self._connection = None
        connection.close()
        self._listener.on_disconnected()
        return welcomed

    async def _dial(self) -> WebSocket:
        path = self._settings.gateway.removeprefix("unix:")
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            return await websocket.connect(
                path, "/supervisor", protocol.SUBPROTOCOL, max_message_bytes=_MAX_REQUEST_BYTES
            )

    def _log_dial_failure(self, error: Exception) -> None:
        """Log why there is no gateway, once for as long as the reason stays the same."""
        if describe(error) != self._dial_failure:
            self._dial_failure = describe(error)
            log_event("dial_failed", error, with_traceback=not isinstance(error, _NETWORK_ERRORS))

    def _handle_or_drop(self, frame: str | bytes) -> None:
        """Handle a frame. One that fails breaks the link, and comes again; when it has failed often, it is dropped."""
        try:
            self._handle_frame(frame)
        except Exception as error:
            failing, failures = self._failure
            failures = failures + 1 if failing == hash(frame) else 1
            self._failure = (hash(frame), failures)
            if failures < _MOST_FAILURES:
                raise
            log_event("frame_dropped", error, failures=failures)
            self._listener.on_dropped(frame, describe(error))

    def _handle_frame(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            self._listener.on_message(*protocol.decode_message(frame))
            return
        fields = json.loads(frame)
        match op := fields.pop("op"):
            case protocol.WELCOME:
                log_event("link_up", acknowledged=fields["acknowledged"], next_seq=self._spool.next_seq)
                self._dial_failure = ""
                self._welcomed = True
                self._sent_seq = 0
                self._acknowledge(fields["acknowledged"])
                self._spool.close_gap()
                self._send_unsent()
            case protocol.ACK:
                self._acknowledge(fields["seq"])
                self._send_unsent()
            case protocol.REFUSED:
                log_event("link_refused", reason=fields.get("reason"))
            case _:
                self._listener.on_control(op, fields)

    def _acknowledge(self, seq: int) -> None:
        """Forget what the gateway needs no more, sent over this connection or an earlier one, and go on behind it."""
        self._spool.acknowledge(seq)
        self._sent_seq = max(self._sent_seq, self._spool.oldest_seq - 1)
        self._acknowledged.set()

    def _send_unsent(self) -> None:
        """Send from the spool until all is sent, or enough waits for the socket; once that is flushed, this goes on."""
        connection = self._connection
        if not self._welcomed or connection is None:
            return
        while connection.unsent_bytes < _UNFLUSHED_LIMIT_BYTES:
            frame = self._spool.get(self._sent_seq + 1)
            if frame is None:
                return
            self._sent_seq += 1
            connection.send(frame)

    def _render_gap(self, seq: int, gap: Gap) -> Frame:
        return protocol.encode_control(
            protocol.GAP, seq=seq, what="spool", dropped_bytes=gap.size_bytes, dropped_frames=gap.frames, msg_id=None
        )
