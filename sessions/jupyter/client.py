"""A Jupyter client's connection to a session: its cells become runs, its other requests go to the kernel unchanged.

Which messages it is sent, and in which order, is router.py's and outbox.py's; the wire is the gateway's.
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
from sessions.jupyter.client_state import ClientState
from sessions.jupyter.message_queue import Replay
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.router import ClientRouter
from sessions.kernels.messages import decode_object, for_kernel
from sessions.model import JupyterRequest, Result, RunId, RunQuery, RunRequest, RunStatus, Session, SessionView
from sessions.session.live_session import LiveSession
from sessions.session.registry import Registry
from sessions.wiring import Wiring

_RECENT = timedelta(minutes=2)
_MOST_RECENT = 20
_MAX_CLIENT_CHARACTERS = 256
_MAX_OPTIONS_CHARACTERS = 1 << 20

Begin = Callable[[RunRequest], Awaitable[RunId]]

log = structlog.get_logger()


class ClientConnection:
    """One connection of one client.

    The state: the client's `ClientState`, the number of this connection among the client's, and whether it is closed.
    """

    def __init__(
        self,
        clients: JupyterClients,
        session: LiveSession,
        state: ClientState,
        *,
        has_name: bool,
        traceparent: str | None = None,
    ) -> None:
        """Its cells become runs of the trace of `traceparent`."""
        self._clients = clients
        self._session = session
        self._router = session.observers.find(ClientRouter)
        self._state = state
        self._connection_number = state.connection_number
        self._is_closed = False
        self._has_name = has_name
        self._traceparent = traceparent

    def __repr__(self) -> str:
        return f"<ClientConnection {self._session.record.session_id} {self._state!r}>"

    # --- to the client ------------------------------------------------------------------------------------------------

    def on_replaced(self, callback: Callable[[], None]) -> None:
        """Call `callback` once a newer connection of the same client replaces this one; at once, if one has already."""
        if self._is_current():
            self._state.on_replaced = callback
        else:
            callback()

    def _is_current(self) -> bool:
        return not self._is_closed and self._state.connection_number == self._connection_number

    async def next_item(self) -> ClientMessage | Replay | None:
        """The next message or replay to send, once there is one; None when the session has ended.

        None, too, when this connection is closed or replaced: what is left waits for the client's next connection.
        """
        return await self._state.outbox.get() if self._is_current() else None

    async def next_ahead(self) -> ClientMessage | None:
        """The next message that goes ahead of the rest of a replay, once there is one; None as in `next_item`."""
        return await self._state.outbox.get_ahead() if self._is_current() else None

    @property
    def client(self) -> str:
        """The client's name; a random one, if it gave none."""
        return self._state.client

    def replay_sent(self, run_id: RunId) -> None:
        """The replay of this run has been sent to its end."""
        if self._is_current():
            self._state.outbox.replay_sent(run_id)

    @property
    def sent(self) -> int:
        """The number of the last item that was sent, for `confirm`."""
        return self._state.outbox.sent

    def confirm(self, number: int) -> None:
        """The client has received everything up to this number."""
        if self._is_current():
            self._state.outbox.confirm(number)

    def disconnect(self) -> None:
        """The connection has ended. Whatever the client has requested goes on."""
        self._is_closed = True
        self._router.disconnect(self._state, self._connection_number, comes_back=self._has_name)

    # --- from the client -----------------------------------------------------------------------------------------

    async def handle_message(self, message: ClientMessage) -> None:
        """Act on a message of the client. Raises Unavailable in its kinds, NotFound when the session is over."""
        self._session.touch()
        match (message.channel, message.msg_type):
            case ("shell" | "control", "execute_request"):
                await self._execute(message)
            case ("stdin", "input_reply"):
                self._answer_input(message)
            case ("shell" | "control", "shutdown_request"):
                await self._shut_down(message)
            case ("shell" | "control", "interrupt_request"):
                self._clients.interrupt(self._session)
                self._reply(message, "interrupt_reply", {"status": "ok"})
            case ("shell" | "control", _):
                await self._pass_on(message)

    async def _execute(self, message: ClientMessage) -> None:
        try:
            request = self._run_request(message)
            await self._clients.begin(request)
        except CellblockError as error:
            # As if it had run and failed: the reply says why.
            refused = Result(RunId(""), RunStatus.CANCELLED, "", error=f"Nothing was run: {error}")
            for answer in messages.run_ending(message.header, refused):
                self._state.outbox.put(answer)

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
        jupyter = JupyterRequest(message.header, metadata, {**content, "allow_stdin": allow_stdin}, self._state.client)
        return RunRequest(
            tenant=record.tenant,
            code=code,
            language=record.language,
            variables={},
            timeout_s=self._clients.wiring.environment.limits.max_timeout_s,
            session_id=record.session_id,
            allow_stdin=bool(allow_stdin),
            jupyter=jupyter,
            traceparent=self._traceparent,
        )

    def _answer_input(self, message: ClientMessage) -> None:
        live = self._session.current
        if live is not None and live.kernel is not None and live.awaits_input:
            msg_id = uuid4().hex
            header = {**for_kernel(message.header, msg_id), **live.kernel.question()}
            live.kernel.forward(msg_id, replace(message, parent_header={}).frame(header))
            live.fold.awaits_input = False

    async def _shut_down(self, message: ClientMessage) -> None:
        """Delete the session whose kernel is shut down; or restart it, if the client says so."""
        record = self._session.record
        restart = _object(message.content).get("restart") is True
        self._reply(message, "shutdown_reply", {"status": "ok", "restart": restart})
        if restart:
            try:
                await self._session.restart()
            except CellblockError as error:
                self._state.outbox.put(messages.note(str(error), message.header))
        else:
            reason = "The session's kernel was shut down before this had ended."
            await self._clients.sessions.delete(record.tenant, record.session_id, reason)

    async def _pass_on(self, message: ClientMessage) -> None:
        kernel = self._session.kernel
        try:
            if kernel is None or not kernel.takes_messages():
                kernel = await self._session.answering_kernel()
            self._router.send_request(self._state, message, kernel)
        except CellblockError as error:
            for told in messages.dropped(message, error):
                self._state.outbox.put(told)

    def _reply(self, message: ClientMessage, msg_type: str, content: dict[str, Any]) -> None:
        self._state.outbox.put(messages.make(msg_type, content, message.header, message.channel))


