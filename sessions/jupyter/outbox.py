"""What one Jupyter client has still to be told, in order and in bounded memory, also while it is away. Pure.

A run whose messages may not all have arrived, or are too many to be kept, is told again from its events as a whole:
its messages give way to one `Replay`. So a slow client and one that comes back lose nothing, and see nothing twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from sessions.jupyter.messages import ClientMessage, note
from sessions.model import RunId

LIMIT_BYTES = 4 << 20

_WINDOW = 256
"""So much may be on its way at once: for what is not confirmed is kept, and is sent again to whoever comes back."""

_MOST_RETOLD = 1000


@dataclass(frozen=True, slots=True)
class Replay:
    """Tell this run from its events: what it has shown until now, instead of all that was said of it before."""

    run_id: RunId


@dataclass(frozen=True, slots=True)
class _Said:
    """A message, and the run that it is about, if it is about one."""

    message: ClientMessage
    run_id: RunId | None


@dataclass(frozen=True, slots=True)
class _Sent:
    """Something that was taken out, and that the client may not have received."""

    number: int
    run_id: RunId | None
    message: ClientMessage | None


class Outbox:
    """The state: what is to be sent, the runs that are told from their events, and what was sent and is not confirmed.

    `sent` is the number of what was taken out last. One run at a time is being told. What is to be sent is looked
    through when it takes more than `_full_bytes`: above the limit for as long as one message alone takes that much.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.sent = 0
        self._limit_bytes = limit_bytes
        self._full_bytes = limit_bytes
        self._items: deque[_Said | Replay] = deque()
        self._size_bytes = 0
        self._retold: set[RunId] = set()
        self._telling: RunId | None = None
        self._unconfirmed: deque[_Sent] = deque()
        self._unconfirmed_bytes = 0
        self._changed = asyncio.Event()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Outbox {len(self._items)} items, {self._size_bytes} bytes, {len(self._unconfirmed)} unconfirmed>"

    # --- filling ------------------------------------------------------------------------------------------------------

    def put(self, message: ClientMessage, run_id: RunId | None = None) -> None:
        """Add a message; none of a run that is to be told, or is being told, from its events."""
        if run_id is not None and run_id in self._retold:
            return
        self._append(_Said(message, run_id))
        if self._size_bytes > self._full_bytes:
            self._shrink()

    def replay(self, run_id: RunId) -> None:
        """Have a run told from its events, once everything before that has been sent."""
        if run_id not in self._retold:
            self._rebuild([*self._without({run_id}), Replay(run_id)])

    def replay_first(self, runs: list[RunId]) -> None:
        """The same, before all else."""
        fresh = [Replay(run_id) for run_id in runs if run_id not in self._retold]
        self._rebuild([*fresh, *self._without(set(runs) - self._retold)])

    def _append(self, item: _Said | Replay) -> None:
        self._items.append(item)
        if isinstance(item, Replay):
            self._retold.add(item.run_id)
        else:
            self._size_bytes += item.message.size_bytes
        self._changed.set()

    def _rebuild(self, items: list[_Said | Replay]) -> None:
        self._items.clear()
        self._size_bytes = 0
        for item in items:
            self._append(item)

    def _without(self, runs: set[RunId]) -> list[_Said | Replay]:
        return [item for item in self._items if item.run_id not in runs]

    def _shrink(self) -> None:
        """Too much has gathered: runs are told from their events; of all else, what does not fit is cut, and marked."""
        items: list[_Said | Replay] = []
        runs: dict[RunId, Replay] = {}
        others: list[_Said] = []
        for item in self._items:
            if isinstance(item, _Said) and item.run_id is None:
                others.append(item)
                items.append(item)
            elif item.run_id is not None and item.run_id not in runs:
                runs[item.run_id] = Replay(item.run_id)
                items.append(runs[item.run_id])
        cut: list[_Said | Replay] = [*self._excess(others), *list(runs.values())[:-_MOST_RETOLD]]
        if cut:
            mark = _Said(note(f"{len(cut)} messages or runs were cut: this client did not take them in time", {}), None)
            gone = {id(item) for item in cut}
            items = [mark, *(item for item in items if id(item) not in gone)]
            self._retold -= {item.run_id for item in cut if isinstance(item, Replay)}
        self._rebuild(items)
        self._full_bytes = max(self._limit_bytes, self._size_bytes + self._limit_bytes // 2)

    def _excess(self, others: list[_Said]) -> list[_Said]:
        """What is to be cut: the oldest of what everybody is told, then of the answers.

        One message that would never fit stays all the same: a client that takes everything is to have it, too.
        """
        half_bytes = self._limit_bytes // 2
        spared = max(others, key=lambda said: said.message.size_bytes, default=None)
        if spared is not None and spared.message.size_bytes <= half_bytes:
            spared = None
        rest = sorted((said for said in others if said is not spared), key=lambda said: said.message.channel != "iopub")
        excess_bytes = sum(said.message.size_bytes for said in rest) - half_bytes
        cut = []
        for said in rest:
            if excess_bytes <= 0:
                break
            excess_bytes -= said.message.size_bytes
            cut.append(said)
        return cut

    # --- emptying -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nothing more will be added."""
        self._is_closed = True
        self._changed.set()

    async def take(self) -> ClientMessage | Replay | None:
        """The next thing to send, once there is one; None at the end. It counts as sent, and is not confirmed.

        Waits while too much is on its way, until some of that is confirmed.
        """
        while not self._items or self._is_window_full():
            if self._is_closed and not self._items:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        if isinstance(item, Replay):
            self._telling = item.run_id
            return item
        self._size_bytes -= item.message.size_bytes
        if self._size_bytes <= self._limit_bytes // 2:
            self._full_bytes = self._limit_bytes
        # JupyterLab connects anew because it has heard `restarting`: told once more, it would do so for ever.
        is_kept = item.run_id is None and item.message.msg_type != "status"
        self._note_sent(item.run_id, item.message if is_kept else None)
        return item.message

    def told(self, run_id: RunId) -> None:
        """A retelling has been sent to its end: what is said of this run from now on, is new."""
        self._telling = None
        self._retold.discard(run_id)
        self._note_sent(run_id, None)

    def confirm(self, number: int) -> None:
        """The client has received everything up to this number."""
        while self._unconfirmed and self._unconfirmed[0].number <= number:
            message = self._unconfirmed.popleft().message
            self._unconfirmed_bytes -= message.size_bytes if message is not None else 0
        self._changed.set()

    def _is_window_full(self) -> bool:
        return len(self._unconfirmed) >= _WINDOW or self._unconfirmed_bytes >= self._limit_bytes

    def _note_sent(self, run_id: RunId | None, message: ClientMessage | None) -> None:
        self.sent += 1
        last = self._unconfirmed[-1] if self._unconfirmed else None
        if last is not None and run_id is not None and last.run_id == run_id:
            self._unconfirmed[-1] = _Sent(self.sent, run_id, None)
            return
        self._unconfirmed.append(_Sent(self.sent, run_id, message))
        self._unconfirmed_bytes += message.size_bytes if message is not None else 0

    def put_back(self) -> None:
        """The client has gone: what it may not have received is to be sent again, before all else."""
        if self._telling is not None:
            self._note_sent(self._telling, None)
            self._telling = None
        uncertain = {sent.run_id for sent in self._unconfirmed if sent.run_id is not None}
        again: list[_Said | Replay] = []
        for sent in self._unconfirmed:
            if sent.message is not None:
                again.append(_Said(sent.message, None))
            elif sent.run_id is not None and Replay(sent.run_id) not in again:
                again.append(Replay(sent.run_id))
        rest = self._without(uncertain)
        self._unconfirmed.clear()
        self._unconfirmed_bytes = 0
        self._rebuild([*again, *rest])
        if self._size_bytes > self._full_bytes:
            self._shrink()
