"""SIGTERM and SIGINT, as events that the composition root waits on."""

from __future__ import annotations

import asyncio
import signal


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
