"""Binds the port early, to report a port in use before anything is built, and listens late.

A bound socket that does not listen yet refuses connections, so nobody waits for a gateway that is still starting.
"""

from __future__ import annotations

import errno
import socket

from gateway.host.descriptors import ListeningSocket
from sessions.errors import SetUpFailed

_BACKLOG = 256


class BoundSockets:
    """The addresses of one host name on one port. The state is the list of sockets, empty once closed."""

    def __init__(self, sockets: list[ListeningSocket]) -> None:
        self._sockets = sockets

    @classmethod
    def bind(cls, host: str, port: int) -> BoundSockets:
        """Bind every address of `host`; port 0 takes a free one. Raises SetUpFailed."""
        bound: list[ListeningSocket] = []
        try:
            for family, kind, proto, _, address in _addresses(host, port):
                taken = bound[0].getsockname()[1] if bound else address[1]
                sock = ListeningSocket(family, kind, proto)
                bound.append(sock)
                sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address[0], taken, *address[2:]))
        except OSError as error:
            for sock in bound:
                sock.close()
            raise SetUpFailed(_sentence(error, host, port)) from error
        return cls(bound)

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self._sockets[0].getsockname()[1])

    def listen(self) -> list[ListeningSocket]:
        """Accept connections from now on. Raises SetUpFailed."""
        for sock in self._sockets:
            try:
                sock.listen(_BACKLOG)
            except OSError as error:
                raise SetUpFailed(_sentence(error, str(sock.getsockname()[0]), self.port)) from error
        return self._sockets

    def close(self) -> None:
        """Free the port."""
        for sock in self._sockets:
            sock.close()
        self._sockets = []


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int, *tuple[int, ...]]]]:
    """Each address once. A machine without IPv6 may still resolve localhost to ::1, which is left out."""
    found = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    usable = [entry for entry in dict.fromkeys(found) if entry[0] != socket.AF_INET6 or _has_ipv6()]
    return usable or found  # type: ignore[return-value]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _sentence(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use: stop what listens there, or choose another (PORT=8001 make serve)."
    if error.errno == errno.EACCES:
        return f"Port {port} needs privileges that this user does not have: choose one above 1023."
    return f"Cannot listen on {host}, port {port}: {error.strerror or error}."
