"""Lines of standard input that is no terminal, read by a thread that nobody waits for: a read cannot be cancelled."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TextIO


class InputLines:
    """The mutable state is the line that is being read. It is the next one, if whoever asked for it has gone away."""

    def __init__(self, stream: TextIO) -> None:
        self._file = stream
        with suppress(OSError):  # a test's has no descriptor
            # A file of its own: Python closes standard input at the end, and would wait for the thread in it.
            self._file = open(stream.fileno(), encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
        self._reading: asyncio.Future[str] | None = None

    async def next(self) -> str:
        """With its end; empty behind the last one. Raises what reading raises."""
        reading = self._reading
        if reading is None:
            reading = self._reading = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._read, args=(reading,), name="standard input", daemon=True).start()
        line = await asyncio.shield(reading)
        self._reading = None
        return line

    def _read(self, reading: asyncio.Future[str]) -> None:
        line, error = "", None
        try:
            line = self._file.readline()
        except (OSError, ValueError) as failure:
            error = failure
        with suppress(RuntimeError):  # the loop has ended
            reading.get_loop().call_soon_threadsafe(_settle, reading, line, error)


def _settle(reading: asyncio.Future[str], line: str, error: Exception | None) -> None:
    if reading.done():
        return
    if error is None:
        reading.set_result(line)
    else:
        reading.set_exception(error)
