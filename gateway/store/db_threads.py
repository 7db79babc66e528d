"""Runs blocking database calls in a bounded pool of threads, and reclaims the threads of calls that hang.

A thread that waits in libpq for a stopped or unreachable server waits for ever, and a few such threads would use up the
pool. So each call has a deadline, at which its connection's socket is shut down from outside: the thread then sees a
closed connection. This module knows no tables and no SQL.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, event, exc

from gateway.store.engine import is_outage, outages_as_unavailable
from sessions.errors import StoreUnavailable

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
        """Use the connection that has this socket."""
        wire = socket.socket(fileno=os.dup(socket_fd))
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


class DbThreads:
    """A pool with as many threads as the engine has connections, so that no call waits for a connection.

    Its state: the executor, `_is_closed`, and the current call of each thread, `_thread.call`.
    """

    def __init__(self, engine: Engine, *, threads: int) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="store")
        self._thread = threading.local()
        self._is_closed = False
        event.listen(engine, "do_connect", self._connect)

    async def run(self, work: Work[T], *, timeout_s: float) -> T:
        """Do `work` in a thread. Raises StoreUnavailable when the database is out of reach, after `timeout_s` at most.

        A connection that turns out to be stale is replaced once.
        """
        if self._is_closed:
            raise StoreUnavailable
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        call = AbortableCall()
        working = self._executor.submit(self._work, call, work)

        def give_up() -> None:
            working.cancel()
            call.discard()
            if not answer.done():
                answer.set_exception(StoreUnavailable())

        # A timer, and not a bound on the caller's wait: when the caller is cancelled, the thread must come back too.
        deadline = loop.call_later(timeout_s, give_up)

        def settle() -> None:
            deadline.cancel()
            if answer.done():
                return
            if error := working.exception():
                answer.set_exception(error)
            else:
                answer.set_result(working.result())

        def wake(done: Future[T]) -> None:
            if not done.cancelled():
                with suppress(RuntimeError):  # the loop was closed without waiting for us
                    loop.call_soon_threadsafe(settle)

        working.add_done_callback(wake)
        return await answer

    async def close(self) -> None:
        """Let running calls finish or reach their deadline, then close threads and connections."""
        self._is_closed = True
        await asyncio.to_thread(self._executor.shutdown)
        self._engine.dispose()

    def _work(self, call: AbortableCall, work: Work[T]) -> T:
        try:
            return self._attempt(call, work)
        except exc.DBAPIError as error:
            if not is_outage(error):
                raise
            if not error.connection_invalidated or call.is_abandoned:
                raise StoreUnavailable from error
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
