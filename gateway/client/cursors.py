"""Answers in many pieces, read over as many connections as it takes, each piece once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import uuid4

from gateway.client.calls import Ask, Patience, Pause, Reply, events_ask, is_momentary
from gateway.client.errors import ClientError, ConnectionFailed, parsed
from gateway.client.results import BatchAnswer, Event, batch_answer, event_of

Value = TypeVar("Value")
ContentT = TypeVar("ContentT")

_MOST_ITEMS = 1000
_CUT = "The gateway ended its answer before everything had come."


class Cursor(ABC, Generic[Value]):
    """Says what to ask, and reads what comes."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    @abstractmethod
    def ask(self) -> Ask | None:
        """What to ask next; None when all has come."""

    @abstractmethod
    def take(self, text: str) -> Iterable[Value]:
        """What is new in one piece of the answer."""

    def pause_after(self, failure: ClientError | Reply | None) -> Pause:
        """How long to wait before the next connection; None is an answer that ended without a failure.

        Raises ClientError when there is no sense in another connection.
        """
        error = failure.error() if isinstance(failure, Reply) else failure or ConnectionFailed(_CUT)
        if not isinstance(error, ConnectionFailed) and not is_momentary(error):
            raise error
        return self._patience.pause(error)


class EventCursor(Cursor[Event]):
    """The events of a run. The mutable state: the run's id, once it is known, the last number, whether all has come."""

    def __init__(self, ask: Ask, patience: Patience, *, run_id: str = "", after: int = 0) -> None:
        """`ask` is the request that begins the run, or names it."""
        super().__init__(patience)
        self._ask = ask
        self._run_id = run_id
        self._after = after
        self._has_ended = False

    def ask(self) -> Ask | None:
        """The request for the run, or for what follows the events that have come."""
        if self._has_ended:
            return None
        return events_ask(self._run_id, self._after) if self._run_id else self._ask

    def take(self, text: str) -> Iterable[Event]:
        """An event, unless it has come before."""
        event = event_of(parsed(text))
        self._patience.reset()
        self._run_id = event.run_id
        if event.seq <= self._after:
            return ()
        self._after = event.seq
        self._has_ended = event.type == "end"
        return (event,)

    def pause_after(self, failure: ClientError | Reply | None) -> Pause:
        """No pause behind the last event."""
        return Pause(0.0) if self._has_ended else super().pause_after(failure)


class BatchCursor(Cursor[BatchAnswer[ContentT]]):
    """The answers to a batch, in as many requests as it takes. Each item has a key, so none runs twice.

    The mutable state is the items without an answer, and those of them that were asked for last.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], patience: Patience, read: Callable[[str], ContentT]) -> None:
        """`read` fetches a URL's content."""
        super().__init__(patience)
        self._read = read
        self._left = {place: {"idempotency_key": str(uuid4()), **item, "id": place} for place, item in enumerate(items)}
        self._asked: set[int] = set()

    def ask(self) -> Ask | None:
        """The first of the items that are not answered."""
        if not self._left:
            return None
        first = list(self._left.values())[:_MOST_ITEMS]
        self._asked = {item["id"] for item in first}
        return Ask("POST", "/runcode/batch", {"runs": first})

    def take(self, text: str) -> Iterable[BatchAnswer[ContentT]]:
        """An item's answer."""
        if not text.strip():
            return ()
        answer = batch_answer(parsed(text), self._read)
        self._patience.reset()
        if self._left.pop(answer.place, None) is None:
            return ()
        return (answer,)

    def pause_after(self, failure: ClientError | Reply | None) -> Pause:
        """No pause where all that was asked for has come."""
        if self._asked.isdisjoint(self._left):
            return Pause(0.0)
        return super().pause_after(failure)
