"""Runs blocking database calls in a bounded pool of threads, and reclaims the threads of calls that hang.

A call's time begins in its thread; how long it may wait for one is bounded as well, and has an error of its own.

A thread that waits in libpq for a stopped or unreachable server waits for ever, and a few such threads would use up the
pool. So each call has a deadline, at which its connection's socket is shut down from outside: the thread then sees a
closed connection. This module knows no tables and no SQL.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection, Dialect, Engine, QueuePool, event, exc

from gateway.store.engine import is_outage, outages_as_unavailable, unavailable
from sessions.errors import StoreBusy, StoreUnavailable
from sessions.ports import LaneFigures

T = TypeVar("T")

Work = Callable[[Connection], T]
"""What a call does with its connection, in a thread. It may be called twice, so it must be idempotent."""


class AbortableCall:
    """A call whose connection another thread can shut down. `_wire` is a duplicate of that connection's socket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wire: socket.socket | None = None
        self.is_abandoned = False

    def take(self, socket_fd: int) -> None:
        """Use the connection that has this socket. Raises StoreUnavailable when there is no descriptor left."""
        try:
            wire = socket.socket(fileno=os.dup(socket_fd))
        except OSError as error:
            raise StoreUnavailable from error
        with self._lock:
            if self._wire is not None:
                self._wire.close()
            self._wire = wire
            if self.is_abandoned:
                self._disconnect(wire)

    def release(self) -> None:
        """Let go of the connection."""
        with self._lock:
            if self._wire is not None:
                self._wire.close()
            self._wire = None

    def discard(self) -> None:
        """Give the call up: a thread that waits for the server sees a closed connection."""
        with self._lock:
            self.is_abandoned = True
            if self._wire is not None:
                self._disconnect(self._wire)

    @staticmethod
    def _disconnect(wire: socket.socket) -> None:
        with suppress(OSError):  # the other end may have done so before
            wire.shutdown(socket.SHUT_RDWR)


class _QueuedCall(Generic[T]):
    """A call as its caller sees it.

    The state is its answer and its timer: first of the time that it may wait, then of the time that it may take. It is
    no bound on the caller's wait: when the caller is cancelled, the thread must come back too.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.call = AbortableCall()
        self.answer: asyncio.Future[T] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, wait_s: float, stop_waiting: Callable[[], None]) -> None:
        self._timer = self.loop.call_later(wait_s, stop_waiting)

    def begin(self, timeout_s: float, on_outage: Callable[[], None]) -> None:
        """It has a thread now."""

        def give_up() -> None:
            on_outage()
            self.call.discard()
            self.fail(StoreUnavailable())

        self._stop_timer()
        self._timer = self.loop.call_later(timeout_s, give_up)

    def fail(self, error: StoreUnavailable) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def wake(self, done: Future[T]) -> None:
        """The thread is done with it; called there."""
        if not done.cancelled():
            with suppress(RuntimeError):  # the loop was closed without waiting for us
                self.loop.call_soon_threadsafe(self._settle, done)

    def _settle(self, done: Future[T]) -> None:
        self._stop_timer()
        if self.answer.done():
            return
        if error := done.exception():
            self.answer.set_exception(error)
        else:
            self.answer.set_result(done.result())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


class DbThreads:
    """A pool with as many threads as the engine has connections, so that no call waits for a connection.

    Its state: the executor, `_is_closed`, the current call of each thread, `_thread.call`, and when the last call was
    given up.
    """

    def __init__(self, engine: Engine, *, threads: int, wait_s: float, name: str = "store") -> None:
        """A call that finds no thread within `wait_s` fails."""
        self._engine = engine
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._wait_s = wait_s
        self._thread = threading.local()
        self._given_up_at_s = float("-inf")
        self._is_closed = False
        event.listen(engine, "do_connect", self._connect)

    def figures(self, lane: str) -> LaneFigures:
        """The connections of its engine now."""
        pool = cast("QueuePool", self._engine.pool)
        in_use = pool.checkedout()
        return LaneFigures(lane, pool.checkedin() + in_use, in_use, pool.size())

    async def run(self, work: Work[T], *, timeout_s: float) -> T:
        """Do `work` in a thread. Raises StoreUnavailable when the database is out of reach, `timeout_s` after it began.

        Raises StoreBusy when no thread became free although the database answers. A connection that turns out to be
        stale is replaced once.
        """
        if self._is_closed:
            raise StoreUnavailable
        queued = _QueuedCall[T](asyncio.get_running_loop())
        asked_at_s = time.monotonic()

        def begin_work() -> T:
            with suppress(RuntimeError):  # the loop was closed without waiting for us
                queued.loop.call_soon_threadsafe(queued.begin, timeout_s, self._note_outage)
            return self._work(queued.call, work)

        def stop_waiting() -> None:
            if working.cancel():
                queued.fail(StoreUnavailable() if self._given_up_at_s >= asked_at_s else StoreBusy())

        working = self._executor.submit(begin_work)
        queued.wait(self._wait_s, stop_waiting)
        working.add_done_callback(queued.wake)
        return await queued.answer

    async def close(self) -> None:
        """Let running calls finish or reach their deadline, then close threads and connections."""
        self._is_closed = True
        await asyncio.to_thread(self._executor.shutdown)
        self._engine.dispose()

    def _note_outage(self) -> None:
        self._given_up_at_s = time.monotonic()

    def _work(self, call: AbortableCall, work: Work[T]) -> T:
        try:
            return self._attempt(call, work)
        except exc.DBAPIError as error:
            if not is_outage(error):
                raise
            if not error.connection_invalidated or call.is_abandoned:
                raise unavailable(error) from error
        with outages_as_unavailable():  # the connection was stale; SQLAlchemy has dropped all others of its age
            return self._attempt(call, work)

    def _attempt(self, call: AbortableCall, work: Work[T]) -> T:
        self._thread.call = call
        try:
            with self._engine.connect() as connection:
                call.take(connection.connection.fileno())
                try:
                    return work(connection)
                finally:
                    call.release()  # before the pool may give the connection to another call
        finally:
            self._thread.call = None
            call.release()

    def _connect(self, dialect: Dialect, _record: object, arguments: Any, options: Any) -> Any:
        """Connect. The call can be given up during the queries that prepare the new connection, too."""
        connection = dialect.connect(*arguments, **options)
        if (call := getattr(self._thread, "call", None)) is not None:
            call.take(connection.fileno())
        return connection
