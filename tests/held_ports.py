"""Ports of loopback for servers that tests start, which nobody else is given meanwhile.

A port that is chosen, released and bound later may be somebody else's by then: a connection's, or another worker's.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


def hold() -> socket.socket:
    """Hold a free port until this is closed. Servers with SO_REUSEADDR, as all are here, may bind it all the same."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def port_of(held: socket.socket) -> int:
    return int(held.getsockname()[1])


@contextmanager
def held_port() -> Iterator[int]:
    """The same for a block. As long as no server binds it, connections to it are refused."""
    with hold() as held:
        yield port_of(held)
