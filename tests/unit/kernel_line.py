"""A kernel and its supervisor over a link that records every frame, and a listener that records every call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from doubles import ManualClock, RecordingLink, hello, message_frame

from kernel_image import protocol
from sessions.kernels.kernel import Kernel
from sessions.kernels.link.handshake import Handshake
from sessions.kernels.messages import Message
from sessions.kernels.outcomes import Died, Done
from sessions.model import KernelId
from sessions.settings import Timeouts

CREDENTIAL = "s3cret"


@dataclass
class RecordingListener:
    """A request listener that records its calls; the test sets what it has not committed yet."""

    uncommitted_seq: int | None = None
    messages: list[tuple[int, Message]] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    ends: list[Done | Died] = field(default_factory=list)

    def on_message(self, seq: int, message: Message) -> None:
        self.messages.append((seq, message))

    def on_gap(self, seq: int, dropped_bytes: int) -> None:
        del seq
        self.gaps.append(dropped_bytes)

    def on_end(self, end: Done | Died) -> None:
        self.ends.append(end)


class Line:
    """A kernel and, driven by the test, its supervisor. `seq` is the number of the supervisor's last frame."""

    def __init__(self, timeouts: Timeouts = Timeouts(), *, adopted: bool = False) -> None:
        self.clock = ManualClock()
        self._timeouts = timeouts
        self.kernel = Kernel(KernelId("k1"), "python3", CREDENTIAL, self.clock, timeouts, adopted=adopted)
        self.seq = 0
        self.dial()

    def dial(self) -> None:
        self.link = RecordingLink()
        self.handshake = Handshake(self.kernel, self.link, self._timeouts.hello_timeout_s)

    def greet(self, **fields: Any) -> None:
        self.handshake.on_text(hello(**{"kernel_id": "k1", "credential": CREDENTIAL, **fields}))

    def say(self, op: str, **fields: Any) -> None:
        self.seq += 1
        self.handshake.on_text(protocol.encode_control(op, seq=self.seq, **fields))

    def publish(self, parent_id: str, msg_type: str = "stream", **content: Any) -> None:
        self.seq += 1
        self.handshake.on_binary(message_frame(self.seq, msg_type, parent_id, content))

    def execute(self, code: str, listener: RecordingListener) -> str:
        msg_id = uuid4().hex
        self.kernel.execute(msg_id, code, listener)
        return msg_id

    def ready(self) -> Line:
        self.greet()
        self.say("state", state="idle")
        return self
