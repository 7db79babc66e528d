"""The live runs of this gateway; and the results and events of any run, from here or from the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sessions.environment import Environment
from sessions.errors import Conflict, EndNotStored, Gone, NotFound
from sessions.model import Event, EventType, Result, RunId, TenantId
from sessions.runs.live_run import LiveRun, retrieve

_EVENTS_PER_PAGE = 50
"""Of at most 32 Ki characters each: a reader that has fallen behind costs a few MiB."""

_NOT_ENDED_ELSEWHERE = (
    "The run {} was taken by another gateway, or an earlier one, which has not ended it within its time limit. If that "
    "gateway comes back, GET /runs/{} has the answer. Do not run it again."
)
_GOES_ON = (
    "This gateway is stopping. The run {} goes on in its sandbox, and the next gateway has its answer at GET /runs/{}. "
    "Do not run it again."
)


@dataclass(eq=False, slots=True)
class _Poll:
    """The store is asked about a run that is not live here, for as long as somebody waits for its end."""

    task: asyncio.Task[Result | None]
    waiters: int = 0


class ActiveRuns:
    """The mutable state: the runs, each until its answer is there, and why the ends of others were not stored.

    Also one poll for each run that somebody waits for and that is not live here. `_stopped` is done once everything is
    left to the next gateway.
    """

    def __init__(self, environment: Environment) -> None:
        self._store = environment.store
        self._clock = environment.clock
        self._timeouts = environment.timeouts
        self._polls: dict[RunId, _Poll] = {}
        self._live: dict[RunId, LiveRun] = {}
        self._unstored: dict[RunId, str] = {}
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<ActiveRuns {len(self._live)}>"

    def __iter__(self) -> Iterator[LiveRun]:
        return iter(list(self._live.values()))

    def add(self, live: LiveRun) -> LiveRun:
        """Keep a run until its answer is there."""
        self._live[live.run_id] = live
        live.answer.add_done_callback(lambda answer: self._release(live, answer))
        return live

    def knows(self, run_id: RunId) -> bool:
        """Whether it is live here, or ended here and could not be stored."""
        return run_id in self._live or run_id in self._unstored

    def _release(self, live: LiveRun, answer: asyncio.Future[Result]) -> None:
        self._live.pop(live.run_id, None)
        if not answer.cancelled() and isinstance(error := answer.exception(), EndNotStored):
            self._unstored[live.run_id] = str(error)

    def source_bytes(self, tenant: TenantId) -> int:
        """About how much memory the code, variables and files of this tenant's live runs take, in bytes."""
        return sum(live.source_bytes for live in self._live.values() if live.run.tenant == tenant)

    def get(self, run_id: RunId) -> LiveRun | None:
        """A live run, or None."""
        return self._live.get(run_id)

    async def own(self, tenant: TenantId, run_id: RunId) -> LiveRun | None:
        """A tenant's live run; None when it has ended. Raises NotFound; Conflict when another gateway has it."""
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
        """Tell all who wait or follow that the next gateway goes on with their runs."""
        if not self._stopped.done():
            self._stopped.set_result(None)
        for live in self:
            live.recorder.feed.close()

    async def result(self, run_id: RunId) -> Result:
        """Wait for the end of a run. Raises NotFound, Gone, EndNotStored, and what kept it from being run."""
        while (live := self._live.get(run_id)) is None:
            if (result := await self._result_of_store(run_id)) is not None:
                return result
        waits: set[asyncio.Future[Any]] = {live.answer, live.concluded, self._stopped}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not live.answer.done():
            either: set[asyncio.Future[Any]] = {live.answer, self._stopped}
            timeout_s = self._timeouts.commit_timeout_s
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if live.answer.done():
            return live.answer.result()
        if self._stopped.done():
            raise EndNotStored(_GOES_ON.format(run_id, run_id))
        reason = live.recorder.failure or "The database is out of reach"
        raise EndNotStored(
            f"The run {run_id} has ended, but {reason[:1].lower()}{reason[1:]}: its result is kept, and stored when "
            "the database is back. Do not run it again."
        )

    async def _result_of_store(self, run_id: RunId) -> Result | None:
        """Wait for the end of a run that is not live here, as all who wait for it do together. Raises as `result`."""
        poll = self._polls.get(run_id)
        if poll is None:
            poll = self._polls[run_id] = _Poll(asyncio.ensure_future(self._poll(run_id)))
            poll.task.add_done_callback(retrieve)
        poll.waiters += 1
        try:
            either: set[asyncio.Future[Any]] = {poll.task, self._stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            poll.waiters -= 1
            if poll.task.done() or not poll.waiters:
                poll.task.cancel()
                if self._polls.get(run_id) is poll:
                    del self._polls[run_id]
        if poll.task.done():
            return poll.task.result()
        raise EndNotStored(_GOES_ON.format(run_id, run_id))

    async def _poll(self, run_id: RunId) -> Result | None:
        """Ask the store for the result until it is there; None when the run has become live here.

        Its gateway may be gone for good. So this gives up, with EndNotStored, once the run must have ended.
        """
        asked_at, grace = self._clock.now(), timedelta(seconds=self._timeouts.commit_timeout_s)
        while run_id not in self._live:
            record = await self._store.get_run(run_id)
            if record is None:
                raise NotFound("There is no run by that id.")
            if record.expired_at is not None:
                raise Gone
            if record.result is not None:
                return record.result
            if run_id in self._unstored:
                raise EndNotStored(self._unstored[run_id])
            began_at = min(record.run.started_at or asked_at, asked_at)
            # A run that is past its limit may still be taken over: by a gateway that is just being started.
            overdue_at = max(asked_at, began_at + timedelta(seconds=record.run.timeout_s)) + grace
            if self._clock.now() > overdue_at:
                raise EndNotStored(_NOT_ENDED_ELSEWHERE.format(run_id, run_id))
            await asyncio.sleep(self._timeouts.elsewhere_poll_s)
        return None

    async def events(self, run_id: RunId) -> list[Event]:
        """All committed events of a run. Raises StoreUnavailable."""
        events: list[Event] = []
        while page := await self._page(run_id, events[-1].seq if events else 0):
            events += page
        return events

    async def follow(self, run_id: RunId, after: int) -> AsyncIterator[Sequence[Event]]:
        """The committed events above `after`, as they come, up to and with `end`.

        A follower that falls behind reads from the store, as does one of another gateway's run. Ends without `end` when
        everything is left to the next gateway, or the run was never run. Raises NotFound, StoreUnavailable.
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
        """Its events while it is live."""
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
