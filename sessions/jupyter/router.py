"""The Jupyter clients of one session's kernel: which client gets which of its messages, and who sent which request.

Replies go to the client that asked, found by the msg_id of the request; iopub goes to every client. A client that
names itself finds what it missed when it comes back. The order of messages to one client is outbox.py's; the wire is
the gateway's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from sessions.errors import TooManyRequests, Unavailable
from sessions.jupyter import messages
from sessions.jupyter.client_state import ClientState
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.request_window import RequestWindow
from sessions.kernels.kernel import Kernel
from sessions.kernels.messages import for_kernel
from sessions.model import JupyterRequest, Result, RunId
from sessions.ports import Clock
from sessions.runs.live_run import LiveRun

MAX_CLIENTS = 32
"""How many clients may be connected to one kernel."""

_MAX_AWAY = 8
_REMEMBERED = 2048
_COMM = "comm_"


@dataclass(slots=True)
class _Run:
    """A run of the session. If a client asked for it: which client, and what of its end that client has been sent.

    The rest of the request may be large, and is not kept.
    """

    client: str | None = None
    header: Mapping[str, Any] | None = None
    has_reply: bool = False
    has_idle: bool = False
    is_aborted: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that was sent to a kernel: whose it is, the client's own header, and the window that it counts in."""

    state: ClientState
    header: Mapping[str, Any]
    window: RequestWindow
    kernel: Kernel


