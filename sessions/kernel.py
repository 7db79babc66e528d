"""A live kernel as the gateway sees it: the conversation with its supervisor, from the greeting to the end.

What is listened to is decided here: a message counts only when it answers a request that is outstanding. How a
connection gets that far is in greeting.py; which kernel serves which run is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

import structlog

from kernel_image import protocol
from sessions.ends import Cause, Died, Done, died_of, done_of
from sessions.errors import KernelLost, ProtocolViolation
from sessions.messages import Message, RequestBuilder, decode
from sessions.model import KernelId
from sessions.ports import Clock, Link

_MAX_REFUSALS = 16
_RECONNECT_S = 2.0
_ACK_FRAMES = 64
_ACK_BYTES = 1 << 20
_SHARE_OF_TIME = 0.25
_BURST_S = 1.0

log = structlog.get_logger()


class KernelState(StrEnum):
    """`starting` until the kernel behind the supervisor answers; `gone` for good once the supervisor is."""

    STARTING = "starting"
    READY = "ready"
    GONE = "gone"


class RequestListener(Protocol):
    """Whoever sent a request, as the kernel calls it back. `done` or `died` comes last, and exactly once."""

    @property
    def uncommitted_seq(self) -> int | None:
        """The first frame taken whose content is not yet committed; None when there is none."""
        ...

    def on_message(self, seq: int, message: Message) -> None:
        """A message that answers the request."""
        ...

    def on_gap(self, dropped_bytes: int) -> None:
        """Output was lost on the way."""
        ...

    def on_done(self, done: Done) -> None:
        """The request has ended."""
        ...

    def on_died(self, died: Died) -> None:
        """The kernel has ended first."""
        ...


class Kernel:
    """One kernel and the link to its supervisor.

    Its state: the link of the moment, the supervisor's boot, the last frame taken and acknowledged, the outstanding
    requests, and the ended ones of which not all is committed yet. `repr` tells it.
    """

    def __init__(self, kernel_id: KernelId, kernel_name: str, credential: str, clock: Clock) -> None:
        self.kernel_id = kernel_id
        self.kernel_name = kernel_name
        self.state = KernelState.STARTING
        self.limits_seen: Mapping[str, Any] = {}
        self.failed_preloads: Mapping[str, Any] = {}
        self.violation: str | None = None
        self.deaths = 0
        self.credential = credential
        self._clock = clock
        self._builder = RequestBuilder()
        self._link: Link | None = None
        self._boot_id: str | None = None
        self._taken_seq = 0
        self._acknowledged_seq = 0
        self._unacknowledged_bytes = 0
        self._requests: dict[str, RequestListener] = {}
        self._settling: list[RequestListener] = []
        self._refusals = 0
        self._allowance_s = _BURST_S
        self._allowance_at_s = clock.monotonic()
        self._changed = asyncio.Event()
        self._giving_up: asyncio.TimerHandle | None = None
        self._on_change: Callable[[Kernel], None] | None = None

    def __repr__(self) -> str:
        link = "linked" if self._link else "unlinked"
        return f"<Kernel {self.kernel_id[:8]} {self.state} {link}, {len(self._requests)} outstanding>"

    # --- questions and requests ---------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether a request sent now would reach a kernel that answers."""
        return self.state is KernelState.READY and self._link is not None

    def watch(self, on_change: Callable[[Kernel], None]) -> None:
        """Call `on_change` whenever the state, or the number of deaths, has changed."""
        self._on_change = on_change

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once the kernel answers. Raises KernelLost when it ends, or has not come up in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_ready():
                    if self.state is KernelState.GONE:
                        raise KernelLost(self.violation or "The sandbox ended before its kernel was ready.")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise KernelLost(f"The kernel was not ready after {timeout_s:g} s.") from None

    def execute(
        self,
        code: str,
        listener: RequestListener,
        *,
        silent: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Send an execute_request; returns its msg_id. Raises KernelLost when no kernel would take it."""
        if self._link is None or not self.is_ready():
            raise KernelLost("The sandbox ended before the code was sent to it.")
        msg_id, frame = self._builder.execute(code, silent=silent, metadata=metadata)
        self._requests[msg_id] = listener
        self._link.send_binary(frame)
        return msg_id

    def interrupt(self, msg_id: str, grace_s: float) -> None:
        """Interrupt this request; the supervisor kills the kernel when it is still running after `grace_s`."""
        self._send_control(protocol.INTERRUPT, msg_id=msg_id, grace_s=grace_s)

    def acknowledge(self) -> None:
        """Let the supervisor forget what is committed or needs no commit."""
        self._settling = [listener for listener in self._settling if listener.uncommitted_seq is not None]
        listeners = (*self._requests.values(), *self._settling)
        waiting = [seq for listener in listeners if (seq := listener.uncommitted_seq) is not None]
        seq = min(waiting) - 1 if waiting else self._taken_seq
        if seq > self._acknowledged_seq:
            self._acknowledged_seq = seq
            self._unacknowledged_bytes = 0
            self._send_control(protocol.ACK, seq=seq)

    def abandon(self, reason: str) -> None:
        """Give the kernel up: whatever is outstanding has died with it. Does nothing the second time."""
        if self.state is KernelState.GONE:
            return
        self.state = KernelState.GONE
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._send_control(protocol.SHUTDOWN)
        link, self._link = self._link, None
        if link is not None:
            link.close(reason)
        self._fail_all(Died(Cause.GONE, None, None, None, ()))
        self._tell_change()

    # --- the link -----------------------------------------------------------------------------------------------------

    def greet(self, hello: Mapping[str, Any], link: Link) -> bool:
        """Check who is there. On True the link is this kernel's, and an older one has been closed."""
        credential = hello.get("credential")
        known = isinstance(credential, str) and hmac.compare_digest(
            credential.encode("utf-8", "replace"), self.credential.encode()
        )
        boot_id = hello.get("boot_id")
        if not known or hello.get("kernel_id") != self.kernel_id or not isinstance(boot_id, str):
            self.refuse(link, "unknown credential")
            return False
        if hello.get("protocol") != protocol.PROTOCOL_VERSION:
            self.refuse(link, "unknown protocol version: rebuild the kernel image")
            return False
        if self.state is KernelState.GONE:
            self.refuse(link, "this kernel has been given up")
            return False
        if self._boot_id not in (None, boot_id):
            self.abandon("the supervisor has started anew")
            return False
        self._boot_id = boot_id
        limits = hello.get("limits")
        self.limits_seen = limits if isinstance(limits, dict) else {}
        self._take_failed_preloads(hello)
        previous, self._link = self._link, link
        if previous is not None:
            previous.close("replaced by a newer connection")
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        # Not what has been taken: that may not be committed yet. What is sent again is not taken again.
        self._send_control(protocol.WELCOME, acknowledged=self._acknowledged_seq)
        self._tell_change()
        return True

    def refuse(self, link: Link, reason: str) -> None:
        """Turn a connection away. After too many of these the kernel is given up: somebody in there tries to get in."""
        self._refusals += 1
        log.warning("supervisor_refused", kernel_id=self.kernel_id, reason=reason, refusals=self._refusals)
        link.send_text(protocol.encode_control(protocol.REFUSED, reason=reason))
        link.close(reason)
        if self._refusals >= _MAX_REFUSALS:
            self.violate("too many connections with a wrong credential")

    def violate(self, reason: str) -> None:
        """End a kernel whose supervisor breaks the protocol: it is no longer ours."""
        self.violation = f"The sandbox broke the supervisor protocol: {reason}."
        log.warning("protocol_violation", kernel_id=self.kernel_id, reason=reason)
        self.abandon("protocol violation")

    def lost(self, link: Link) -> None:
        """A link has closed. The supervisor may dial again, for a moment."""
        if link is self._link:
            self._link = None
            loop = asyncio.get_running_loop()
            self._giving_up = loop.call_later(_RECONNECT_S, self.abandon, "the supervisor did not come back")
            self._tell_change()

    # --- frames -------------------------------------------------------------------------------------------------------

    def take_binary(self, data: bytes) -> None:
        """Take a numbered Jupyter message; none any more once the kernel has been given up."""
        if self.state is KernelState.GONE:
            return
        seq, frame = protocol.split_number(data)
        if self._is_new(seq, len(data)):
            message = decode(frame)
            listener = self._requests.get(message.parent_id) if message is not None else None
            if message is not None and listener is not None:
                if message.dropped_bytes:
                    listener.on_gap(message.dropped_bytes)
                else:
                    listener.on_message(seq, message)
        self._acknowledge_if_due()

    def take_control(self, fields: Mapping[str, Any]) -> None:
        """Take a numbered control message; none any more once the kernel has been given up."""
        if self.state is KernelState.GONE:
            return
        seq = fields.get("seq")
        if type(seq) is not int or not self._is_new(seq, 0):
            return
        match fields.get("op"):
            case protocol.STATE:
                self._take_failed_preloads(fields)
                self._take_state(fields.get("state"))
            case protocol.DONE:
                listener = self._requests.pop(str(fields.get("msg_id")), None)
                if listener is not None:
                    self._settling.append(listener)
                    listener.on_done(done_of(fields))
            case protocol.DIED:
                self._take_death(fields)
            case protocol.GAP:
                self._take_gap(fields)
        self._acknowledge_if_due()

    def metered(self, take: Callable[..., None], *args: Any) -> float:
        """Take one frame; returns for how many seconds the next one must not be read.

        Whatever a flood is made of, it gets a share of the gateway's time and no more.
        """
        before_s = self._clock.monotonic()
        take(*args)
        now_s = self._clock.monotonic()
        earned_s = (now_s - self._allowance_at_s) * _SHARE_OF_TIME
        self._allowance_s = min(_BURST_S, self._allowance_s + earned_s) - (now_s - before_s)
        self._allowance_at_s = now_s
        return max(0.0, -self._allowance_s / _SHARE_OF_TIME)

    def _is_new(self, seq: int, size_bytes: int) -> bool:
        """Whether this frame is the next one; a repeated one is none, a skipped one breaks the protocol."""
        if seq <= self._taken_seq:
            return False
        if seq != self._taken_seq + 1:
            raise ProtocolViolation(f"A supervisor sent frame {seq} after {self._taken_seq}.")
        self._taken_seq = seq
        self._unacknowledged_bytes += size_bytes
        return True

    def _acknowledge_if_due(self) -> None:
        if self._taken_seq - self._acknowledged_seq >= _ACK_FRAMES or self._unacknowledged_bytes >= _ACK_BYTES:
            self.acknowledge()

    def _take_state(self, state: Any) -> None:
        if state == "idle":
            self.state = KernelState.READY
            self._tell_change()
        elif state == "starting" and self.state is KernelState.READY:
            self.state = KernelState.STARTING
            self._tell_change()
        elif state == "dead":
            self.abandon("the kernel does not start")

    def _take_failed_preloads(self, fields: Mapping[str, Any]) -> None:
        """Reasons by module; said by the first message after the imports, and by every hello from then on."""
        failed = fields.get("failed_preloads")
        if isinstance(failed, dict) and failed:
            self.failed_preloads = failed

    def _take_death(self, fields: Mapping[str, Any]) -> None:
        self.deaths += 1
        self.state = KernelState.STARTING
        never_run = fields.get("never_run")
        self._fail_all(died_of(fields), never_run if isinstance(never_run, list) else [])
        self._tell_change()

    def _take_gap(self, fields: Mapping[str, Any]) -> None:
        msg_id, dropped_bytes = fields.get("msg_id"), fields.get("dropped_bytes")
        if type(dropped_bytes) is not int or not 0 < dropped_bytes < 1 << 53:
            return
        for listener in [self._requests.get(msg_id)] if isinstance(msg_id, str) else list(self._requests.values()):
            if listener is not None:
                listener.on_gap(dropped_bytes)

    def _fail_all(self, died: Died, never_run: list[Any] | None = None) -> None:
        requests, self._requests = self._requests, {}
        self._settling += requests.values()
        for msg_id, listener in requests.items():
            if never_run is not None and msg_id in never_run:
                listener.on_died(Died(died.cause, died.exit_code, died.signal, None, (), ran=False))
            else:
                listener.on_died(died)

    def _send_control(self, op: str, **fields: Any) -> None:
        if self._link is not None:
            self._link.send_text(protocol.encode_control(op, **fields))

    def _tell_change(self) -> None:
        self._changed.set()
        if self._on_change is not None:
            self._on_change(self)
