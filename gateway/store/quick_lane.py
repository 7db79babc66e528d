"""Prepared statements on a few connections that the event loop itself waits for: for the writes that every run makes.

A call costs neither a hand-over between threads nor the planning of its statement. It judges no errors: what cannot be
done here at once, or fails, is the threads' to do, who say what is wrong. So a statement may come twice, and must be
idempotent. `db_threads` has all other calls.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg2
from psycopg2 import extensions

from gateway.store.engine import connect_arguments
from gateway.store.statements import Prepared
from sessions.errors import StoreUnavailable
from sessions.ports import LaneFigures

_FIRST_REST_S = 0.5
_LONGEST_REST_S = 60.0
# A generic plan is right: each statement finds its row by a key.
_SETTINGS = "SET client_connection_check_interval = '2s'; SET plan_cache_mode = 'force_generic_plan'"

_Row = tuple[Any, ...]


class _Failed(Exception):
    """A statement, or the connection."""


class _Connection:
    """A connection that is logged in, and does one thing at a time.

    The state: a duplicate of the socket, which the loop watches; what is waited for; and its deadline.
    """

    def __init__(self, raw: extensions.connection, released: Callable[[_Connection], None]) -> None:
        """`released` is called after each statement, and when the server hangs up in between."""
        self._raw = raw
        self._released = released
        self._loop = asyncio.get_running_loop()
        self._cursor = raw.cursor()
        self._answer: asyncio.Future[_Row | None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        # libpq closes the socket when the connection fails, before the loop has been told.
        self._watched_fd = os.dup(raw.fileno())
        self._loop.add_reader(self._watched_fd, self._go_on)
        self.is_closed = False

    def execute(self, sql: str, values: Sequence[Any], timeout_s: float) -> asyncio.Future[_Row | None]:
        """Returns the first row, if there is one. Raises _Failed; StoreUnavailable when there is no answer in time.

        It goes on when the caller is cancelled.
        """
        answer = self._answer = self._loop.create_future()
        self._deadline = self._loop.call_later(timeout_s, self._end, StoreUnavailable())
        try:
            self._cursor.execute(sql, values or None)
        except (psycopg2.Error, ValueError):
            self._end(_Failed())
        else:
            self._go_on()
        return answer

    def close(self) -> None:
        """Hang up."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._watched_fd)
        self._loop.remove_writer(self._watched_fd)
        os.close(self._watched_fd)
        with suppress(psycopg2.Error):
            self._raw.close()

    def _go_on(self) -> None:
        """The socket is ready. Between two statements that is the server's end of the connection, or a notice."""
        try:
            state = self._raw.poll()
            if state == extensions.POLL_OK and self._answer is not None:
                self._end(self._cursor.fetchone() if self._cursor.description is not None else None)
        except psycopg2.Error:
            self._end(_Failed())
            return
        if state == extensions.POLL_WRITE:
            self._loop.add_writer(self._watched_fd, self._go_on)
        elif self._answer is not None:
            self._loop.remove_writer(self._watched_fd)

    def _end(self, outcome: _Row | Exception | None) -> None:
        """The statement has ended; after an error the connection has, too."""
        answer, self._answer = self._answer, None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if isinstance(outcome, Exception):
            self.close()
        self._released(self)
        if answer is None or answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


