"""Between local clients and the kernel: requests go in, replies go to who asked, what is published goes to all.

Requests about the kernel's life, interrupt and shutdown, are answered here: they must work while the kernel is deaf,
whatever its language. Whether there is a kernel to talk to is bridge.py's business.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from gateway.local_jupyter import envelopes
from gateway.local_jupyter.client_sockets import ClientSockets
from gateway.local_jupyter.connection import Connection
from gateway.local_jupyter.envelopes import Envelope
from gateway.local_jupyter.relayed_kernel import RelayedKernel
from kernel_image import protocol
from kernel_image.kernel_messages import is_idle
from sessions.kernels.messages import Message
from sessions.kernels.outcomes import Cause, Died, Done

_MAX_ASKED = 16_384
_MAX_REQUEST_BYTES = 128 << 20

log = structlog.get_logger()


class Life(Protocol):
    """Who decides how long the kernel lives."""

    def on_shutdown_request(self, *, restart: bool) -> None:
        """A client wants the kernel to end; it has its answer."""
        ...

    def on_kernel_died(self, died: Died) -> None:
        """The kernel process has ended."""
        ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request without a reply so far: where it came in, who asked, and its header."""

    channel: str
    identities: Sequence[bytes]
    header: dict[str, Any]


class MessageRouter:
    """`RelayListener`, and what listens to the clients' sockets. Its state: requests without a reply, and live runs."""

    def __init__(
        self,
        connection: Connection,
        make_kernel: Callable[[MessageRouter], RelayedKernel],
        life: Life,
        memory_bytes: int,
    ) -> None:
        """Listens at once, and reads requests when it is told to. Raises SetUpFailed."""
        self.kernel = make_kernel(self)
        self.sockets = ClientSockets(connection, self._take_request)
        self._life = life
        self.out_of_memory = f"it ran out of memory: `limits.memory` is {memory_bytes / (1 << 20):g} MiB."
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        self._runs: dict[str, _Run] = {}

    # --- from clients -------------------------------------------------------------------------------------------------

    def _take_request(self, channel: str, identities: list[bytes], parts: list[bytes]) -> None:
        envelope = envelopes.of_client(parts)
        if envelope is None:
            return
        asked = _Asked(channel, identities, envelope.header)
        match envelope.msg_type:
            case "interrupt_request":
                self.kernel.interrupt_whatever_runs()
                self._answer(asked, "interrupt_reply", {})
            case "shutdown_request":
                restart = _is_restart(parts[3])
                self._answer(asked, "shutdown_reply", {"restart": restart}, published=True)
                self._life.on_shutdown_request(restart=restart)
            case _:
                self._forward(asked, envelope, parts)

    def _forward(self, asked: _Asked, envelope: Envelope, parts: list[bytes]) -> None:
        if len(parts) > protocol.MAX_PARTS or sum(map(len, parts)) > _MAX_REQUEST_BYTES:
            log.warning("request_not_passed_on", msg_type=envelope.msg_type, reason="it is too large")
            return
        if envelope.msg_type.endswith("_request"):
            self._asked[envelope.msg_id] = asked
            if len(self._asked) > _MAX_ASKED:
                self._asked.popitem(last=False)
        if envelope.msg_type == "execute_request" and asked.channel == "shell":
            run = self._runs[envelope.msg_id] = _Run(self, envelope)
            self.kernel.run(envelope.msg_id, _without_artifacts(parts), run)
        else:
            self.kernel.send(asked.channel, parts)

    def _answer(self, asked: _Asked, msg_type: str, content: dict[str, Any], *, published: bool = False) -> None:
        """Answer in the kernel's place, busy and idle around it as a kernel has them."""
        self._publish("status", {"execution_state": "busy"}, asked.header)
        content = {"status": "ok", **content}
        self.sockets.reply(asked.channel, asked.identities, self.sockets.make(msg_type, content, asked.header))
        if published:
            self._publish(msg_type, content, asked.header)
        self._publish("status", {"execution_state": "idle"}, asked.header)

    # --- from the kernel ----------------------------------------------------------------------------------------------

    def on_message(self, channel: str, parts: list[bytes]) -> None:
        """Pass a message on to whom it concerns."""
        envelope = envelopes.of_kernel(parts)
        if envelope is None:
            self._tell_not_passed_on(parts)
        elif channel == "iopub":
            run = self._runs.get(envelope.parent_id)
            if run is not None and envelope.msg_type == "status" and is_idle(parts[3]):
                run.idle = parts
            elif envelope.msg_type != "iopub_welcome":  # that one was for the supervisor
                self.publish(envelope.msg_type, parts)
        elif (asked := self._asked.get(envelope.parent_id)) is not None:
            if channel == asked.channel:
                del self._asked[envelope.parent_id]
                self.sockets.reply(channel, asked.identities, parts)
            elif channel == "stdin":
                self.sockets.reply(channel, asked.identities, parts)

    def on_kernel_died(self, died: Died) -> None:
        """Nothing more comes of what it was asked."""
        self._asked.clear()
        self._life.on_kernel_died(died)

    def _tell_not_passed_on(self, parts: list[bytes]) -> None:
        envelope = envelopes.of_kernel([parts[1], b"{}", b"{}", b"{}"])
        if envelope is not None and envelope.msg_id in self._asked:
            size_bytes = sum(map(len, parts))
            self.say(envelope.header, f"A message of {size_bytes} bytes is no message of Jupyter's, or too costly.")

    # --- of our own ---------------------------------------------------------------------------------------------------

    def say(self, parent: dict[str, Any], sentence: str) -> None:
        """Tell the user something, among the output of the cell that it is about."""
        self._publish("stream", {"name": "stderr", "text": f"Cellblock: {sentence}\n"}, parent)

    def end_run(self, run: _Run) -> None:
        """Nothing more comes of a run."""
        self._runs.pop(run.msg_id, None)
        if run.idle is not None:
            self.publish("status", run.idle)

    def publish(self, msg_type: str, parts: Sequence[bytes]) -> None:
        """Send serialized parts to all clients."""
        self.sockets.publish(f"kernel.{self.kernel.kernel_id}.{msg_type}", parts)

    def _publish(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        self.publish(msg_type, self.sockets.make(msg_type, content, parent))


class _Run:
    """`sessions.kernels.outstanding.RequestListener` for one execute_request. Nothing of it has to be committed.

    Its state: its `idle`, at which clients stop listening. That is kept until the supervisor has said what was dropped.
    """

    uncommitted_seq: int | None = None

    def __init__(self, exchange: MessageRouter, envelope: Envelope) -> None:
        self.msg_id = envelope.msg_id
        self.idle: list[bytes] | None = None
        self._exchange = exchange
        self._header = envelope.header

    def on_message(self, seq: int, message: Message) -> None:
        """Messages go another way."""

    def on_gap(self, seq: int, dropped_bytes: int) -> None:
        """More was said than a run may say."""
        del seq
        self._exchange.say(
            self._header, f"{dropped_bytes} bytes of output were dropped: one cell may say only so much."
        )

    def on_done(self, done: Done) -> None:
        """The client may stop listening."""
        del done
        self._exchange.end_run(self)

    def on_died(self, died: Died) -> None:
        """The kernel has died of it, or before it."""
        if died.ran and died.cause is Cause.OOM:
            self._exchange.say(self._header, f"The kernel was ended because {self._exchange.out_of_memory}")
        self._exchange.end_run(self)


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
