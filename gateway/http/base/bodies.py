"""Bodies of requests while they come in: how much of one is kept and read, and what all, with messages, may take.

Only memory is counted here; what a body may hold, and what is answered when it is too large, the handlers know.
"""

from __future__ import annotations

from tornado.httputil import HTTPHeaders

from sessions.errors import Unavailable

DRAIN_FACTOR = 8
"""A body up to so many times the limit is read to its end, so that the client gets to see the 413."""

BUFFERED_BODIES = 16
"""Request bodies that may be in memory at once, if all are as large as the limit allows; of smaller ones more."""


class BufferedBodies:
    """Counts the bytes of request bodies and WebSocket messages that are in memory, over all connections.

    `request_bytes` is `limits.request_bytes`, which all of them are measured by.
    """

    def __init__(self, request_bytes: int) -> None:
        self._limit_bytes = BUFFERED_BODIES * request_bytes
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<BufferedBodies {self._bytes}>"

    def take(self, size_bytes: int) -> bool:
        """Count these too, unless that would be more than there is room for."""
        if self._bytes + size_bytes > self._limit_bytes:
            return False
        self._bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """These are gone."""
        self._bytes -= size_bytes


def no_room() -> Unavailable:
    """What is answered when there is no room for a body or a message."""
    return Unavailable("Too many requests are being read; nothing was run: try again in a moment.")


class IncomingBody:
    """The body of one request. Its state: what is kept of it, and how many bytes have come."""

    def __init__(self, among: BufferedBodies, request_bytes: int) -> None:
        self._among = among
        self._request_bytes = request_bytes
        self._kept = bytearray()
        self.received_bytes = 0

    def __repr__(self) -> str:
        return f"<IncomingBody {len(self._kept)} of {self.received_bytes}>"

    def __bytes__(self) -> bytes:
        return bytes(self._kept)

    def is_drained(self, size_bytes: int) -> bool:
        """Whether a body of this size is read to its end though nobody wants it."""
        return size_bytes <= DRAIN_FACTOR * self._request_bytes

    def count(self, chunk: bytes) -> None:
        """This has come."""
        self.received_bytes += len(chunk)

    def keep(self, chunk: bytes) -> bool:
        """Add what has come, unless all bodies together take too much memory then."""
        if not self._among.take(len(chunk)):
            return False
        self._kept += chunk
        return True

    def forget(self) -> None:
        """Give the memory back."""
        self._among.release(len(self._kept))
        self._kept.clear()


def declared_bytes(headers: HTTPHeaders) -> int:
    """Content-Length, or 0 where there is none; tornado refuses malformed ones after this."""
    length = headers.get("Content-Length", "0")
    return int(length[:18]) if length.isascii() and length[:18].isdigit() else 0
