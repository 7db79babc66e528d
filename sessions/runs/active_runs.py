"""Finds runs: those that this gateway executes, and the result and events of any run, from memory or the store.

It starts no runs and ends none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from sessions.errors import Conflict, EndNotStored, Gone, NotFound
from sessions.model import Event, EventType, Result, RunId, TenantId
from sessions.ports import Store
from sessions.runs.live_run import LiveRun
from sessions.settings import Timeouts

_EVENTS_PER_PAGE = 50
"""An event has at most 32 Ki characters, so that a reader who has fallen behind costs a few MiB."""

_GOES_ON = (
    "This gateway is stopping. The run {} goes on in its sandbox, and the next gateway has its answer at GET /runs/{}. "
    "Do not run it again."
)


class ActiveRuns:
    """The mutable state: the runs without an answer, and the ids of runs whose end could not be stored.

    `_stopped` is done once all runs have been handed over to the next gateway.
    """

    def __init__(self, store: Store, timeouts: Timeouts) -> None:
        self._store = store
        self._timeouts = timeouts
        self._live: dict[RunId, LiveRun] = {}
        self._unstored: set[RunId] = set()
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<ActiveRuns {len(self._live)}>"

    def __iter__(self) -> Iterator[LiveRun]:
        return iter(list(self._live.values()))

    def add(self, live: LiveRun) -> LiveRun:
        """Keep a run until it has its answer."""
        self._live[live.run_id] = live
        live.answer.add_done_callback(lambda answer: self._release(live, answer))
        return live

    def knows(self, run_id: RunId) -> bool:
        """Whether this gateway executes the run, or could not store its end."""
        return run_id in self._live or run_id in self._unstored

    def _release(self, live: LiveRun, answer: asyncio.Future[Result]) -> None:
        self._live.pop(live.run_id, None)
        if not answer.cancelled() and isinstance(answer.exception(), EndNotStored):
            self._unstored.add(live.run_id)

    def source_bytes(self, tenant: TenantId) -> int:
        """About how much memory the code and variables of this tenant's live runs take, in bytes."""
        return sum(live.source_bytes for live in self._live.values() if live.run.tenant == tenant)

    def get(self, run_id: RunId) -> LiveRun | None:
        """A run of this gateway that has not ended, or None."""
        return self._live.get(run_id)

    async def own(self, tenant: TenantId, run_id: RunId) -> LiveRun | None:
        """A tenant's run of this gateway; None once it has ended. Raises NotFound; Conflict if it is another's."""
        live = self._live.get(run_id)
        if live is not None and live.run.tenant == tenant:
            return live
        record = await self._store.get_run(run_id)
        if record is None or record.run.tenant != tenant:
            raise NotFound("There is no run by that id.")
        if record.finished_at is None:
            raise Conflict("This run is at another gateway on the same database: ask that one.")
        return None

    def stop(self) -> None:
        """Tell everyone who waits for a run, or follows one, that the next gateway will finish it."""
        if not self._stopped.done():
            self._stopped.set_result(None)
        for live in self:
            live.recorder.feed.close()

    async def result(self, run_id: RunId) -> Result:
        """Wait for the end of a run. Raises NotFound, Gone, EndNotStored, and the error that kept it from being run."""
        while (live := self._live.get(run_id)) is None:
            record = await self._store.get_run(run_id)
            if record is None:
                raise NotFound("There is no run by that id.")
            if record.expired_at is not None:
                raise Gone
            if record.result is not None:
                return record.result
            await asyncio.sleep(self._timeouts.elsewhere_poll_s)
        concluded = asyncio.ensure_future(live.concluded.wait())
        try:
            waits: set[asyncio.Future[Any]] = {live.answer, concluded, self._stopped}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            concluded.cancel()
        if not live.answer.done():
            either: set[asyncio.Future[Any]] = {live.answer, self._stopped}
            timeout_s = self._timeouts.commit_timeout_s
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if live.answer.done():
            return live.answer.result()
        if self._stopped.done():
            raise EndNotStored(_GOES_ON.format(run_id, run_id))
        raise EndNotStored(
            f"The run {run_id} has ended, but the database is out of reach: its result is kept, and stored when the "
            "database is back. Do not run it again."
        )

    async def events(self, run_id: RunId) -> list[Event]:
        """All committed events of a run. Raises StoreUnavailable."""
        events: list[Event] = []
        while page := await self._page(run_id, events[-1].seq if events else 0):
            events += page
        return events

    async def follow(self, run_id: RunId, after: int) -> AsyncIterator[Sequence[Event]]:
        """The committed events above `after` as they come, `end` included.

        A follower that falls behind is served from the store, and so is one of another gateway's run. Stops without
        `end` when the run is handed over to the next gateway, or could not be run. Raises NotFound, StoreUnavailable.
        """
        position = after
        is_over = False
        while not self._stopped.done():
            events: Sequence[Event] = ()
            live = self._live.get(run_id)
            if live is not None and not live.recorder.feed.is_closed:
                with live.recorder.feed.following():
                    async for events in self._follow_live(live, position):
                        yield events
                        position = events[-1].seq
            else:
                events = await self._page(run_id, position)
                if events:
                    yield events
                    position = events[-1].seq
                elif is_over:
                    return
                elif not (is_over := await self._has_ended(run_id)):
                    await asyncio.sleep(self._timeouts.elsewhere_poll_s)
                continue
            if events and events[-1].type is EventType.END:
                return

    async def _follow_live(self, live: LiveRun, position: int) -> AsyncIterator[Sequence[Event]]:
        """Events of a run of this gateway, until its feed is closed."""
        feed = live.recorder.feed
        while True:
            events: Sequence[Event] | None = feed.after(position)
            if events is None:
                events = await self._page(live.run_id, position)
            if events:
                yield events
                position = events[-1].seq
            elif feed.is_closed:
                return
            else:
                await feed.wait(position)

    async def _page(self, run_id: RunId, after: int) -> list[Event]:
        return await self._store.get_events(run_id, after, _EVENTS_PER_PAGE)

    async def _has_ended(self, run_id: RunId) -> bool:
        record = await self._store.get_run(run_id)
        if record is None:
            raise NotFound("There is no run by that id.")
        return record.finished_at is not None or run_id in self._unstored
