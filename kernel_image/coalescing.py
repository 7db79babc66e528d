"""Coalescing of output: `stream` messages that follow each other within milliseconds are joined into one.

A message that comes alone is not held up. To keep the order, whoever sends another message calls `flush` first.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from kernel_image.kernel_messages import JSON_ERRORS

_PAUSE_S = 0.005
_SMALL_BYTES = 8 << 10
_MOST_CHARACTERS = 32 << 10
_PARTS = 4

R = TypeVar("R")


class Coalescer(Generic[R]):
    """Joins the `stream` messages of one stream of one request.

    Its state: the request and stream that the held texts belong to, the first message (whose headers the joined one
    gets), the texts, the timer that sends them, and when the last message was sent.
    """

    def __init__(self, send: Callable[[list[bytes], R], None]) -> None:
        """`send` sends a `stream` message of a request."""
        self._send = send
        self._request: R | None = None
        self._name = ""
        self._parts: list[bytes] = []
        self._texts: list[str] = []
        self._characters = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at_s = 0.0

    def add(self, parts: list[bytes], request: R) -> bool:
        """Hold a `stream` message back. False when the caller is to flush and send it as it is."""
        if len(parts) != _PARTS or len(parts[3]) > _SMALL_BYTES:
            return False
        if self._timer is None and time.monotonic() - self._sent_at_s >= _PAUSE_S:
            self._sent_at_s = time.monotonic()
            return False
        try:
            content = json.loads(parts[3])
            name, text = content["name"], content["text"]
        except JSON_ERRORS:
            return False
        if not isinstance(name, str) or not isinstance(text, str):
            return False
        if self._request is not request or self._name != name:
            self.flush()
        if self._timer is None:
            self._request, self._name, self._parts = request, name, parts
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, self.flush)
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= _MOST_CHARACTERS:
            self.flush()
        return True

    def flush(self) -> None:
        """Send what is held back."""
        if self._timer is None or self._request is None:
            return
        self._timer.cancel()
        self._timer = None
        request, self._request = self._request, None
        # ASCII, so that lone surrogates pass as escapes.
        content = json.dumps({"name": self._name, "text": "".join(self._texts)}).encode()
        parts = [*self._parts[:3], content] if len(self._texts) > 1 else self._parts
        self._texts, self._characters = [], 0
        self._sent_at_s = time.monotonic()
        self._send(parts, request)
