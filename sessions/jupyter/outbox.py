"""The messages that one Jupyter client is still to be sent, in order, in bounded memory, also while it is away. Pure.

If a run's messages may not all have arrived, or are too many to keep, one `Replay` takes their place: the gateway then
sends the run again, from its stored events. A slow client, and one that comes back, lose nothing and see nothing twice.
What may be sent while a run is replayed is message_queue.py's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from sessions.jupyter.message_queue import Item, MessageQueue, Queued, Replay
from sessions.jupyter.messages import ClientMessage, note
from sessions.model import RunId

LIMIT_BYTES = 4 << 20

_WINDOW = 256
"""How many items may be unconfirmed at once. They are kept, and sent again when the client comes back."""

RECEIPT_ITEMS = _WINDOW // 4
RECEIPT_BYTES = LIMIT_BYTES // 4
"""After so much it is time to learn what has arrived: a client whose answers take a while is sent more meanwhile."""

_MAX_REPLAYED_RUNS = 1000


@dataclass(frozen=True, slots=True)
class _Sent:
    """An item that was sent, and that the client may not have received; `kept`, where it would be sent again itself."""

    number: int
    run_id: RunId | None
    kept: Queued | None

    @property
    def size_bytes(self) -> int:
        return self.kept.message.size_bytes if self.kept is not None else 0


class Outbox:
    """The state: the items to send, the runs that are replayed, and the items that were sent but not confirmed.

    `sent` is the number of the last item that was sent. One replay is sent at a time. The items are reduced when they
    take more than `_full_bytes`, which is above the limit for as long as one message alone takes that much.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.sent = 0
        self._limit_bytes = limit_bytes
        self._full_bytes = limit_bytes
        self._queue = MessageQueue()
        self._replayed: set[RunId] = set()
        self._replaying: RunId | None = None
        self._unconfirmed: deque[_Sent] = deque()
        self._unconfirmed_bytes = 0
        self._changed = asyncio.Event()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Outbox {len(self._queue)} items, {self.size_bytes} bytes, {len(self._unconfirmed)} unconfirmed>"

    @property
    def size_bytes(self) -> int:
        """About how much memory the items take that are still to be sent."""
        return self._queue.size_bytes

    # --- filling ------------------------------------------------------------------------------------------------------

    def put(
        self,
        message: ClientMessage,
        run_id: RunId | None = None,
        *,
        during: RunId | None = None,
        keeps_place: bool = False,
    ) -> None:
        """Add a message, unless it belongs to a run whose replay is queued or being sent. For the rest see `Queued`."""
        if run_id is not None and run_id in self._replayed:
            return
        self._append(Queued(message, run_id, during, keeps_place))
        if self.size_bytes > self._full_bytes:
            self._shrink()

    def replay(self, run_id: RunId) -> None:
        """Add a replay of this run, behind everything that is queued, and remove the run's messages."""
        if run_id not in self._replayed:
            self._rebuild([*self._without({run_id}), Replay(run_id)])

    def replay_first(self, runs: list[RunId]) -> None:
        """Add replays of these runs before everything that is queued."""
        fresh = [Replay(run_id) for run_id in runs if run_id not in self._replayed]
        self._rebuild([*fresh, *self._without(set(runs) - self._replayed)])

    def _append(self, item: Item) -> None:
        self._queue.append(item)
        if isinstance(item, Replay):
            self._replayed.add(item.run_id)
        self._changed.set()

    def _rebuild(self, items: list[Item]) -> None:
        self._queue = MessageQueue()
        for item in items:
            self._append(item)

    def _without(self, runs: set[RunId]) -> list[Item]:
        return [item for item in self._queue if item.run_id not in runs]

    def _shrink(self) -> None:
        """Too much is queued: put replays for runs, cut of all else what does not fit, and say so."""
        items: list[Item] = []
        runs: dict[RunId, Replay] = {}
        others: list[Queued] = []
        for item in self._queue:
            if isinstance(item, Queued) and item.run_id is None:
                others.append(item)
                items.append(item)
            elif item.run_id is not None and item.run_id not in runs:
                runs[item.run_id] = Replay(item.run_id)
                items.append(runs[item.run_id])
        cut: list[Item] = [*self._excess(others), *list(runs.values())[:-_MAX_REPLAYED_RUNS]]
        if cut:
            mark = Queued(note(f"{len(cut)} messages or runs were cut: this client did not take them in time", {}))
            gone = {id(item) for item in cut}
            items = [mark, *(item for item in items if id(item) not in gone)]
            self._replayed -= {item.run_id for item in cut if isinstance(item, Replay)}
        self._rebuild(items)
        self._full_bytes = max(self._limit_bytes, self.size_bytes + self._limit_bytes // 2)

    def _excess(self, others: list[Queued]) -> list[Queued]:
        """The messages to cut: the oldest of iopub, then the oldest replies.

        One message that is too large for the limit by itself stays: a client that keeps up is to have it, too.
        """
        half_bytes = self._limit_bytes // 2
        spared = max(others, key=lambda queued: queued.message.size_bytes, default=None)
        if spared is not None and spared.message.size_bytes <= half_bytes:
            spared = None
        rest = sorted(
            (queued for queued in others if queued is not spared), key=lambda queued: queued.message.channel != "iopub"
        )
        excess_bytes = sum(queued.message.size_bytes for queued in rest) - half_bytes
        cut = []
        for queued in rest:
            if excess_bytes <= 0:
                break
            excess_bytes -= queued.message.size_bytes
            cut.append(queued)
        return cut

    # --- emptying -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nothing more will be added."""
        self._is_closed = True
        self._changed.set()

    async def get(self) -> ClientMessage | Replay | None:
        """The next item to send, once there is one; None at the end. It counts as sent and unconfirmed.

        Waits while too much is unconfirmed.
        """
        while not self._queue or self._is_window_full():
            if self._is_closed and not self._queue:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._queue.pop()
        if isinstance(item, Replay):
            self._replaying = item.run_id
            return item
        return self._taken(item)

    async def get_ahead(self) -> ClientMessage:
        """The next message that goes ahead of a replay's rest, once there is one; otherwise as `get`."""
        while not self._queue.has_ahead or self._is_window_full():
            self._changed.clear()
            await self._changed.wait()
        return self._taken(self._queue.pop_ahead())

    def _taken(self, item: Queued) -> ClientMessage:
        if self.size_bytes <= self._limit_bytes // 2:
            self._full_bytes = self._limit_bytes
        # JupyterLab reconnects when it gets `restarting`: sent again, that would never end.
        is_kept = item.run_id is None and item.message.msg_type != "status"
        self._note_sent(item.run_id, item if is_kept else None)
        return item.message

    def replay_sent(self, run_id: RunId) -> None:
        """A replay has been sent to its end: from now on this run's messages are new, and are queued again."""
        self._replaying = None
        self._replayed.discard(run_id)
        self._note_sent(run_id, None)

    def confirm(self, number: int) -> None:
        """The client has received everything up to this number."""
        while self._unconfirmed and self._unconfirmed[0].number <= number:
            self._unconfirmed_bytes -= self._unconfirmed.popleft().size_bytes
        self._changed.set()

    def _is_window_full(self) -> bool:
        return len(self._unconfirmed) >= _WINDOW or self._unconfirmed_bytes >= self._limit_bytes

    def _note_sent(self, run_id: RunId | None, kept: Queued | None) -> None:
        self.sent += 1
        last = self._unconfirmed[-1] if self._unconfirmed else None
        if last is not None and run_id is not None and last.run_id == run_id:
            self._unconfirmed[-1] = _Sent(self.sent, run_id, None)
            return
        self._unconfirmed.append(_Sent(self.sent, run_id, kept))
        self._unconfirmed_bytes += self._unconfirmed[-1].size_bytes

    def requeue_unconfirmed(self) -> None:
        """The client has disconnected: queue again what it may not have received, before everything else."""
        if self._replaying is not None:
            self._note_sent(self._replaying, None)
            self._replaying = None
        uncertain = {sent.run_id for sent in self._unconfirmed if sent.run_id is not None}
        again: list[Item] = []
        for sent in self._unconfirmed:
            if sent.kept is not None:
                again.append(sent.kept)
            elif sent.run_id is not None and Replay(sent.run_id) not in again:
                again.append(Replay(sent.run_id))
        rest = self._without(uncertain)
        self._unconfirmed.clear()
        self._unconfirmed_bytes = 0
        self._rebuild([*again, *rest])
        if self.size_bytes > self._full_bytes:
            self._shrink()
