"""The pending requests of a kernel: who listens to each, and which must be sent again on a new link.

The kernel calls it with decoded messages. The mutable state is the pending requests in order, those that an earlier
gateway may have sent, and the ended ones that are not wholly committed yet.

One run may be sent more than once, when a kernel has not taken it; its msg_id tells which run it is, to which kernel
process it was sent, and the attempts apart: `<run_id>.<generation>.<attempt>`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

from sessions.kernels.messages import Message
from sessions.kernels.outcomes import Cause, Died, Done
from sessions.model import Usage


class RequestListener(Protocol):
    """Receives what comes of a request. `on_end` comes last, and exactly once."""

    @property
    def uncommitted_seq(self) -> int | None:
        """The first frame taken whose content is not yet committed; None when there is none."""
        ...

    def on_message(self, seq: int, message: Message) -> None:
        """A message that answers the request."""
        ...

    def on_gap(self, seq: int, dropped_bytes: int) -> None:
        """Output was lost on the way."""
        ...

    def on_end(self, end: Done | Died) -> None:
        """The request has ended; or the kernel has first, or has not taken the request."""
        ...


def make_msg_id(run_id: str, generation: int) -> str:
    """Make a new msg_id for a run that is sent to this kernel process."""
    return f"{run_id}.{generation}.{uuid4().hex[:8]}"


def generation_of(msg_id: str) -> int:
    """The kernel process that this was sent to; 0 when the msg_id does not say."""
    generation = msg_id.split(".")[1:2]
    return int(generation[0]) if generation and re.fullmatch(r"[0-9]{1,10}", generation[0]) else 0


@dataclass(slots=True)
class _Request:
    """A pending request. `frame` is kept until the supervisor is known to have it; `usage` is what is known of it.

    `number` is its place among everything that was sent to the kernel.
    """

    listener: RequestListener
    frame: bytes | None
    number: int = 0
    usage: Usage | None = None


class PendingRequests:
    """The requests of one kernel, by msg_id."""

    def __init__(self) -> None:
        self._pending: dict[str, _Request] = {}
        self._expected: dict[str, RequestListener] = {}
        self._found: list[tuple[RequestListener, str]] = []
        self._settling: list[RequestListener] = []

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, msg_id: str, listener: RequestListener, frame: bytes, number: int) -> None:
        """A request is pending from now on."""
        self._pending[msg_id] = _Request(listener, frame, number)

    def expect(self, run_id: str, listener: RequestListener) -> None:
        """An earlier gateway may have sent this run."""
        self._expected[run_id] = listener

    def find_expected(self, known: Iterable[str]) -> None:
        """These msg_ids are all that the supervisor has been sent and has taken, in order; a run's last one counts."""
        last = {msg_id.partition(".")[0]: msg_id for msg_id in known}
        for run_id, listener in self._expected.items():
            if (msg_id := last.get(run_id)) is not None:
                self._pending[msg_id] = _Request(listener, None)
                self._found.append((listener, msg_id))
        self._expected.clear()

    def msg_id_of(self, listener: RequestListener) -> str | None:
        """Under which msg_id the supervisor had the run that this listener expects; None when it did not have it."""
        for index, (found, msg_id) in enumerate(self._found):
            if found is listener:
                del self._found[index]  # it is asked for once, and the listener would be kept for as long as the kernel
                return msg_id
        return None

    def forget_all(self) -> None:
        """Call no listener any more."""
        self._pending.clear()
        self._expected.clear()

    def left(self, known: Collection[str]) -> list[tuple[int, bytes]]:
        """Number and frame of what a link that broke has swallowed: whatever the supervisor does not know."""
        frames = []
        for msg_id, request in self._pending.items():
            if request.frame is not None and msg_id not in known:
                frames.append((request.number, request.frame))
            else:
                request.frame = None
        return frames

    def uncommitted_seq(self) -> int | None:
        """The first frame of which not all is committed."""
        self._settling = [listener for listener in self._settling if listener.uncommitted_seq is not None]
        listeners = (*(request.listener for request in self._pending.values()), *self._settling)
        return min((seq for listener in listeners if (seq := listener.uncommitted_seq) is not None), default=None)

    def handle_message(self, seq: int, message: Message) -> None:
        """Pass a message to the listener of its request, if there is one."""
        request = self._pending.get(message.parent_id)
        if request is None:
            return
        request.frame = None
        if message.dropped_bytes:
            request.listener.on_gap(seq, message.dropped_bytes)
        else:
            request.listener.on_message(seq, message)

    def handle_gap(self, seq: int, msg_id: str | None, dropped_bytes: int) -> None:
        """Output of one request, or of whichever are pending, was lost."""
        for request in list(self._pending.values()) if msg_id is None else [self._pending.get(msg_id)]:
            if request is not None:
                request.listener.on_gap(seq, dropped_bytes)

    def end(self, msg_id: str, end: Done | Died) -> None:
        """A request has ended, or was under way when the kernel died."""
        if (request := self._pending.pop(msg_id, None)) is not None:
            self._settling.append(request.listener)
            request.listener.on_end(end)

    def note_usage(self, msg_id: str, usage: Usage | None) -> None:
        """What a request has used, whose files are still to come."""
        if (request := self._pending.get(msg_id)) is not None:
            request.usage = usage

    def refuse(self, msg_ids: Iterable[str], cause: Cause) -> None:
        """These were never run."""
        for msg_id in msg_ids:
            self.end(msg_id, Died(cause, None, None, None, (), ran=False))

    def end_all(self, died: Died) -> None:
        """The kernel is gone, and all requests with it."""
        for msg_id, request in list(self._pending.items()):
            self.end(msg_id, replace(died, usage=died.usage or request.usage))
