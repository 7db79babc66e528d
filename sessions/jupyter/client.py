"""A Jupyter client at a session's kernel: what it asks becomes runs, or goes to the kernel as it is.

What it is told, and in which order, is router.py's and outbox.py's; the wire is the gateway's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import structlog

from sessions.errors import CellblockError, InvalidRequest, NotFound, StoreUnavailable
from sessions.jupyter import messages
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.outbox import Replay
from sessions.jupyter.router import ClientState, ending
from sessions.kernels.messages import decode_object, for_kernel
from sessions.model import (
    JupyterRequest,
    Result,
    RunId,
    RunQuery,
    RunRequest,
    RunStatus,
    Session,
)
from sessions.session.live_session import LiveSession
from sessions.wiring import Parts

_RECENT = timedelta(minutes=2)
_MOST_RECENT = 20
_MAX_CLIENT_CHARACTERS = 256
_MAX_OPTIONS_CHARACTERS = 1 << 20

Begin = Callable[[RunRequest], Awaitable[RunId]]

log = structlog.get_logger()


class ClientConnection:
    """One connection of one client. The state: its seat, the visit that it is there for, and whether it has left."""

    def __init__(self, parts: Parts, begin: Begin, session: LiveSession, seat: ClientState, *, has_name: bool) -> None:
        self._parts = parts
        self._begin = begin
        self._session = session
        self._seat = seat
        self._visit = seat.visit
        self._has_left = False
        self._has_name = has_name

    def __repr__(self) -> str:
        return f"<ClientConnection {self._session.record.session_id} {self._seat!r}>"

    # --- what the client is told --------------------------------------------------------------------------------------

    def on_replaced(self, tell: Callable[[], None]) -> None:
        """Call `tell` when this connection has to end because the same client has another one; it may have already."""
        if self._is_there():
            self._seat.on_replaced = tell
        else:
            tell()

    def _is_there(self) -> bool:
        return not self._has_left and self._seat.visit == self._visit

    async def next(self) -> ClientMessage | Replay | None:
        """The next thing to tell the client, once there is one; None when there is no kernel any more, nor will be.

        None, too, when this connection is over: what there is to be told waits for the next one.
        """
        return await self._seat.outbox.take() if self._is_there() else None

    @property
    def client(self) -> str:
        """Who this is."""
        return self._seat.client

    def told(self, run_id: RunId) -> None:
        """A retelling has been sent to its end."""
        if self._is_there():
            self._seat.outbox.told(run_id)

    @property
    def sent(self) -> int:
        """The number of what was sent last, for `confirm`."""
        return self._seat.outbox.sent

    def confirm(self, number: int) -> None:
        """The client has received everything up to this number."""
        if self._is_there():
            self._seat.outbox.confirm(number)

    def leave(self) -> None:
        """The connection has ended. What the client has asked for goes on."""
        self._has_left = True
        self._session.router.leave(self._seat, self._visit, comes_back=self._has_name)

    # --- what the client asks -----------------------------------------------------------------------------------------

    async def take(self, message: ClientMessage) -> None:
        """Do what a message asks. Raises Unavailable in its kinds, NotFound when the session is over."""
        self._session.touch()
        match (message.channel, message.msg_type):
            case ("shell" | "control", "execute_request"):
                await self._execute(message)
            case ("stdin", "input_reply"):
                self._answer_input(message)
            case ("shell" | "control", "shutdown_request"):
                await self._shut_down(message)
            case ("shell" | "control", "interrupt_request"):
                self._session.interrupt()
                self._reply(message, "interrupt_reply", {"status": "ok"})
            case ("shell" | "control", _):
                await self._pass_on(message)

    async def _execute(self, message: ClientMessage) -> None:
        try:
            request = self._run_request(message)
            await self._begin(request)
        except CellblockError as error:
            # As if it had been run and had failed: whoever waits for the reply hears why.
            refused = Result(RunId(""), RunStatus.CANCELLED, "", error=f"Nothing was run: {error}")
            for answer in ending(message.header, refused):
                self._seat.outbox.put(answer)

    def _run_request(self, message: ClientMessage) -> RunRequest:
        """Raises InvalidRequest."""
        content, metadata = _object(message.content), _object(message.metadata)
        code = content.pop("code", "")
        if not isinstance(code, str):
            raise InvalidRequest("The code of an execute_request must be a string.")
        if len(json.dumps(content)) + len(message.metadata) > _MAX_OPTIONS_CHARACTERS:
            raise InvalidRequest("An execute_request has too much in it beside its code.")
        record = self._session.record
        allow_stdin = content.get("allow_stdin", True)
        jupyter = JupyterRequest(message.header, metadata, {**content, "allow_stdin": allow_stdin}, self._seat.client)
        return RunRequest(
            tenant=record.tenant,
            code=code,
            language=record.language,
            variables={},
            timeout_s=self._parts.limits.max_timeout_s,
            session_id=record.session_id,
            allow_stdin=bool(allow_stdin),
            jupyter=jupyter,
        )

    def _answer_input(self, message: ClientMessage) -> None:
        live = self._session.current
        if live is not None and live.kernel is not None and live.fold.awaits_input:
            header = {**for_kernel(message.header), "msg_id": uuid4().hex}
            live.kernel.pass_on(replace(message, parent_header={}).frame(header))
            live.fold.awaits_input = False

    async def _shut_down(self, message: ClientMessage) -> None:
        """A kernel that is shut down is a session that is deleted; or it restarts."""
        record = self._session.record
        restart = _object(message.content).get("restart") is True
        self._reply(message, "shutdown_reply", {"status": "ok", "restart": restart})
        if restart:
            await self._session.restart()
        else:
            reason = "The session's kernel was shut down before this had ended."
            await self._parts.sessions.delete(record.tenant, record.session_id, reason)

    async def _pass_on(self, message: ClientMessage) -> None:
        kernel = self._session.kernel
        try:
            if kernel is None or not kernel.is_ready():
                kernel = await self._session.answering_kernel()
            self._session.router.ask(self._seat, message, kernel.pass_on)
        except CellblockError as error:
            self._seat.outbox.put(messages.note(f"{message.msg_type} was dropped: {error}", message.header))

    def _reply(self, message: ClientMessage, msg_type: str, content: dict[str, Any]) -> None:
        self._seat.outbox.put(messages.make(msg_type, content, message.header, message.channel))


class JupyterClients:
    """Lets Jupyter clients in."""

    def __init__(self, parts: Parts, begin: Begin) -> None:
        self._parts = parts
        self._begin = begin

    async def attach(self, session: LiveSession, client: str | None) -> ClientConnection:
        """A client comes, or comes back as the `client` that it was. Raises TooManyRequests, NotFound.

        One that this gateway does not know may have been an earlier gateway's: it is told again what it asked there.
        """
        if client is not None and not 0 < len(client) <= _MAX_CLIENT_CHARACTERS:
            client = None
        if session.is_over:
            raise NotFound("There is no kernel by that id.")
        router = session.router
        is_new = client is None or not router.knows(client)
        seat = router.seat(client or uuid4().hex)
        attachment = ClientConnection(self._parts, self._begin, session, seat, has_name=client is not None)
        try:
            if client is not None and is_new:
                await self._replay(session.record, seat)
        except BaseException:
            attachment.leave()
            raise
        return attachment

    async def _replay(self, session: Session, seat: ClientState) -> None:
        missed = [
            live.run_id
            for live in self._parts.runs
            if (live.run.tenant, live.run.session_id) == (session.tenant, session.session_id)
            and live.run.jupyter is not None
            and live.run.jupyter.client == seat.client
        ]
        for run_id in missed:
            seat.outbox.replay(run_id)  # at once: of what is said meanwhile, nothing may come first
        try:
            recent = await self._recent(session, seat.client)
        except StoreUnavailable as error:
            log.warning("recent_runs_not_told", session_id=session.session_id, reason=str(error))
            return
        seat.outbox.replay_first([run_id for run_id in recent if run_id not in missed])

    async def _recent(self, session: Session, client: str) -> list[RunId]:
        """The runs of this client that ended a moment ago, oldest first."""
        since = self._parts.clock.now() - _RECENT
        query = RunQuery(session.tenant, _MOST_RECENT, session_id=session.session_id, created_from=session.created_at)
        recent = []
        for summary in await self._parts.store.list_runs(query):
            if summary.finished_at is not None and summary.finished_at > since:
                record = await self._parts.store.get_run(summary.run_id)
                jupyter = None if record is None else record.run.jupyter
                if jupyter is not None and jupyter.client == client:
                    recent.append(summary.run_id)
        return recent[::-1]


def _object(text: bytes) -> dict[str, Any]:
    try:
        return decode_object(text or b"{}")
    except CellblockError as error:
        raise InvalidRequest("The parts of a message must be JSON objects, and not nested too deeply.") from error
