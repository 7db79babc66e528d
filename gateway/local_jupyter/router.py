"""Between local clients and the kernel: requests go in, a reply goes to who asked, what is published goes to everyone.

Interrupt and shutdown requests are answered here: they must work while the kernel hangs, whatever its language.
Whether there is a kernel to talk to is bridge.py's business.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from gateway.local_jupyter import envelopes
from gateway.local_jupyter.client_sockets import ClientSockets
from gateway.local_jupyter.connection import Connection
from gateway.local_jupyter.envelopes import Envelope
from kernel_image import protocol
from kernel_image.kernel_messages import is_idle
from sessions.errors import Unavailable
from sessions.kernels.kernel import Kernel
from sessions.kernels.messages import Message
from sessions.kernels.outcomes import Cause, Died, Done

_MAX_PENDING = 16_384
_MAX_REQUEST_BYTES = 128 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _PendingRequest:
    """A request without a reply so far: where it came in, who asked, and its header."""

    channel: str
    identities: Sequence[bytes]
    header: dict[str, Any]


class MessageRouter:
    """`sessions.kernels.kernel.KernelTap`, and the listener of the clients' sockets.

    Its state: requests without a reply, and runs under way. `on_shutdown_request` gets whether a restart is meant.
    """

    def __init__(
        self, connection: Connection, kernel: Kernel, on_shutdown_request: Callable[[bool], None], memory_bytes: int
    ) -> None:
        """Binds the sockets; requests are read once `sockets.read_requests` says so. Raises SetUpFailed."""
        self.sockets = ClientSockets(connection, self._handle_request)
        self.out_of_memory = f"it ran out of memory: `limits.memory` is {memory_bytes / (1 << 20):g} MiB."
        self._kernel = kernel
        self._on_shutdown_request = on_shutdown_request
        self._pending: OrderedDict[str, _PendingRequest] = OrderedDict()
        self._runs: dict[str, _Run] = {}

    # --- from clients -------------------------------------------------------------------------------------------------

    def _handle_request(self, channel: str, identities: list[bytes], parts: list[bytes]) -> None:
        envelope = envelopes.of_client(parts)
        if envelope is None:
            return
        request = _PendingRequest(channel, identities, envelope.header)
        match envelope.msg_type:
            case "interrupt_request":
                self._kernel.interrupt(None, 0)
                self._answer(request, "interrupt_reply", {})
            case "shutdown_request":
                restart = _is_restart(parts[3])
                self._answer(request, "shutdown_reply", {"restart": restart}, published=True)
                self._on_shutdown_request(restart)
            case _:
                self._forward(request, envelope, parts)

    def _forward(self, request: _PendingRequest, envelope: Envelope, parts: list[bytes]) -> None:
        if len(parts) > protocol.MAX_PARTS or sum(map(len, parts)) > _MAX_REQUEST_BYTES:
            log.warning("request_not_passed_on", msg_type=envelope.msg_type, reason="it is too large")
            return
        if envelope.msg_type.endswith("_request"):
            self._pending[envelope.msg_id] = request
            if len(self._pending) > _MAX_PENDING:
                self._pending.popitem(last=False)
        if envelope.msg_type == "execute_request" and request.channel == "shell":
            run = self._runs[envelope.msg_id] = _Run(self, envelope)
            frame = protocol.encode_message("shell", _without_artifacts(parts))
            self._kernel.execute_frame(envelope.msg_id, frame, run)
        else:
            if request.channel == "stdin":
                parts = [json.dumps({**envelope.header, **self._kernel.question()}).encode(), *parts[1:]]
            try:
                self._kernel.forward(envelope.msg_id, protocol.encode_message(request.channel, parts))
            except Unavailable as error:
                log.warning("request_not_passed_on", msg_type=envelope.msg_type, reason=str(error))

    def _answer(
        self, request: _PendingRequest, msg_type: str, content: dict[str, Any], *, published: bool = False
    ) -> None:
        """Answer in the kernel's place, with busy and idle around the reply as a kernel sends them."""
        self._publish("status", {"execution_state": "busy"}, request.header)
        content = {"status": "ok", **content}
        self.sockets.reply(request.channel, request.identities, self.sockets.make(msg_type, content, request.header))
        if published:
            self._publish(msg_type, content, request.header)
        self._publish("status", {"execution_state": "idle"}, request.header)

    # --- from the kernel ----------------------------------------------------------------------------------------------

    def on_frame(self, frame: memoryview) -> None:
        """Pass a message on to the clients that it concerns."""
        channel, parts = protocol.decode_message(frame)
        if channel not in protocol.MESSAGE_CHANNELS:
            return
        envelope = envelopes.of_kernel(parts)
        if envelope is None:
            self._report_unreadable(parts)
        elif channel == "iopub":
            run = self._runs.get(envelope.parent_id)
            if run is not None and envelope.msg_type == "status" and is_idle(parts[3]):
                run.idle = parts
            elif envelope.msg_type != "iopub_welcome":  # that one was for the supervisor
                self.publish(envelope.msg_type, parts)
        elif (request := self._pending.get(envelope.parent_id)) is not None:
            if channel == request.channel:
                del self._pending[envelope.parent_id]
                self.sockets.reply(channel, request.identities, parts)
            elif channel == "stdin":
                self.sockets.reply(channel, request.identities, parts)

    def on_gap(self, msg_id: str | None, dropped_bytes: int) -> None:
        """Say that output is missing, in the run that wrote it or in all that it may have been."""
        for run in self._runs.values() if msg_id is None else [self._runs.get(msg_id)]:
            if run is not None:
                notice = f"{dropped_bytes} bytes of output were dropped: one cell may say only so much."
                self.print_notice(run.header, notice)

    def forget_requests(self) -> None:
        """The kernel process has ended, and answers nothing that it was asked."""
        self._pending.clear()

    def _report_unreadable(self, parts: list[bytes]) -> None:
        """Tell the cell's author that a message of the kernel's is kept from the clients.

        The reply to the cell may have come before it.
        """
        envelope = envelopes.of_kernel([parts[1], b"{}", b"{}", b"{}"])
        if envelope is not None and (envelope.msg_id in self._runs or envelope.msg_id in self._pending):
            notice = f"A message of {sum(map(len, parts))} bytes is no message of Jupyter's, or too costly."
            self.print_notice(envelope.header, notice)

    # --- from the bridge itself ---------------------------------------------------------------------------------------

    def print_notice(self, parent: dict[str, Any], sentence: str) -> None:
        """Print a sentence of Cellblock's own among the output of the cell whose header is `parent`."""
        self._publish("stream", {"name": "stderr", "text": f"Cellblock: {sentence}\n"}, parent)

    def end_run(self, run: _Run) -> None:
        """Nothing more comes of a run: let its clients stop listening."""
        self._runs.pop(run.msg_id, None)
        if run.idle is not None:
            self.publish("status", run.idle)

    def publish(self, msg_type: str, parts: Sequence[bytes]) -> None:
        """Send serialized parts to all clients."""
        self.sockets.publish(f"kernel.{self._kernel.kernel_id}.{msg_type}", parts)

    def _publish(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        self.publish(msg_type, self.sockets.make(msg_type, content, parent))


class _Run:
    """`sessions.kernels.pending_requests.RequestListener` for one execute_request. Nothing of it has to be committed.

    Its state: its `idle`, at which clients stop listening. It is kept until the supervisor has said what was dropped.
    """

    uncommitted_seq: int | None = None

    def __init__(self, router: MessageRouter, envelope: Envelope) -> None:
        self.msg_id = envelope.msg_id
        self.header = envelope.header
        self.idle: list[bytes] | None = None
        self._router = router

    def on_message(self, seq: int, message: Message) -> None:
        """Do nothing: the router has passed the message on as it came."""

    def on_gap(self, seq: int, dropped_bytes: int) -> None:
        """Do nothing: the router hears of what was lost on the way; what the gateway cannot decode has passed."""

    def on_end(self, end: Done | Died) -> None:
        """Let the clients stop listening, and say so if the kernel has died for want of memory."""
        if isinstance(end, Died) and end.ran and end.cause is Cause.OOM:
            self._router.print_notice(self.header, f"The kernel was ended because {self._router.out_of_memory}")
        self._router.end_run(self)


def _is_restart(content: bytes) -> bool:
    try:
        return bool(json.loads(content).get("restart"))
    except (ValueError, AttributeError):
        return False


def _without_artifacts(parts: list[bytes]) -> list[bytes]:
    """Nobody asks for the files that a cell leaves, so the supervisor need not look for them."""
    try:
        metadata = dict(json.loads(parts[2]))
    except (ValueError, TypeError):
        metadata = {}
    return [*parts[:2], json.dumps({**metadata, "cellblock": {"artifacts": False}}).encode(), *parts[3:]]
