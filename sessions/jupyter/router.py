"""The Jupyter clients of one session's kernel: who is told what of all that the kernel says, and who has asked what.

Replies go to whoever asked, by the msg_id of what they answer; iopub goes to everybody. A client that is away, and
says who it is, finds what it has missed when it comes back. How messages get here and out is decided elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from sessions.errors import TooManyRequests
from sessions.jupyter import messages
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.outbox import Outbox
from sessions.jupyter.request_window import RequestWindow
from sessions.kernels.kernel import Kernel, KernelState
from sessions.kernels.messages import for_kernel
from sessions.model import JupyterRequest, Result, RunId, RunStatus
from sessions.ports import Clock
from sessions.runs.live_run import LiveRun

MAX_CLIENTS = 32
"""Connected to one kernel."""

_MAX_AWAY = 8
_REMEMBERED = 2048
_STATUS_BYTES = 256
_COMM = "comm_"


class ClientState:
    """One client's place: what it is to be told, and what it has asked. It stays for a while when the client leaves.

    The state: the outbox, whether somebody is there (`on_replaced` is called when that has to go), the requests, and
    `visit`, by which a connection knows whether the client that is there is still its own.
    """

    def __init__(self, client: str) -> None:
        self.client = client
        self.outbox = Outbox()
        self.visit = 0
        self.is_taken = False
        self.on_replaced: Callable[[], None] = _nothing
        self.lanes = {"shell": RequestWindow(), "control": RequestWindow()}

    def __repr__(self) -> str:
        return f"<ClientState {'taken' if self.is_taken else 'away'} {self.outbox!r} {self.lanes}>"


@dataclass(slots=True)
class _Run:
    """A run of the session. Of one that a client has asked for: whose it is, and what of its end has been told.

    All the rest of what was asked may be large, and is not kept.
    """

    client: str | None = None
    header: Mapping[str, Any] | None = None
    has_reply: bool = False
    has_idle: bool = False
    is_aborted: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request under way: whose it is, by which header that knows it, and in which lane it went."""

    seat: ClientState
    header: Mapping[str, Any]
    lane: RequestWindow