class JupyterClients:
    """Connects Jupyter clients to sessions, each of which has a `ClientRouter` from the beginning."""

    def __init__(self, wiring: Wiring, sessions: Registry, begin: Begin) -> None:
        """`begin` admits a run; see `Service.begin`."""
        self.wiring = wiring
        self.sessions = sessions
        self.begin = begin
        sessions.observe_each(lambda session: ClientRouter(wiring.environment.clock, session.note_reply))

    def view(self, session: LiveSession) -> SessionView:
        """The session as it is now, with when its kernel last said something and how many clients are connected."""
        view, router = session.view(), session.observers.find(ClientRouter)
        last_activity = max(view.last_activity, router.last_activity or view.last_activity)
        return replace(view, last_activity=last_activity, connections=router.connections())

    def interrupt(self, session: LiveSession) -> None:
        """Interrupt the run at work, as Ctrl-C would; where none computes, what the kernel does for a client."""
        live, kernel = session.current, session.kernel
        computes = live is not None and not live.concluded.done()
        if not computes and kernel is not None and session.observers.find(ClientRouter).is_asked():
            kernel.interrupt(None, grace_s=0)
        else:
            session.interrupt()

    async def attach(
        self, session: LiveSession, client: str | None, traceparent: str | None = None
    ) -> ClientConnection:
        """Connect a client, or reconnect the one of this name. Raises TooManyRequests, NotFound.

        A name that this gateway does not know may be from an earlier gateway: its recent runs are replayed.
        """
        if client is not None and not 0 < len(client) <= _MAX_CLIENT_CHARACTERS:
            client = None
        if session.is_over:
            raise NotFound("There is no kernel by that id.")
        router = session.observers.find(ClientRouter)
        is_new = client is None or not router.knows(client)
        state = router.connect(client or uuid4().hex)
        connection = ClientConnection(self, session, state, has_name=client is not None, traceparent=traceparent)
        try:
            if client is not None and is_new:
                await self._replay(session.record, state)
        except BaseException:
            connection.disconnect()
            raise
        return connection

    async def _replay(self, session: Session, state: ClientState) -> None:
        missed = [
            live.run_id
            for live in self.wiring.active_runs
            if (live.run.tenant, live.run.session_id) == (session.tenant, session.session_id)
            and live.run.jupyter is not None
            and live.run.jupyter.client == state.client
        ]
        # Before anything is awaited, so that no message that comes meanwhile is sent first.
        for run_id in missed:
            state.outbox.replay(run_id)
        try:
            recent = await self._recent(session, state.client)
        except StoreUnavailable as error:
            log.warning("recent_runs_not_replayed", session_id=session.session_id, reason=str(error))
            return
        state.outbox.replay_first([run_id for run_id in recent if run_id not in missed])

    async def _recent(self, session: Session, client: str) -> list[RunId]:
        """This client's runs that ended in the last two minutes, oldest first."""
        since = self.wiring.environment.clock.now() - _RECENT
        query = RunQuery(session.tenant, _MOST_RECENT, session_id=session.session_id, created_from=session.created_at)
        recent = []
        for summary in await self.wiring.environment.store.list_runs(query):
            if summary.finished_at is not None and summary.finished_at > since:
                record = await self.wiring.environment.store.get_run(summary.run_id)
                jupyter = None if record is None else record.run.jupyter
                if jupyter is not None and jupyter.client == client:
                    recent.append(summary.run_id)
        return recent[::-1]


def _object(text: bytes) -> dict[str, Any]:
    try:
        return decode_object(text or b"{}")
    except CellblockError as error:
        raise InvalidRequest("The parts of a message must be JSON objects, and not nested too deeply.") from error
