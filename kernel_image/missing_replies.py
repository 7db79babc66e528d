"""Replies that never come: a kernel that is idle again has answered, or never will.

It is asked something that it answers in order. When that is answered, and the request is not, the reply is made here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable

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
    header = {"msg_id": secrets.token_hex(16), "msg_type": "execute_reply", "version": "5.4"}
    return [json.dumps(header).encode(), request_header, b"{}", json.dumps(MISSING_REPLY).encode()]


class MissingReplies:
    """Requests that are idle without a reply. Its state: what the kernel was asked, and for which request.

    `ask` sends a question and returns its msg_id, None where there is no kernel; `missing` is called with the request.
    """

    def __init__(self, ask: Callable[[], str | None], missing: Callable[[str], None]) -> None:
        self._ask = ask
        self._missing = missing
        self._asked: dict[str, str] = {}

    def expect(self, msg_id: str, is_missing: Callable[[], bool]) -> None:
        """Expect the reply to a request that is idle, and ask the kernel when it does not come soon."""

        def ask() -> None:
            if is_missing() and (question := self._ask()) is not None:
                self._asked[question] = msg_id

        asyncio.get_running_loop().call_later(_GRACE_S, ask)

    def takes(self, channel: str, parent: str) -> bool:
        """Whether a message belongs to a question, and is for nobody else. Its answer says what is missing."""
        if parent not in self._asked:
            return False
        if channel == "shell":
            self._missing(self._asked[parent])
        return True

    def forget(self) -> None:
        """Forget the questions: the kernel that was asked is gone."""
        self._asked.clear()
