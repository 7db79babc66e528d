"""Open files: how many this process may have, for how many connections they do, and what happens when none are left."""

from __future__ import annotations

import errno
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import structlog
from tornado.ioloop import IOLoop

MOST_CONNECTIONS = 1024
"""As many as are served at once where descriptors are no concern."""

FEWEST_CONNECTIONS = 16

_OWN = 64
_PER_SANDBOX = 3
_PAUSE_S = 0.25
_WARNING_PAUSE_S = 60.0
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = structlog.get_logger("cellblock.host")


def descriptor_limit() -> int:
    """How many files this process may have open once `raise_descriptor_limit` was called."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one: the usual 1024 are soon used up by connections, sockets and kernels."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_within(limit: int, sandboxes: int) -> int:
    """For how many connections there are descriptors, beside those of the gateway itself and of its sandboxes."""
    return min(MOST_CONNECTIONS, max(FEWEST_CONNECTIONS, limit - _OWN - _PER_SANDBOX * sandboxes))


def descriptors_for(connections: int, sandboxes: int) -> int:
    """The inverse: the limit with which so many connections are served."""
    return connections + _OWN + _PER_SANDBOX * sandboxes


class ListeningSocket(socket.socket):
    """A socket for tornado that stops accepting for a moment when descriptors have run out.

    Tornado by itself would try again at once, and log a traceback each time. The state: when the shortage was last
    logged, over all sockets.
    """

    on_shortage: Callable[[], None] = staticmethod(lambda: None)
    """Called to close what need not be open."""

    _told_at_s: ClassVar[float | None] = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises BlockingIOError also when no descriptors are left, and then is not called for a while."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _SHORTAGES:
                raise
            self._warn(error)
            self.on_shortage()
            loop = IOLoop.current()
            loop.update_handler(self, 0)
            loop.call_later(_PAUSE_S, self._go_on)
            raise BlockingIOError(errno.EAGAIN, "paused") from error

    def _go_on(self) -> None:
        if self.fileno() >= 0:
            IOLoop.current().update_handler(self, IOLoop.READ)

    @classmethod
    def _warn(cls, error: OSError) -> None:
        now_s = time.monotonic()
        if cls._told_at_s is None or now_s - cls._told_at_s >= _WARNING_PAUSE_S:
            cls._told_at_s = now_s
            consequence = "connections wait until others are closed"
            _log.warning("accepting_paused", reason=error.strerror, consequence=consequence, limit=descriptor_limit())