class ClientRouter:
    """`sessions.kernels.kernel.KernelTap` of a session's kernels, one after the other.

    The state: the seats by client; the requests under way, and the last that were; the session's last runs. And whether
    the kernel is down, how many want that, whether code is at work, and whether a death is to be told when it is not.
    `on_reply` is called when a client is about to be told the kernel's reply to a run of its own.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.last_activity: datetime | None = None
        self.on_reply: Callable[[RunId], None] = lambda _: None
        self._seats: dict[str, ClientState] = {}
        self._asked: dict[str, _Asked] = {}
        self._answered: OrderedDict[str, _Asked] = OrderedDict()
        self._runs: OrderedDict[RunId, _Run] = OrderedDict()
        self._is_down = False
        self._restarts_wanted = 0
        self._is_at_work = False
        self._owes_restarting = False

    def __repr__(self) -> str:
        return f"<ClientRouter {self._seats}, {len(self._asked)} asked, {len(self._runs)} runs>"

    # --- coming and going ---------------------------------------------------------------------------------------------

    def connections(self) -> int:
        """How many clients are there."""
        return sum(seat.is_taken for seat in self._seats.values())

    def knows(self, client: str) -> bool:
        """Whether this client has a seat."""
        return client in self._seats

    def seat(self, client: str) -> ClientState:
        """The place of a client; whoever sits there as the same client has to go. Raises TooManyRequests."""
        seat = self._seats.get(client) or ClientState(client)
        if not seat.is_taken and self.connections() >= MAX_CLIENTS:
            raise TooManyRequests(f"This kernel has {MAX_CLIENTS} clients already, which is as many as it may have.")
        if seat.is_taken:
            self._vacate(seat)
            seat.on_replaced()
        seat.is_taken, seat.on_replaced = True, _nothing
        seat.visit += 1
        self._seats.pop(client, None)
        self._seats[client] = seat
        return seat

    def leave(self, seat: ClientState, visit: int, *, comes_back: bool) -> None:
        """A connection has ended: its client has gone, unless it has another. The last few that may return are kept."""
        if seat.visit != visit or self._seats.get(seat.client) is not seat:
            return
        self._vacate(seat)
        if not comes_back:
            self._remove(seat)
        away = [one for one in self._seats.values() if not one.is_taken]
        for one in away[:-_MAX_AWAY]:
            self._remove(one)

    def _remove(self, seat: ClientState) -> None:
        del self._seats[seat.client]
        for requests in (self._asked, self._answered):
            for msg_id in [msg_id for msg_id, asked in requests.items() if asked.seat is seat]:
                del requests[msg_id]

    @staticmethod
    def _vacate(seat: ClientState) -> None:
        seat.is_taken = False
        seat.outbox.put_back()

    def end(self) -> None:
        """There is no kernel any more, nor will there be one."""
        self._publish_status("dead")
        for seat in self._seats.values():
            seat.outbox.close()

    # --- asking -------------------------------------------------------------------------------------------------------

    def note_run(self, run_id: RunId, request: JupyterRequest | None) -> None:
        """This is a run of the session; a client has asked for it by this request, if one has."""
        self._runs[run_id] = _Run() if request is None else _Run(request.client, request.header)
        while len(self._runs) > _REMEMBERED:
            self._runs.popitem(last=False)

    def ask(self, seat: ClientState, message: ClientMessage, send: Callable[[bytes], None]) -> None:
        """Pass a request on, under a msg_id of our own; when as many are unanswered as may be, later, in order.

        Raises TooManyRequests when too many wait.
        """
        lane = seat.lanes[message.channel]
        msg_id = uuid4().hex

        def go() -> None:
            self._asked[msg_id] = _Asked(seat, message.header, lane)
            send(replace(message, parent_header={}).frame({**for_kernel(message.header), "msg_id": msg_id}))

        lane.add(msg_id, message.size_bytes, go)

    # --- hearing the kernel -------------------------------------------------------------------------------------------

    def on_frame(self, frame: memoryview) -> None:
        """Pass on what the kernel says."""
        if not self._seats:
            return
        message = messages.heard(frame)
        if message is None:
            return
        self.last_activity = self._clock.now()
        run_id, run = self._run_of(message.parent_id)
        asked = self._asked.get(message.parent_id) or self._answered.get(message.parent_id)
        seat = None
        if run_id is not None and run is not None and run.client is not None and run.header is not None:
            seat = self._seats.get(run.client)
            message = replace(message, parent_header=run.header)
            if message.msg_type == "execute_reply" and not run.has_reply:
                run.has_reply = True
                self.on_reply(run_id)
            run.has_idle = run.has_idle or _is_idle(message)
        elif asked is not None:
            seat = asked.seat
            if _is_idle(message):
                self._note_answered(message.parent_id, asked)
            message = replace(message, parent_header=asked.header)
        if message.msg_type.startswith(_COMM):
            run_id = None  # no event tells of it: where its run is told again, it is not
        if message.channel == "iopub":
            self._publish(message, run_id)
        elif seat is not None:
            seat.outbox.put(message, run_id)

    def _run_of(self, msg_id: str) -> tuple[RunId | None, _Run | None]:
        """The run that was sent under this msg_id (see outstanding.py), if it is one of the session's.

        A kernel may name whatever it likes: what names no run of ours is about none.
        """
        run_id, separator, _ = msg_id.partition(".")
        run = self._runs.get(RunId(run_id)) if separator else None
        return (RunId(run_id), run) if run is not None else (None, None)

    def _note_answered(self, msg_id: str, asked: _Asked) -> None:
        """It is remembered for a while: a kernel may have more to say to it."""
        if self._asked.pop(msg_id, None) is not None:
            self._answered[msg_id] = asked
            if len(self._answered) > _REMEMBERED:
                self._answered.popitem(last=False)
            asked.lane.answered(msg_id)

    def on_gap(self, msg_id: str | None, dropped_bytes: int) -> None:
        """Say that output is missing."""
        run_id, run = self._run_of(msg_id or "")
        header = run.header if run is not None else None
        text = f"output was cut: {dropped_bytes} bytes were dropped on the way"
        self._publish(messages.note(text, header or {}), run_id)

    def _publish(self, message: ClientMessage, run_id: RunId | None) -> None:
        for seat in self._seats.values():
            seat.outbox.put(message, run_id)

    # --- what the session tells ---------------------------------------------------------------------------------------

    def abort(self, run_id: RunId) -> None:
        """This run will not be run, because one before it has failed."""
        if (run := self._runs.get(run_id)) is not None:
            run.is_aborted = True

    def run_begins(self) -> None:
        """Code is at work: if its kernel dies, its end is told first."""
        self._is_at_work = True

    def run_ended(self, live: LiveRun, result: Result | None) -> None:
        """A run has ended; `result` is None where that could not be stored. What the kernel has not told is told."""
        run = self._runs.get(live.run_id)
        if run is None or run.client is None or run.header is None:
            return
        if run.has_reply and run.has_idle:
            return
        asker = self._seats.get(run.client)
        answers = [messages.status("idle", run.header)]
        if not run.has_reply:
            answers = ending(run.header, result, is_aborted=run.is_aborted)
        run.has_reply = run.has_idle = True
        run_id = live.run_id if result is not None else None  # an end that is not stored, no retelling tells
        for message in answers:
            if message.channel == "iopub":
                self._publish(message, run_id)
            elif asker is not None:
                asker.outbox.put(message, run_id)

    def run_is_over(self) -> None:
        """Nothing is at work: a death that came meanwhile can be told."""
        self._is_at_work = False
        if self._owes_restarting:
            self._owes_restarting = False
            self._publish_status("restarting")
            if not self._is_down:
                self._publish_is_back()

    def expect_restart(self) -> None:
        """Somebody wants a fresh kernel: that the one there is ends is no accident."""
        self._restarts_wanted += 1
        self._publish(messages.make("shutdown_reply", {"status": "ok", "restart": True}, {}), None)

    def restart_is_over(self) -> None:
        """There is one, or it has failed."""
        self._restarts_wanted -= 1

    def kernel_changed(self, kernel: Kernel) -> None:
        """The state of the kernel, or its link, is another one now."""
        if kernel.state is not KernelState.READY:
            self.kernel_lost()
        elif self._is_down:
            self.kernel_is_back()

    def kernel_lost(self) -> None:
        """The kernel process has ended; there will be another one. Does nothing the second time."""
        if self._is_down:
            return
        self._is_down = True
        self._asked.clear()
        for seat in self._seats.values():
            for lane in seat.lanes.values():
                lane.forget()
        if self._restarts_wanted:
            return
        if self._is_at_work:
            self._owes_restarting = True
        else:
            self._publish_status("restarting")

    def kernel_is_back(self) -> None:
        """A kernel answers again."""
        was_down, self._is_down = self._is_down, False
        if was_down and not self._owes_restarting:
            self._publish_is_back()

    def _publish_is_back(self) -> None:
        self._publish_status("starting")
        self._publish_status("idle")

    def _publish_status(self, state: str) -> None:
        self._publish(messages.status(state, {}), None)


def _nothing() -> None:
    pass


def _is_idle(message: ClientMessage) -> bool:
    return message.msg_type == "status" and len(message.content) < _STATUS_BYTES and b'"idle"' in message.content


def ending(
    parent_header: Mapping[str, Any],
    result: Result | None,
    *,
    is_aborted: bool = False,
    has_error: bool = False,
) -> list[ClientMessage]:
    """How the end of a run is told where its kernel has not told it. Where it `has_error`, that has been told."""
    count = result.execution_count if result is not None else None
    if result is not None and result.status is RunStatus.OK:
        content: dict[str, Any] = {"status": "ok", "execution_count": count, "user_expressions": {}, "payload": []}
        answers = []
    elif is_aborted:
        content = {"status": "aborted"}
        answers = [messages.status("busy", parent_header)]
    else:
        name, value, traceback = _error_of(result)
        error = {"ename": name, "evalue": value, "traceback": traceback}
        content = {"status": "error", "execution_count": count, "user_expressions": {}, "payload": [], **error}
        answers = [] if has_error else [messages.make("error", error, parent_header)]
    return [
        *answers,
        messages.make("execute_reply", content, parent_header, "shell"),
        messages.status("idle", parent_header),
    ]


def _error_of(result: Result | None) -> tuple[str, str, list[str]]:
    if result is None:
        return "EndNotStored", "The run has ended, but that could not be stored.", []
    if result.exception is not None:
        return result.exception.name, result.exception.value, list(result.exception.traceback)
    name = "".join(word.capitalize() for word in result.status.value.split("_"))
    value = result.error or f"The run ended as {result.status.value}."
    return name, value, [f"{name}: {value}"]
