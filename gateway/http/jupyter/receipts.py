"""When a Jupyter client is asked, by a ping, whether all that it was sent has arrived.

Where a client leaves Nagle's algorithm on, as tornado's does, a request that it sends just behind a pong waits until
that is acknowledged: 40 ms, if the other end has nothing to send. So it is asked seldom: when it was sent nothing for
a moment; when it has just asked for something, and waits for the answer; and when so much is in doubt that the outbox
would fill up. What is in doubt meanwhile, the outbox keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sessions.jupyter.client import ClientConnection
from sessions.jupyter.messages import ClientMessage, says_state
from sessions.jupyter.outbox import RECEIPT_BYTES, RECEIPT_ITEMS

QUIET_S = 0.1
"""After so long without a message a client is asked."""


class Receipts:
    """Those of one connection.

    The state: the number of the last item that was written, which the outbox counts as sent before; that of the last
    one that the client was asked for; what was written behind that, since when, and when something was last written;
    and the timer that waits for a quiet moment.
    """

    def __init__(self, connection: ClientConnection, ping: Callable[[str], None], quiet_s: float = QUIET_S) -> None:
        self._connection = connection
        self._ping = ping
        self._quiet_s = quiet_s
        self._loop = asyncio.get_running_loop()
        self._written = self._asked = connection.sent
        self._since_s = 0.0
        self._sent_s = 0.0
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def note_sent(self, message: ClientMessage | None, *, is_of_replay: bool = False) -> None:
        """A message, or with None the end of a replay, has been sent: ask now or in a while.

        A replay is one item: its messages by themselves are none.
        """
        self._written += not is_of_replay
        items = self._written - self._asked
        if not items:
            return
        self._sent_s = self._loop.time()
        self._since_s = self._since_s or self._sent_s
        self._bytes += message.size_bytes if message is not None else 0
        is_begun = message is not None and says_state(message, "busy") and self._sent_s - self._since_s >= self._quiet_s
        if is_begun or items >= RECEIPT_ITEMS or self._bytes >= RECEIPT_BYTES:
            self._ask()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._quiet_s, self._on_time)

    def note_pong(self, data: bytes) -> None:
        """The client has answered a ping; one that nobody has sent says nothing."""
        if data.isdigit() and (number := int(data)) <= self._asked:
            self._connection.confirm(number)

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_time(self) -> None:
        self._timer = None
        if not self._since_s:
            return
        left_s = self._sent_s + self._quiet_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._on_time)
        else:
            self._ask()

    def _ask(self) -> None:
        self._asked = self._written
        self._since_s, self._bytes = 0.0, 0
        self._ping(str(self._asked))
