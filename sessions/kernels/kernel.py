"""A live kernel as the gateway sees it: the conversation with its supervisor, from the hello to the end.

A message counts only when it answers a pending request. A connection is checked in handshake.py first. Which kernel
serves which run is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol
from uuid import uuid4

import structlog

from kernel_image import protocol
from sessions.errors import KernelLost, ProtocolViolation
from sessions.kernels.files import SupervisorFiles
from sessions.kernels.link.frame_numbers import FrameNumbers
from sessions.kernels.link.supervisor_link import SupervisorLink
from sessions.kernels.messages import RequestBuilder, decode, decode_object
from sessions.kernels.outcomes import Cause, Died, died_of, done_of, usage_of
from sessions.kernels.pending_requests import PendingRequests, RequestListener
from sessions.kernels.throttle import Throttle
from sessions.model import JupyterRequest, KernelId, Usage
from sessions.ports import Clock, Link
from sessions.sanitize import cut_utf8, well_formed
from sessions.settings import Timeouts

_MAX_REFUSALS = 16
_ACK_PAUSE_S = 0.05
_LARGEST_COUNT = 1 << 53
_LARGEST_GENERATION = (1 << 31) - 1
_MAX_ID_CHARACTERS = 256
_MAX_REASON_BYTES = 512
_LONGEST_LOGGED = 300

_UNHANDLED = "The gateway could not handle what the sandbox sent, and gave the sandbox up. Its log has the error."

log = structlog.get_logger()


class KernelState(StrEnum):
    """`starting` until the kernel behind the supervisor answers; `gone` for good once the supervisor is gone."""

    STARTING = "starting"
    READY = "ready"
    GONE = "gone"


class KernelTap(Protocol):
    """Receives everything that a kernel sends, before the listener of the request does."""

    def on_frame(self, frame: memoryview) -> None:
        """A Jupyter message in its framing, of which nothing is known. Raises FrameError when the layout is wrong."""
        ...

    def on_gap(self, msg_id: str | None, dropped_bytes: int) -> None:
        """Output of one request, or of whichever are pending, was lost on the way."""
        ...


class Kernel:
    """One kernel and the link to its supervisor.

    The mutable state: the link, the supervisor's boot id, the number of the kernel process (`generation`), the numbers
    of its frames, the pending requests, the kernel's last question, and whether code may have run there. An `adopted`
    kernel was launched by an earlier gateway, and its supervisor is in mid-conversation.
    """

    def __init__(
        self,
        kernel_id: KernelId,
        kernel_name: str,
        credential: str,
        clock: Clock,
        timeouts: Timeouts,
        *,
        adopted: bool = False,
        throttle: Throttle | None = None,
        only_tapped: bool = False,
    ) -> None:
        """`only_tapped`: nobody but the tap reads what the kernel says, so that it is decoded there alone."""
        self.kernel_id = kernel_id
        self.kernel_name = kernel_name
        self.state = KernelState.STARTING
        self.generation = 0
        self.limits_seen: Mapping[str, Any] = {}
        self.failed_preloads: Mapping[str, Any] = {}
        self.violation: str | None = None
        self.last_death: Died | None = None
        self.credential = credential
        self._link = SupervisorLink(kernel_id)
        self.files = SupervisorFiles(self._link.current, timeouts.file_answer_timeout_s)
        self.throttle = throttle or Throttle(clock)
        self.tap: KernelTap | None = None
        self.on_usage_between_runs: Callable[[Usage], None] | None = None
        self.on_fork_wanted: Callable[[int], object] | None = None
        self.on_fork_refused: Callable[[str], None] | None = None
        self.on_death: Callable[[Died], None] | None = None
        self._only_tapped = only_tapped
        self._timeouts = timeouts
        self._adopted = adopted
        self._builder = RequestBuilder()
        self._boot_id: str | None = None
        self._frame_numbers = FrameNumbers()
        self._requests = PendingRequests()
        self._question = ""
        self._asks = True
        self._was_ready = adopted
        self._refusals = 0
        self._start_failure = "The sandbox ended before its kernel was ready."
        self._changed = asyncio.Event()
        self._reconnect_deadline: asyncio.TimerHandle | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self._watchers: list[Callable[[Kernel], None]] = []

    def __repr__(self) -> str:
        link = "linked" if self._link.is_up() else "unlinked"
        return f"<Kernel {self.kernel_id[:8]} {self.state} {link}, {len(self._requests)} pending>"

    # --- questions and requests ---------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether a request sent now would reach a kernel that answers."""
        return self.state is KernelState.READY and self._link.is_up()

    def _is_gone(self) -> bool:
        return self.state is KernelState.GONE

    def is_linked(self) -> bool:
        """Whether its supervisor is connected."""
        return self._link.is_up()

    def watch(self, on_change: Callable[[Kernel], None]) -> None:
        """Call `on_change` whenever the state, the link, or the last death has changed."""
        self._watchers.append(on_change)

    def clear_watchers(self) -> None:
        """Call no watcher any more."""
        self._watchers.clear()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once the kernel answers. Raises KernelLost when it ends, or has not come up in time."""
        await self._wait_until(self.is_ready, timeout_s)

    async def wait_linked(self, timeout_s: float) -> None:
        """Return once its supervisor is connected. Raises KernelLost as `wait_ready` does."""
        await self._wait_until(self.is_linked, timeout_s)

    async def wait_restarted(self, generation: int, timeout_s: float) -> None:
        """Return once a kernel process after this one answers. Raises KernelLost as `wait_ready` does."""
        await self._wait_until(lambda: self.generation > generation and self.is_ready(), timeout_s)

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        if condition():
            return
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    if self.state is KernelState.GONE:
                        raise KernelLost(self.violation or self._start_failure)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise KernelLost(f"The kernel was not ready after {timeout_s:g} s.") from None

    def execute(
        self,
        msg_id: str,
        code: str,
        listener: RequestListener,
        *,
        silent: bool = False,
        allow_stdin: bool = False,
        metadata: Mapping[str, Any] | None = None,
        jupyter: JupyterRequest | None = None,
    ) -> None:
        """Send an execute_request; again when the link breaks before it has arrived.

        Raises KernelLost when no kernel would take it.
        """
        frame = self._builder.execute(
            msg_id, code, silent=silent, allow_stdin=allow_stdin, metadata=metadata, jupyter=jupyter
        )
        self.execute_frame(msg_id, frame, listener)

    def execute_frame(self, msg_id: str, frame: bytes, listener: RequestListener) -> None:
        """Send an execute_request that is framed already, under its own msg_id; otherwise as `execute` does."""
        if not self.is_ready():
            raise KernelLost("The sandbox ended before the code was sent to it.")
        self._requests.add(msg_id, listener, frame, self._link.send_request(frame))

    def expect(self, run_id: str, listener: RequestListener) -> None:
        """Listen to what comes of a run that an earlier gateway may have sent. Before the supervisor dials in."""
        self._requests.expect(run_id, listener)

    def msg_id_of(self, listener: RequestListener) -> str | None:
        """Under which msg_id the supervisor had the run that this listener expects; None when it did not have it."""
        return self._requests.msg_id_of(listener)

    def answer_input(self, value: str) -> None:
        """Answer the input_request that the running code waits in. Raises Unavailable."""
        msg_id = uuid4().hex
        self.forward(msg_id, self._builder.input_reply(msg_id, value, self.question()))

    def question(self) -> dict[str, str]:
        """The field in the header of an input_reply that says which input_request it answers: the last one."""
        return {protocol.QUESTION_ID: self._question} if self._question else {}

    @property
    def asks(self) -> bool:
        """Whether it may wait for an answer: not if an earlier gateway has given one and it asked nothing since."""
        return self._asks

    def takes_messages(self) -> bool:
        """Whether `forward` takes a message for a kernel that answers, now or when the supervisor has dialled again."""
        return self.state is KernelState.READY and self._link.can_forward()

    def forward(self, msg_id: str, frame: bytes) -> None:
        """Send a message that is no execute_request; again when the link breaks before it has arrived.

        It is for this kernel process, and goes with it. Raises Unavailable when there is no link, and it cannot wait.
        """
        self._link.forward(msg_id, frame, self.generation)

    def note_arrived(self, msg_id: str) -> None:
        """The kernel answers this message that was forwarded."""
        self._link.note_arrived(msg_id)

    def restart(self) -> None:
        """Have the kernel process killed and a fresh one forked; pending requests die with it."""
        self._link.send_control_later(protocol.RESTART, self.generation)

    def interrupt(self, msg_id: str | None, grace_s: float) -> None:
        """Interrupt this request; the supervisor kills the kernel when it is still running after `grace_s`.

        None interrupts whatever runs, and nothing is killed.
        """
        self._link.send_control_later(protocol.INTERRUPT, self.generation, msg_id=msg_id, grace_s=grace_s)

    def stop_files(self, msg_id: str) -> None:
        """Have no more files of this request sent; its end follows."""
        self._link.send_control_later(protocol.STOP_FILES, 0, msg_id=msg_id)

    def tell_forked(self, number: int, **fields: Any) -> None:
        """Answer the supervisor that wants a kernel: with `pid` and `failed_preloads`, or `why` there is none."""
        self._link.send_control(protocol.FORKED, number=number, **fields)

    def acknowledge(self) -> None:
        """Let the supervisor forget what is committed or needs no commit."""
        self._forget_ack_timer()
        seq = self._frame_numbers.acknowledge(self._requests.uncommitted_seq())
        if seq is not None:
            self._link.send_control(protocol.ACK, seq=seq)

    def acknowledge_soon(self) -> None:
        """The same, of several ended runs together: nobody waits for it, and each time costs both ends."""
        if self._frame_numbers.is_due():
            self.acknowledge()
        elif self._ack_timer is None and not self._is_gone():
            self._ack_timer = asyncio.get_running_loop().call_later(_ACK_PAUSE_S, self.acknowledge)

    def _forget_ack_timer(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None

    def abandon(self, reason: str) -> None:
        """Shut the kernel down and close its link; pending requests die with it. Does nothing the second time."""
        if self.state is KernelState.GONE:
            return
        self._link.send_control(protocol.SHUTDOWN)
        self._close_link(reason)
        self._requests.end_all(Died(Cause.GONE, None, None, None, ()))
        self._notify_change()

    def hand_over(self, reason: str) -> None:
        """Close the link, and leave the kernel and its requests to the next gateway. No listener is called."""
        self._watchers.clear()
        if self._ack_timer is not None:
            self.acknowledge()
        self._requests.forget_all()
        if self.state is not KernelState.GONE:
            self._close_link(reason)

    def _close_link(self, reason: str) -> None:
        self.state = KernelState.GONE
        self._forget_ack_timer()
        if self._reconnect_deadline is not None:
            self._reconnect_deadline.cancel()
        self._link.close(reason)
        self.files.handle_link_lost()

    # --- the link -----------------------------------------------------------------------------------------------------

    def handle_hello(self, hello: Mapping[str, Any], link: Link) -> bool:
        """Check who has connected. On True the link is this kernel's, and an older one was closed."""
        boot_id = hello.get("boot_id")
        why_not = self._why_not(hello, boot_id)
        if why_not is not None or not isinstance(boot_id, str):
            self.refuse(link, why_not or "no boot id")
            return False
        if self._boot_id not in (None, boot_id):
            self.abandon("the supervisor has started anew")
            return False
        if self._boot_id is None and self._adopted:
            self._join(hello)
        if self._is_gone():
            self.refuse(link, "this kernel does not start")
            return False
        self._boot_id = boot_id
        limits = hello.get("limits")
        self.limits_seen = limits if isinstance(limits, dict) else {}
        sent = [*_ids(hello.get("finished")), *_ids(hello.get("outstanding"))]
        self._requests.find_expected(sent)
        self._handle_failed_preloads(hello)
        if (previous := self._link.replace(link, self._frame_numbers.taken_seq)) is not None:
            self.files.handle_link_lost()
            previous.close("replaced by a newer connection")
        if self._reconnect_deadline is not None:
            self._reconnect_deadline.cancel()
            self._reconnect_deadline = None
        # Not the last frame handled: it may not be committed yet. Frames that are sent again are skipped.
        self._link.send_control(protocol.WELCOME, acknowledged=self._frame_numbers.acknowledged_seq)
        self._link.send_again(hello, _count(hello.get("generation")), self._requests.left(sent))
        self._notify_change()
        return True

    def _why_not(self, hello: Mapping[str, Any], boot_id: Any) -> str | None:
        """Why this hello is refused; None when it is not."""
        credential = hello.get("credential")
        known = isinstance(credential, str) and hmac.compare_digest(
            credential.encode("utf-8", "replace"), self.credential.encode()
        )
        if not known or hello.get("kernel_id") != self.kernel_id or not isinstance(boot_id, str):
            return "unknown credential"
        if hello.get("protocol") != protocol.PROTOCOL_VERSION:
            if self._adopted:
                self.abandon("its kernel image is of another version of Cellblock")
            return "unknown protocol version: rebuild the kernel image"
        return "this kernel has been given up" if self._is_gone() else None

    def _join(self, hello: Mapping[str, Any]) -> None:
        """Begin in mid-conversation: what the supervisor has forgotten, an earlier gateway has committed."""
        self._frame_numbers.begin_after(max(0, _count(hello.get("oldest_seq")) - 1))
        self._handle_generation(hello)
        self._handle_state(hello.get("state"))
        self._asks = hello.get("question", "") is not None
        self._note_question(hello.get("question"))

    def refuse(self, link: Link, reason: str) -> None:
        """Refuse a connection. After too many of these the kernel is abandoned: code in the sandbox guesses."""
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

    def handle_link_closed(self, link: Link) -> None:
        """A link has closed. The supervisor may dial again for a while."""
        if self._link.is_current(link):
            is_barren = self._link.lose(self._frame_numbers.taken_seq)
            self.files.handle_link_lost()
            if is_barren:
                self.violate("its connection broke again and again before anything new had come of it")
                return
            loop = asyncio.get_running_loop()
            self._reconnect_deadline = loop.call_later(
                self._timeouts.reconnect_timeout_s, self.abandon, "the supervisor did not come back"
            )
            self._notify_change()

    def fail(self) -> None:
        """End a kernel that has sent what the gateway cannot handle, by a mistake of ours."""
        self.violation = _UNHANDLED
        self.abandon("a frame that could not be handled")

    # --- frames -------------------------------------------------------------------------------------------------------

    def handle_binary(self, data: bytes) -> None:
        """Handle a numbered Jupyter message; nothing once the kernel is abandoned."""
        if self.state is KernelState.GONE:
            return
        seq, frame = protocol.split_number(data)
        if seq == 0:
            self.files.handle_frame(frame)
            return
        if self._frame_numbers.is_new(seq, len(data)):
            message = None if self._only_tapped else decode(frame)
            if message is None or message.channel == "stdin":
                self._look_for_question(frame)
            if self.tap is not None:
                self._tap(lambda tap: tap.on_frame(frame))
            if message is not None:
                self._requests.handle_message(seq, message)
        self._acknowledge_if_due()

    def _look_for_question(self, frame: memoryview) -> None:
        if protocol.channel_of(frame) == b"stdin":
            self._asks = True
            try:
                self._note_question(decode_object(protocol.decode_message(frame)[1][0]).get("msg_id"))
            except ProtocolViolation:
                self._question = ""

    def _note_question(self, msg_id: Any) -> None:
        self._question = msg_id if isinstance(msg_id, str) and len(msg_id) <= _MAX_ID_CHARACTERS else ""

    def _tap(self, call: Callable[[KernelTap], None]) -> None:
        """An error in the tap must not keep the message from the request's listener."""
        if self.tap is not None:
            try:
                call(self.tap)
            except protocol.FrameError:
                raise
            except Exception:
                log.exception("message_not_passed_on", kernel_id=self.kernel_id)

    def handle_control(self, fields: Mapping[str, Any]) -> None:
        """Handle a numbered control message; nothing once the kernel is abandoned."""
        if self.state is KernelState.GONE:
            return
        seq, op = fields.get("seq"), fields.get("op")
        if isinstance(op, str) and op.startswith("file_"):
            self.files.handle_control(fields)
            return
        if type(seq) is not int or not self._frame_numbers.is_new(seq, 0):
            return
        if op in (protocol.FORK_WANTED, protocol.FORK_REFUSED):
            self._handle_fork(op, fields)
        else:
            self._handle_numbered(seq, op, fields)
        self._acknowledge_if_due()

    def _handle_fork(self, op: str, fields: Mapping[str, Any]) -> None:
        number = _count(fields.get("number"))
        if op == protocol.FORK_WANTED and self.on_fork_wanted is not None and number:
            self.on_fork_wanted(number)
        elif op == protocol.FORK_REFUSED:
            why = repr(_text(fields.get("why")) or "no reason")[1:-1]
            log.warning("fork_refused", kernel_id=self.kernel_id, why=why, counts=not self._was_ready)
            # Code that has run there can make the next process differ, and must not speak for other sandboxes.
            if self.on_fork_refused is not None and not self._was_ready:
                self.on_fork_refused(why)

    def _handle_numbered(self, seq: int, op: Any, fields: Mapping[str, Any]) -> None:
        msg_id = fields.get("msg_id")
        match op:
            case protocol.STATE:
                self._handle_failed_preloads(fields)
                self._handle_generation(fields)
                self._handle_state(fields.get("state"), fields.get("reason"))
            case protocol.DONE:
                self._requests.end(str(msg_id), done_of(fields))
            case protocol.USAGE if msg_id is None:
                self._handle_usage_between_runs(usage_of(fields))
            case protocol.USAGE:
                self._requests.note_usage(str(msg_id), usage_of(fields))
            case protocol.DIED:
                self._handle_death(fields)
            case protocol.REJECTED:
                self._requests.refuse([str(msg_id)], Cause.REJECTED)
            case protocol.FAILED:
                log.warning(
                    "frame_failed_in_sandbox",
                    kernel_id=self.kernel_id,
                    msg_id=_text(msg_id),
                    why=_text(fields.get("why")),
                )
                self._requests.end(str(msg_id), Died(Cause.FAILED, None, None, None, ()))
            case protocol.GAP:
                dropped_bytes = _count(fields.get("dropped_bytes"))
                if dropped_bytes:
                    of = msg_id if isinstance(msg_id, str) else None
                    self._tap(lambda tap: tap.on_gap(of, dropped_bytes))
                    self._requests.handle_gap(seq, of, dropped_bytes)

    def _handle_usage_between_runs(self, usage: Usage | None) -> None:
        """What code has used that it left running. Acknowledged at once: the next gateway must not count it again."""
        if usage is not None and self.on_usage_between_runs is not None:
            self.on_usage_between_runs(usage)
        self.acknowledge()

    def _acknowledge_if_due(self) -> None:
        if self._frame_numbers.is_due():
            self.acknowledge()

    def _handle_state(self, state: Any, reason: Any = None) -> None:
        if state == "idle":
            self.state = KernelState.READY
            self._was_ready = True
            self._notify_change()
        elif state == "starting" and self.state is KernelState.READY:
            self.state = KernelState.STARTING
            self._notify_change()
        elif state == "dead":
            why = f": {cut_utf8(well_formed(reason), _MAX_REASON_BYTES)}" if isinstance(reason, str) and reason else ""
            self._start_failure = f"The kernel `{self.kernel_name}` does not start{why}."
            self.abandon("the kernel does not start")

    def _handle_generation(self, fields: Mapping[str, Any]) -> None:
        generation = _count(fields.get("generation"))
        if 0 < generation <= _LARGEST_GENERATION:  # what the database has room for
            if generation != self.generation:
                self._question = ""
            self.generation = generation

    def _handle_failed_preloads(self, fields: Mapping[str, Any]) -> None:
        """Reasons by module; said by the first message after the imports, and by every hello from then on."""
        failed = fields.get("failed_preloads")
        if isinstance(failed, dict) and failed:
            self.failed_preloads = failed

    def _handle_death(self, fields: Mapping[str, Any]) -> None:
        """Only the named requests have died: later ones belong to the next kernel process."""
        self.state = KernelState.STARTING
        died = self.last_death = died_of(fields)
        if self.on_death is not None:
            self.on_death(died)
        self._requests.end(str(fields.get("msg_id")), died)
        self._requests.refuse(_ids(fields.get("never_run")), died.cause)
        self._notify_change()

    def _notify_change(self) -> None:
        self._changed.set()
        for watcher in list(self._watchers):
            watcher(self)


def _ids(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value[:_LONGEST_LOGGED] if isinstance(value, str) else None


def _count(value: Any) -> int:
    """A number from 1 on, or 0 for whatever is none."""
    return value if type(value) is int and 0 < value < _LARGEST_COUNT else 0
