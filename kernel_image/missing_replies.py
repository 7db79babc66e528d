"""Ends of requests that never come whole: `idle` without the reply, or the reply without `idle`.

The kernel is asked something that it answers in order. When that is answered, and the half is still missing, the
request's end is made here. Code can say all this itself, so a request is asked about once, however often it is idle.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any

_GRACE_S = 0.5
"""The reply and `idle` come over different sockets, so either may be the first."""

MISSING_REPLY = {
    "status": "error",
    "ename": "MissingReply",
    "evalue": "the kernel is idle again and has not told how the code ended",
    "traceback": [],
    "execution_count": 0,
}
"""The content of a reply that the kernel owes."""


def missing_reply(request_header: bytes) -> list[bytes]:
    """The parts of an `execute_reply` in the kernel's place."""
    return _message("execute_reply", request_header, MISSING_REPLY)


def missing_idle(request_header: bytes) -> list[bytes]:
    """The parts of an idle `status` in the kernel's place."""
    return _message("status", request_header, {"execution_state": "idle"})


def _message(msg_type: str, request_header: bytes, content: dict[str, Any]) -> list[bytes]:
    header = {"msg_id": secrets.token_hex(16), "msg_type": msg_type, "version": "5.4"}
    return [json.dumps(header).encode(), request_header, b"{}", json.dumps(content).encode()]


class MissingReplies:
    """Requests of which half an end has come. Its state: those that are waited for, and what the kernel was asked.

    `ask` sends a question and returns its msg_id, None where there is no kernel; `missing` is called with the request
    and the channel on which the other half has not come.
    """

    def __init__(self, ask: Callable[[], str | None], missing: Callable[[str, str], None]) -> None:
        self._ask = ask
        self._missing = missing
        self._expected: set[str] = set()
        self._asked: dict[str, str] = {}

    def expect(self, msg_id: str, is_missing: Callable[[], bool]) -> None:
        """Expect the other half of a request's end, and ask the kernel when it does not come soon."""
        if msg_id in self._expected:
            return

        def ask() -> None:
            if is_missing() and (question := self._ask()) is not None:
                self._asked[question] = msg_id
            else:
                self._expected.discard(msg_id)

        self._expected.add(msg_id)
        asyncio.get_running_loop().call_later(_GRACE_S, ask)

    def takes(self, channel: str, parent: str) -> bool:
        """Whether a message belongs to a question, and is for nobody else.

        Whatever comes on a channel in answer says that nothing of the request is still to come there.
        """
        if parent not in self._asked:
            return False
        self._missing(self._asked[parent], channel)
        return True

    def forget(self) -> None:
        """Forget the questions: the kernel that was asked is gone."""
        self._expected.clear()
        self._asked.clear()
