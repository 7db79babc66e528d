"""SIGTERM and SIGINT: events that the composition root waits on, or, for commands, the end of a block."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_IS_HANDLED = ContextVar("ending_on_sigterm", default=False)


class StopSignals:
    """The first signal asks to stop, the second to hurry; before `serving` is set, one cancels the start-up instead.

    The state is the three events.
    """

    def __init__(self) -> None:
        self.serving = asyncio.Event()
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def install(self, start_up: asyncio.Future[None]) -> None:
        """Handle the signals of this process from now on. Needs a running loop in the main thread."""

        def on_signal() -> None:
            if self.stop.is_set():
                self.hurry.set()
            self.stop.set()
            if not self.serving.is_set():
                start_up.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Have SIGTERM cancel the task that is in the outermost of these blocks, and end the program behind it.

    Needs a running loop in the main thread. Raises SystemExit with the status that shells give for the signal.
    """
    if _IS_HANDLED.get():
        yield
        return
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a loop is running
    has_come = False

    def on_signal() -> None:
        nonlocal has_come
        has_come = True
        task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_signal)
    mark = _IS_HANDLED.set(True)
    try:
        yield
    except asyncio.CancelledError:
        if not has_come:
            raise
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        _IS_HANDLED.reset(mark)
        loop.remove_signal_handler(signal.SIGTERM)
