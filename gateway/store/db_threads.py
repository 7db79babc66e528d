"""Runs blocking database calls in a bounded pool of threads, and gets back the threads of calls that hang.

A thread that waits in libpq for a server that is stopped or cut off would wait for ever, and a few of them would be all
threads there are. So each call has a deadline, at which its connection's socket is shut down from outside: the thread
then sees a closed connection. It knows no tables and no SQL.
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


class _Call:
    """One call's hold on the connection it uses: `_wire` duplicates that one's socket, for as long as it is used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wire: socket.socket | None = None
        self.is_abandoned = False

    def take(self, socket_fd: int) -> None:
        """Use the connection that has this socket from here on."""
        wire = socket.socket(fileno=os.dup(socket_fd))
        with self._lock:
            if self._wire is not None:
                self._wire.close()
            self._wire = wire
            if self.is_abandoned:
                self._disconnect(wire)

    def release(self) -> None:
        """Use no connection any more."""
        with self._lock:
            if self._wire is not None:
                self._wire.close()
            self._wire = None

    def discard(self) -> None:
        """Make a thread that waits for the server see a closed connection."""
        with self._lock:
            self.is_abandoned = True
            if self._wire is not None:
                self._disconnect(self._wire)

    @staticmethod
    def _disconnect(wire: socket.socket) -> None:
        with suppress(OSError):  # the other end may have done so before
            wire.shutdown(socket.SHUT_RDWR)


class DbThreads:
    """The threads, as many as the engine has connections, so that no call waits for a connection.

    The state is the executor's, `_is_closed`, and for each thread the call it is at, `_thread.call`.
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
        call = _Call()
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
        """Let calls under way come to their end or deadline, then end the threads and connections."""
        self._is_closed = True
        await asyncio.to_thread(self._executor.shutdown)
        self._engine.dispose()

    def _work(self, call: _Call, work: Work[T]) -> T:
        try:
            return self._attempt(call, work)
        except exc.DBAPIError as error:
            if not is_outage(error):
                raise
            if not error.connection_invalidated or call.is_abandoned:
                raise StoreUnavailable from error
        with outages_as_unavailable():  # that connection was stale; SQLAlchemy has dropped all that are as old
            return self._attempt(call, work)

    def _attempt(self, call: _Call, work: Work[T]) -> T:
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
        """Connect, and let the call be able to hang up during the queries that prepare a new connection too."""
        connection = dialect.connect(*arguments, **options)
        if (call := getattr(self._thread, "call", None)) is not None:
            call.take(connection.fileno())
        return connection
