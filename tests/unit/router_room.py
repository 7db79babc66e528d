"""A client router with two clients, the kernel whose messages it routes, and what is sent to that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from doubles import ManualClock, message_frame
from jupyter_talk import message

from kernel_image import protocol
from sessions.errors import Unavailable
from sessions.jupyter.client_state import ClientState
from sessions.jupyter.message_queue import Replay
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.router import ClientRouter
from sessions.model import JupyterRequest, RunId

RUN = RunId("run-1")
MSG_ID = "run-1.1.abcd"
HEADER = {"msg_id": "mine", "msg_type": "execute_request", "session": "notebook", "of_mine": [1, {"x": None}]}


def request(client: str = "a", **header: Any) -> JupyterRequest:
    return JupyterRequest({**HEADER, **header}, {}, {}, client)


class Room:
    """A router with clients `a` and `b`, the kernel whose messages it routes, and what is sent to that."""

    def __init__(self) -> None:
        self.replies: list[tuple[RunId, int]] = []
        self.router = ClientRouter(ManualClock(), self.note_reply)
        self.a, self.b = self.router.connect("a"), self.router.connect("b")
        self.sent: list[bytes] = []
        self.arrived: set[str] = set()
        self.is_reachable = True

    def forward(self, msg_id: str, frame: bytes) -> None:
        """As the kernel does."""
        if not self.is_reachable:
            raise Unavailable
        assert protocol.decode_message(frame)[0] in ("shell", "control")
        self.sent.append(frame)
        self.arrived.discard(msg_id)

    def note_arrived(self, msg_id: str) -> None:
        self.arrived.add(msg_id)

    def note_reply(self, run_id: RunId) -> None:
        self.replies.append((run_id, len(self.a.outbox._queue)))

    def say(
        self, msg_type: str, parent_id: str, content: Mapping[str, Any] | None = None, channel: str = "iopub"
    ) -> None:
        frame = message_frame(1, msg_type, parent_id, content, channel=channel)
        self.router.on_frame(protocol.split_number(frame)[1])

    def say_parts(self, *parts: bytes, channel: str = "iopub") -> None:
        self.router.on_frame(memoryview(protocol.encode_message(channel, parts)))

    def ask(self, state: ClientState, msg_type: str = "kernel_info_request", **header: Any) -> str:
        """Returns the msg_id under which the kernel gets it; empty when it does not yet."""
        before = len(self.sent)
        asked = message(msg_type, channel="shell", **header)
        self.router.send_request(state, asked, self)  # type: ignore[arg-type]
        return self.request_ids()[-1] if len(self.sent) > before else ""

    def request_ids(self) -> list[str]:
        return [json.loads(protocol.decode_message(frame)[1][0])["msg_id"] for frame in self.sent]

    def answer(self, msg_id: str) -> None:
        self.say("kernel_info_reply", msg_id, {}, "shell")
        self.idle(msg_id)

    def idle(self, msg_id: str) -> None:
        self.say("status", msg_id, {"execution_state": "idle"})


def told(state: ClientState) -> list[ClientMessage]:
    """What this client has to be told now, taken."""
    messages = []
    while state.outbox._queue:
        item = state.outbox._queue.pop()
        assert not isinstance(item, Replay)
        messages.append(item.message)
    return messages


def types(state: ClientState) -> list[str]:
    return [one.msg_type for one in told(state)]
