"""What is kept for one Jupyter client of a session's kernel, connected or away. Who gets a message is router.py's."""

from __future__ import annotations

from collections.abc import Callable

from sessions.jupyter.outbox import Outbox
from sessions.jupyter.request_window import RequestWindow


class ClientState:
    """One client: its outbox and its unanswered requests. A client that disconnects and may return keeps it.

    The state: the outbox; whether a connection is open (`on_replaced` is called when another takes its place); the
    requests by channel; and `connection_number`, which counts the client's connections, so that one that was replaced
    does not act for the next.
    """

    def __init__(self, client: str) -> None:
        self.client = client
        self.outbox = Outbox()
        self.connection_number = 0
        self.is_connected = False
        self.on_replaced: Callable[[], None] = _nothing
        self.windows = {"shell": RequestWindow(), "control": RequestWindow()}

    def __repr__(self) -> str:
        return f"<ClientState {'connected' if self.is_connected else 'away'} {self.outbox!r} {self.windows}>"

    def open_connection(self) -> None:
        """Count a new connection, and forget the callback of the one before."""
        self.is_connected, self.on_replaced = True, _nothing
        self.connection_number += 1

    def mark_away(self) -> None:
        """The client has no connection: queue again what it may not have received."""
        self.is_connected = False
        self.outbox.requeue_unconfirmed()


def _nothing() -> None:
    pass
