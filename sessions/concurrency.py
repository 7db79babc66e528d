"""What concurrent code needs everywhere here: a bag of tasks, a lock per key, and waiting between attempts.

It knows nothing of runs, kernels or sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import structlog

_Key = TypeVar("_Key", bound=Hashable)
_T = TypeVar("_T")

log = structlog.get_logger()


class BackgroundTasks:
    """Tasks that nobody awaits. Each is kept until it ends, and whatever it raises is logged.

    The mutable state is the set of tasks that have not ended.
    """

    def __init__(self, owner: str) -> None:
        """`owner` names the bag in the log."""
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<BackgroundTasks of {self._owner}: {len(self._tasks)}>"

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(list(self._tasks))

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start `work`. The caller may await the task as well; an exception is logged all the same."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work`, which goes on if the caller is cancelled. What it raises is the caller's, if one is there."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._on_done_for_nobody)
            raise

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return once all tasks have ended, those that they spawn included, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    async def cancel(self, timeout_s: float | None = None) -> None:
        """Cancel all tasks and return once they have ended, or after `timeout_s`."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    def _on_done_for_nobody(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("failed_for_nobody", owner=self._owner, task=repr(task.get_coro()), error=repr(error))

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_task_failed", owner=self._owner, task=repr(task.get_coro()), exc_info=error)


class KeyedLock(Generic[_Key]):
    """One lock per key; whoever asks for the same key waits in order. Unused locks take no memory.

    The mutable state is the locks that somebody holds or waits for.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<KeyedLock {len(self._locks)} keys>"

    @asynccontextmanager
    async def hold(self, key: _Key) -> AsyncIterator[None]:
        """Hold the lock of `key` for the length of the block."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield


def growing_pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Pauses between attempts, in seconds: each twice the one before, up to `longest_s`. Never ends."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, longest_s)


async def retry(
    attempt: Callable[[], Coroutine[Any, Any, _T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    pauses: Iterator[float],
    on_failure: Callable[[Exception], None] = lambda _: None,
) -> _T:
    """Call `attempt` until it does not raise `on`; sleep for the next of `pauses` in between.

    `on_failure` is called with each error before the pause. When `pauses` ends, the last error is raised.
    """
    while True:
        try:
            return await attempt()
        except on as error:
            on_failure(error)
            pause_s = next(pauses, None)
            if pause_s is None:
                raise
            await asyncio.sleep(pause_s)
