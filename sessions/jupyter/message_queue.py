"""The order of what one Jupyter client is still to be sent, and what of it may go ahead while a run is replayed. Pure.

A replay lasts as long as its run. Whatever belongs to no run need not wait for that: replies, comms, what nobody asked
for. How much may be queued is outbox.py's business.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import count

from sessions.jupyter.messages import ClientMessage
from sessions.model import RunId


@dataclass(frozen=True, slots=True)
class Replay:
    """Send this run from its stored events, in place of the messages that were queued for it."""

    run_id: RunId


@dataclass(frozen=True, slots=True)
class Queued:
    """A message, and the run that it belongs to, if any.

    `during` is the run that it came from all the same: a comm message, which no replay has. `keeps_place` is for what
    belongs to no run and makes sense only behind all that is queued, such as the death of the kernel.
    """

    message: ClientMessage
    run_id: RunId | None = None
    during: RunId | None = None
    keeps_place: bool = False


Item = Queued | Replay


class MessageQueue:
    """The state: the items by number, in two queues, of which one has what may go ahead; and what keeps others there.

    A message on iopub goes ahead of none of its own run, nor of another on iopub that cannot.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._numbers = count()
        self._fixed: deque[tuple[int, Item]] = deque()
        self._free: deque[tuple[int, Queued]] = deque()
        self._places_kept = 0
        self._iopub_fixed = 0
        self._of_run: Counter[RunId] = Counter()

    def __len__(self) -> int:
        return len(self._fixed) + len(self._free)

    def __iter__(self) -> Iterator[Item]:
        return (item for _, item in merge(self._fixed, self._free, key=lambda entry: entry[0]))

    def append(self, item: Item) -> None:
        """Put an item behind all others, or among those that may go ahead."""
        if isinstance(item, Queued):
            self.size_bytes += item.message.size_bytes
            if self._goes_ahead(item):
                self._free.append((next(self._numbers), item))
                return
        self._fixed.append((next(self._numbers), item))
        self._count(item, 1)

    def pop(self) -> Item:
        """The first item. Raises IndexError when there is none."""
        if self._free and (not self._fixed or self._free[0][0] < self._fixed[0][0]):
            return self.pop_ahead()
        _, item = self._fixed.popleft()
        self._count(item, -1)
        if isinstance(item, Queued):
            self.size_bytes -= item.message.size_bytes
        return item

    @property
    def has_ahead(self) -> bool:
        """Whether anything may go ahead."""
        return bool(self._free)

    def pop_ahead(self) -> Queued:
        """The first message that may go ahead. Raises IndexError when there is none."""
        _, item = self._free.popleft()
        self.size_bytes -= item.message.size_bytes
        return item

    def _goes_ahead(self, item: Queued) -> bool:
        if item.run_id is not None or item.keeps_place or self._places_kept:
            return False
        if item.message.channel != "iopub":
            return True
        return not self._iopub_fixed and (item.during is None or item.during not in self._of_run)

    def _count(self, item: Item, change: int) -> None:
        """Count an item that cannot go ahead."""
        if isinstance(item, Replay):
            return
        self._places_kept += change * item.keeps_place
        if item.run_id is None:
            self._iopub_fixed += change * (item.message.channel == "iopub")
            return
        self._of_run[item.run_id] += change
        if not self._of_run[item.run_id]:
            del self._of_run[item.run_id]