class ClientRouter:
    """Routes messages between a session's kernels, one after the other, and its Jupyter clients.

    The state: each client's `ClientState`; the requests that the kernel has not answered, and the last ones that it
    has; the session's last runs; whether the kernel is down, how many restarts are wanted, and whether clients are
    still to be sent `restarting`, once no run is at work. `last_activity` is when the last message of a kernel came.
    """

    def __init__(self, clock: Clock, on_reply: Callable[[RunId], None]) -> None:
        """`on_reply` is called just before a client is sent the kernel's reply to one of its runs."""
        self.last_activity: datetime | None = None
        self._clock = clock
        self._on_reply = on_reply
        self._states: dict[str, ClientState] = {}
        self._pending: dict[str, _Request] = {}
        self._answered: OrderedDict[str, _Request] = OrderedDict()
        self._runs: OrderedDict[RunId, _Run] = OrderedDict()
        self._is_down = False
        self._restarts_wanted = 0
        self._owes_restarting = False

    def __repr__(self) -> str:
        return f"<ClientRouter {self._states}, {len(self._pending)} pending, {len(self._runs)} runs>"

    # --- connections --------------------------------------------------------------------------------------------------

    def connections(self) -> int:
        """How many clients are connected."""
        return sum(state.is_connected for state in self._states.values())

    def knows(self, client: str) -> bool:
        """Whether this client is connected, or was and may return."""
        return client in self._states

    def connect(self, client: str) -> ClientState:
        """The state of a client that connects; its older connection is replaced. Raises TooManyRequests."""
        state = self._states.get(client) or ClientState(client)
        if not state.is_connected and self.connections() >= MAX_CLIENTS:
            raise TooManyRequests(f"This kernel has {MAX_CLIENTS} clients already, which is as many as it may have.")
        if state.is_connected:
            state.mark_away()
            state.on_replaced()
        state.open_connection()
        self._states.pop(client, None)
        self._states[client] = state
        return state

    def disconnect(self, state: ClientState, connection_number: int, *, comes_back: bool) -> None:
        """A connection has ended. Does nothing if the client has a newer one.

        Of the clients that may return, the last few to leave are kept.
        """
        if state.connection_number != connection_number or self._states.get(state.client) is not state:
            return
        state.mark_away()
        if not comes_back:
            self._remove(state)
        away = [one for one in self._states.values() if not one.is_connected]
        for one in away[:-_MAX_AWAY]:
            self._remove(one)

    def _remove(self, state: ClientState) -> None:
        del self._states[state.client]
        for requests in (self._pending, self._answered):
            for msg_id in [msg_id for msg_id, request in requests.items() if request.state is state]:
                del requests[msg_id]

    # --- to the kernel ------------------------------------------------------------------------------------------------

    def is_asked(self) -> bool:
        """Whether the kernel has a request of a client to answer that is no run, such as a widget's message."""
        return bool(self._pending)

    def send_request(self, state: ClientState, message: ClientMessage, kernel: Kernel) -> None:
        """Send a request to the kernel, under a msg_id of our own; later, when too many of the client's are unanswered.

        Raises TooManyRequests when too many wait. The client is told of one that the kernel cannot be sent.
        """
        window = state.windows[message.channel]
        msg_id = uuid4().hex

        def send_now() -> None:
            self._pending[msg_id] = _Request(state, message.header, window, kernel)
            try:
                kernel.forward(msg_id, replace(message, parent_header={}).frame(for_kernel(message.header, msg_id)))
            except Unavailable as error:
                del self._pending[msg_id]
                window.withdraw(msg_id)
                for told in messages.dropped(message, error):
                    state.outbox.put(told)

        window.add(msg_id, message.size_bytes, send_now)

    # --- from the kernel: `sessions.kernels.kernel.KernelTap` ---------------------------------------------------------

    def on_frame(self, frame: memoryview) -> None:
        """Put a message of the kernel into the outboxes of the clients that it concerns."""
        if not self._states:
            return
        message = messages.parse_kernel_frame(frame)
        if message is None:
            return
        self.last_activity = self._clock.now()
        run_id, run = self._run_of(message.parent_id)
        request = self._pending.get(message.parent_id) or self._answered.get(message.parent_id)
        state = None
        if run_id is not None and run is not None and run.client is not None and run.header is not None:
            state = self._states.get(run.client)
            message = replace(message, parent_header=run.header)
            if message.msg_type == "execute_reply" and not run.has_reply:
                run.has_reply = True
                self._on_reply(run_id)
            run.has_idle = run.has_idle or messages.says_state(message, "idle")
        elif request is not None:
            state = request.state
            request.kernel.note_arrived(message.parent_id)
            if messages.says_state(message, "idle"):
                self._note_answered(message.parent_id, request)
            message = replace(message, parent_header=request.header)
        during = run_id
        if message.msg_type.startswith(_COMM):
            run_id = None  # comm messages are no events: a replay of the run does not have them
        if message.channel == "iopub":
            self._publish(message, run_id, during=during)
        elif state is not None:
            state.outbox.put(message, run_id, during=during)

    def _run_of(self, msg_id: str) -> tuple[RunId | None, _Run | None]:
        """The session's run that was sent under this msg_id (see pending_requests.py).

        A kernel may name whatever it likes: a msg_id that is no run's of this session belongs to none.
        """
        run_id, separator, _ = msg_id.partition(".")
        run = self._runs.get(RunId(run_id)) if separator else None
        return (RunId(run_id), run) if run is not None else (None, None)

    def _note_answered(self, msg_id: str, request: _Request) -> None:
        """The kernel has answered. The request is remembered for a while, as more messages may name it."""
        if self._pending.pop(msg_id, None) is not None:
            self._answered[msg_id] = request
            if len(self._answered) > _REMEMBERED:
                self._answered.popitem(last=False)
            request.window.answered(msg_id)

    def on_gap(self, msg_id: str | None, dropped_bytes: int) -> None:
        """Publish a note that output is missing."""
        run_id, run = self._run_of(msg_id or "")
        header = run.header if run is not None else None
        text = f"output was cut: {dropped_bytes} bytes were dropped on the way"
        self._publish(messages.note(text, header or {}), run_id)

    def _publish(
        self, message: ClientMessage, run_id: RunId | None, *, during: RunId | None = None, keeps_place: bool = False
    ) -> None:
        for state in self._states.values():
            state.outbox.put(message, run_id, during=during, keeps_place=keeps_place)

    # --- from the session: `sessions.session.observer.SessionObserver` ------------------------------------------------

    def run_queued(self, run_id: RunId, request: JupyterRequest | None) -> None:
        """The session has a new run; `request` is the client's, if a client asked for it."""
        self._runs[run_id] = _Run() if request is None else _Run(request.client, request.header)
        while len(self._runs) > _REMEMBERED:
            self._runs.popitem(last=False)

    def run_aborted(self, run_id: RunId) -> None:
        """This run will not be run, because one before it has failed."""
        if (run := self._runs.get(run_id)) is not None:
            run.is_aborted = True

    def run_ended(self, live: LiveRun, result: Result | None) -> None:
        """A run has ended: send what the kernel has not sent of that. `result` is None if it could not be stored."""
        run = self._runs.get(live.run_id)
        if run is None or run.client is None or run.header is None:
            return
        if run.has_reply and run.has_idle:
            return
        asker = self._states.get(run.client)
        answers = [messages.status("idle", run.header)]
        if not run.has_reply:
            answers = messages.run_ending(run.header, result, is_aborted=run.is_aborted)
        run.has_reply = run.has_idle = True
        run_id = live.run_id if result is not None else None  # no replay has an end that is not stored
        for message in answers:
            if message.channel == "iopub":
                self._publish(message, run_id, keeps_place=run_id is None)
            elif asker is not None:
                asker.outbox.put(message, run_id, keeps_place=run_id is None)

    def run_settled(self) -> None:
        """No run is at work: publish a death that was held back until the run's end was sent."""
        if self._owes_restarting:
            self._owes_restarting = False
            self._publish_status("restarting")
            if not self._is_down:
                self._publish_ready()

    def restart_requested(self) -> None:
        """Somebody wants a fresh kernel: the end of this one is no accident."""
        self._restarts_wanted += 1
        self._publish(messages.make("shutdown_reply", {"status": "ok", "restart": True}, {}), None, keeps_place=True)

    def restart_finished(self) -> None:
        """The restart is done, or has failed."""
        self._restarts_wanted -= 1

    def kernel_attached(self, kernel: Kernel) -> None:
        """The session has this kernel now: get its messages."""
        kernel.tap = self

    def kernel_lost(self, *, at_work: bool) -> None:
        """The kernel process has ended, and another will follow. A run `at_work` ends first, for its clients too."""
        if self._is_down:
            return
        self._is_down = True
        self._pending.clear()
        for state in self._states.values():
            for window in state.windows.values():
                window.clear()
        if self._restarts_wanted:
            return
        if at_work:
            self._owes_restarting = True
        else:
            self._publish_status("restarting")

    def kernel_ready(self) -> None:
        """A kernel answers; publish that, if it was down."""
        was_down, self._is_down = self._is_down, False
        if was_down and not self._owes_restarting:
            self._publish_ready()

    def session_ended(self) -> None:
        """There is no kernel any more, nor will there be one."""
        self._publish_status("dead")
        for state in self._states.values():
            state.outbox.close()

    def _publish_ready(self) -> None:
        self._publish_status("starting")
        self._publish_status("idle")

    def _publish_status(self, state: str) -> None:
        self._publish(messages.status(state, {}), None, keeps_place=True)
