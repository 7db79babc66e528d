"""The runs of a batch: their order, how many of them are under way at once, and which are tried again.

How one run is begun, and what its answer looks like, is the business of a `BatchItem`. A batch keeps nothing: a client
that was cut off sends it again, and the runs that have an `idempotency_key` are found under it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

from sessions.concurrency import KeyedLock, growing_pauses
from sessions.errors import Draining, EndNotStored, NotFound, StoreUnavailable, TooManyRequests, Unavailable
from sessions.model import Result, RunId, SessionId, TenantId

_SHARE_OF_SANDBOXES = 4
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 4.0
_NOT_READ = "The run {} has begun, but the database does not say what became of it: GET /runs/{} has the answer later."


class BatchItem(Protocol):
    """One run of a batch."""

    session_id: SessionId | None

    def claims_kernel(self) -> bool:
        """Whether its run would take a kernel from the pool if it began now."""
        ...

    async def begin(self) -> RunId:
        """Begin the run, or find the one that has its key. Raises as `Service.begin` does."""
        ...

    async def result(self, run_id: RunId) -> Result:
        """Wait for the end of the run. Raises as `Service.result` does."""
        ...

    async def answer(self, outcome: Result | Exception) -> None:
        """Send the item's answer; return once it is taken. What this raises ends the batch."""
        ...


class Batches:
    """What the batches of one gateway share.

    All batches of a tenant together have `at_once` runs under way: a quarter of `pool.max`, at least 1. So three
    quarters of the sandboxes are there for sessions and single runs. Only one of these runs at a time waits for a
    kernel: claims are served in order, and a single run that comes later finds no more than that one before it.

    The mutable state: which runs of which tenants are under way, and which of them claims a kernel.
    """

    def __init__(
        self,
        pool_max: int,
        patience_s: float,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`patience_s`: how long an item that is refused because of the load is tried again."""
        self.at_once = max(1, pool_max // _SHARE_OF_SANDBOXES)
        self.patience_s = patience_s
        self.monotonic = monotonic
        self.sleep = sleep
        self._under_way: WeakValueDictionary[TenantId, asyncio.Semaphore] = WeakValueDictionary()
        self._claims: KeyedLock[TenantId] = KeyedLock()

    def __repr__(self) -> str:
        return f"<Batches of {len(self._under_way)} tenants>"

    @asynccontextmanager
    async def turn(self, tenant: TenantId) -> AsyncIterator[None]:
        """Wait until a run of this tenant's batches may be under way, and have it so for the length of the block."""
        places = self._under_way.setdefault(tenant, asyncio.Semaphore(self.at_once))
        async with places:
            yield

    def claiming(self, tenant: TenantId) -> AbstractAsyncContextManager[None]:
        """Wait until a run of this tenant's batches may claim a kernel, which it does within the block."""
        return self._claims.hold(tenant)


Refusal = TooManyRequests | Unavailable


@dataclass(slots=True)
class _Refused:
    """Since when all that a batch has tried was refused, by the monotonic clock, and how the last of it was."""

    since_s: float
    last: Refusal


class Batch:
    """One batch. Its state: what was refused of it since the last item began, with those that claim a kernel apart."""

    def __init__(self, batches: Batches, tenant: TenantId) -> None:
        self._batches = batches
        self._tenant = tenant
        self._refused: dict[bool, _Refused] = {}

    async def perform(self, items: Sequence[BatchItem]) -> None:
        """Run all items and have each answered; an item that fails, fails alone.

        When the caller is cancelled, or an answer cannot be sent, no further item begins; runs that have begun go on.
        """
        order = ItemOrder(item.session_id for item in items)
        serving: dict[asyncio.Task[None], int] = {}
        try:
            while True:
                while len(serving) < self._batches.at_once and (place := order.begin_next()) is not None:
                    serving[asyncio.ensure_future(self._serve(items[place]))] = place
                if not serving:
                    return
                done, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                    order.end(serving.pop(task))
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, item: BatchItem) -> None:
        await item.answer(await self._outcome(item))

    async def _outcome(self, item: BatchItem) -> Result | Exception:
        """The run's result, or why there is none. What the load refuses is tried again for a while."""
        run_id: RunId | None = None
        first_s: float | None = None
        refusal: Refusal
        for pause_s in growing_pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S):
            try:
                async with self._batches.turn(self._tenant):
                    run_id = run_id or await self._begin(item)
                    return await item.result(run_id)
            except Draining as error:
                return error
            except (TooManyRequests, Unavailable) as error:
                refusal = error
                if not isinstance(error, StoreUnavailable):
                    run_id = None  # nothing was run
            except NotFound as error:
                if first_s is None:
                    return error
                run_id = None  # it was withdrawn since it was asked for
            except Exception as error:  # noqa: BLE001 - whatever it is, the other items go on
                return error
            now_s = self._batches.monotonic()
            first_s = now_s if first_s is None else first_s
            refused = self._refused.setdefault(item.claims_kernel(), _Refused(now_s, refusal))
            refused.last = refusal
            if now_s - min(first_s, refused.since_s) >= self._batches.patience_s:
                return refusal if run_id is None else EndNotStored(_NOT_READ.format(run_id, run_id))
            await self._batches.sleep(max(pause_s, refusal.retry_after_s or 0))
        raise AssertionError  # the pauses never end

    async def _begin(self, item: BatchItem) -> RunId:
        """Begin an item's run, or raise what has kept the others from it for long: each might wait in vain for itself.

        Raises as `BatchItem.begin` does.
        """
        claims = item.claims_kernel()
        async with self._batches.claiming(self._tenant) if claims else nullcontext():
            refused = self._refused.get(claims)
            if refused is not None and isinstance(refused.last, Unavailable) and self._is_over(refused):
                raise refused.last
            run_id = await item.begin()
        self._refused.pop(claims, None)
        return run_id

    def _is_over(self, refused: _Refused) -> bool:
        return self._batches.monotonic() - refused.since_s >= self._batches.patience_s


class ItemOrder:
    """Which item is next: the first whose session has none under way.

    The mutable state: the places of those that may begin, smallest first, and of those that wait for their session.
    """

    def __init__(self, sessions: Iterable[SessionId | None]) -> None:
        """The session of each item, or None."""
        self._sessions = list(sessions)
        self._ready: list[int] = []
        self._waiting: dict[SessionId, deque[int]] = {}
        for place, session_id in enumerate(self._sessions):
            if session_id is None:
                self._ready.append(place)
            elif session_id in self._waiting:
                self._waiting[session_id].append(place)
            else:
                self._waiting[session_id] = deque()
                self._ready.append(place)

    def begin_next(self) -> int | None:
        """The place of the next item; None when there is none, or when it has to wait for another to end."""
        return heapq.heappop(self._ready) if self._ready else None

    def end(self, place: int) -> None:
        """This item has been answered: the next one of its session may begin."""
        session_id = self._sessions[place]
        if session_id is not None and (waiting := self._waiting[session_id]):
            heapq.heappush(self._ready, waiting.popleft())