class QuickLane:
    """At most `connections` of them, each made when it is first needed.

    The state: the idle ones, those at work, how many are being made, until when the lane rests after a failure, and for
    how long it does so the next time.
    """

    def __init__(self, url: str, statements: Sequence[Prepared], *, connections: int, connect_timeout_s: float) -> None:
        self._arguments = connect_arguments(url, connect_timeout_s)
        self._preparation = "; ".join([_SETTINGS, *(statement.prepare for statement in statements)])
        self._most = connections
        self._idle: list[_Connection] = []
        self._at_work: set[_Connection] = set()
        self._being_made: set[asyncio.Task[_Row | None]] = set()
        self._rests_until_s = 0.0
        self._rest_s = _FIRST_REST_S
        self._is_closed = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<QuickLane {len(self._idle)} idle, {len(self._at_work)} at work, {len(self._being_made)} being made>"

    def is_free(self) -> bool:
        """Whether it can take a call at once."""
        if self._is_closed or time.monotonic() < self._rests_until_s:
            return False
        return bool(self._idle) or len(self._at_work) + len(self._being_made) < self._most

    def figures(self) -> LaneFigures:
        """Its connections now."""
        return LaneFigures("quick", len(self._idle) + len(self._at_work), len(self._at_work), self._most)

    async def run(self, statement: Prepared, parameters: Mapping[str, Any], *, timeout_s: float) -> _Row | None:
        """The first row that the statement returns; None when there is none, or it was not done.

        It goes on when the caller is cancelled. Raises StoreUnavailable when the server does not answer in time.
        """
        if not self.is_free():
            return None
        values = statement.values(parameters)
        try:
            if self._idle:
                row = await self._execute(self._idle.pop(), statement, values, timeout_s)
            else:
                row = await self._execute_on_new(statement, values, timeout_s)
        except _Failed:
            return None
        self._rest_s = _FIRST_REST_S
        return row

    def _execute(
        self, connection: _Connection, statement: Prepared, values: Sequence[Any], timeout_s: float
    ) -> asyncio.Future[_Row | None]:
        self._at_work.add(connection)
        return connection.execute(statement.execute, values, timeout_s)

    async def close(self) -> None:
        """Let calls under way finish or reach their deadline, then hang up."""
        self._is_closed = True
        while self._at_work or self._being_made:
            self._changed.clear()
            await self._changed.wait()
        while self._idle:
            self._idle.pop().close()

    def _release(self, connection: _Connection) -> None:
        self._at_work.discard(connection)
        if connection.is_closed:
            if connection in self._idle:
                self._idle.remove(connection)
            else:
                self._rest()
        else:
            self._idle.append(connection)
        self._changed.set()

    def _rest(self) -> None:
        self._rests_until_s = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)

    # --- new connections ----------------------------------------------------------------------------------------------

    async def _execute_on_new(self, statement: Prepared, values: Sequence[Any], timeout_s: float) -> _Row | None:
        """Raises _Failed, StoreUnavailable."""

        async def work() -> _Row | None:
            await self._connect(timeout_s)
            if not self._idle:  # another call was quicker
                raise _Failed
            return await self._execute(self._idle.pop(), statement, values, timeout_s)

        task = asyncio.ensure_future(work())
        self._being_made.add(task)
        task.add_done_callback(self._note_made)
        return await asyncio.shield(task)

    def _note_made(self, task: asyncio.Task[_Row | None]) -> None:
        self._being_made.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone
        self._changed.set()

    async def _connect(self, timeout_s: float) -> None:
        """Add an idle one, with the statements prepared. Raises _Failed, StoreUnavailable."""
        raw = None
        try:
            async with asyncio.timeout(timeout_s):
                # In a thread: names are looked up first, and that blocks.
                raw = await asyncio.to_thread(psycopg2.connect, **self._arguments, async_=True)
                await _log_in(raw)
            connection = _Connection(raw, self._release)
        except (psycopg2.Error, OSError, RuntimeError) as error:  # no descriptor, or no thread, is left
            if raw is not None:
                raw.close()
            self._rest()
            raise (StoreUnavailable if isinstance(error, TimeoutError) else _Failed) from error
        self._at_work.add(connection)
        await connection.execute(self._preparation, (), timeout_s)


async def _log_in(raw: extensions.connection) -> None:
    """Raises psycopg2.Error, OSError. libpq may go from one socket to another one meanwhile."""
    loop = asyncio.get_running_loop()
    while (state := raw.poll()) != extensions.POLL_OK:
        ready = asyncio.Event()
        watched_fd = os.dup(raw.fileno())
        try:
            if state == extensions.POLL_WRITE:
                loop.add_writer(watched_fd, ready.set)
            else:
                loop.add_reader(watched_fd, ready.set)
            await ready.wait()
        finally:
            loop.remove_reader(watched_fd)
            loop.remove_writer(watched_fd)
            os.close(watched_fd)
