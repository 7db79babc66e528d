"""Tells systemd how the gateway is, as sd_notify(3) says. Where no service manager asks for it, nothing is done.

When the gateway is ready, and what to say of it, is the caller's to know.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from sessions.service import Readiness

_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0


class ServiceManager:
    """The socket at which messages are wanted, if any, and how often signs of life are. No state."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._watchdog_s = _watchdog_s(environ)

    async def follow(self, readiness: Callable[[], Readiness]) -> None:
        """Say when the gateway is ready, what it lacks later on, and that its event loop turns. Does not end."""
        if not self._address:
            return
        has_been_ready = False
        pause_s = min(self._watchdog_s / 2, _LONGEST_PAUSE_S)
        while True:
            now = readiness()
            lines = ["STATUS=" + (_one_line(now.reasons) or "Ready.")]
            if now.ready and not has_been_ready:
                has_been_ready = self._send(*lines, "READY=1", "WATCHDOG=1")
            else:
                self._send(*lines, "WATCHDOG=1")
            await asyncio.sleep(pause_s if has_been_ready else min(_PAUSE_S, pause_s))

    def stopping(self) -> None:
        """Say that it lets runs end, and takes no more."""
        self._send("STATUS=Stopping: runs may end first.", "STOPPING=1")

    def _send(self, *lines: str) -> bool:
        """Whether it was sent: one that finds no room, or nobody, is none of the gateway's troubles."""
        if not self._address:
            return False
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            sock.sendto("\n".join(lines).encode(errors="replace"), self._address)
            return True
        return False


def _one_line(reasons: Sequence[str]) -> str:
    """Without ends of lines: an engine's words could have some, and what is behind one is another message."""
    return " ".join(" ".join(reasons).split())


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Within which time systemd wants signs of life of this process; infinite where it wants none."""
    wanted_of = environ.get("WATCHDOG_PID", str(os.getpid()))
    microseconds = environ.get("WATCHDOG_USEC", "")
    if wanted_of != str(os.getpid()) or not microseconds.isdigit() or not int(microseconds):
        return float("inf")
    return int(microseconds) / 1e6
