"""The CPU time that is used while no request runs, by what code has left running: measured, and told as it adds up.

What the supervisor itself uses does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kernel_image.accounting import Meter, Reading

_WORTH_TELLING_S = 0.05
_FIRST_LOOK_S = 1.0
_LONGEST_PAUSE_S = 15.0


class BetweenRuns:
    """Its state: the CPU time up to which all has been told, or belongs to a run; and when it looks again.

    It begins with the end of the first request: before that, nothing of a user's has run.
    """

    def __init__(self, meter: Meter, tell: Callable[[dict[str, Any]], None]) -> None:
        """`tell` gets a `usage` object."""
        self._meter = meter
        self._tell = tell
        self._told_s = 0.0
        self._untold_s = 0.0
        self._next_look: asyncio.TimerHandle | None = None

    def begin(self, reading: Reading) -> None:
        """The last request has ended with this reading."""
        if self._next_look is None:
            self._told_s = reading.code_cpu_s - self._untold_s
            self._look_after(_FIRST_LOOK_S)

    def end(self, reading: Reading) -> None:
        """A request begins with this reading."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
            self._tell_if_worth(reading)
            self._untold_s = max(0.0, reading.code_cpu_s - self._told_s)

    def _look_after(self, pause_s: float) -> None:
        self._next_look = asyncio.get_running_loop().call_later(pause_s, self._look, pause_s)

    def _look(self, pause_s: float) -> None:
        told = self._tell_if_worth(self._meter.read())
        self._look_after(_FIRST_LOOK_S if told else min(2 * pause_s, _LONGEST_PAUSE_S))

    def _tell_if_worth(self, reading: Reading) -> bool:
        used_s = reading.code_cpu_s - self._told_s
        if used_s < _WORTH_TELLING_S:
            return False
        self._told_s = reading.code_cpu_s
        self._tell({"wall_ms": 0, "cpu_ms": round(used_s * 1e3, 3), "memory_peak_bytes": reading.memory_bytes})
        return True
