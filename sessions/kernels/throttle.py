"""Limits how much of the gateway's time one sandbox may use, whatever it floods the gateway with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sessions.ports import Clock

_SHARE = 0.25
_BURST_S = 1.0


class Throttle:
    """The mutable state: the time that is left, and when time was last added."""

    def __init__(self, clock: Clock, share: float = _SHARE) -> None:
        self._clock = clock
        self._share = share
        self._left_s = _BURST_S
        self._at_s = clock.monotonic()

    def metered(self, handle: Callable[..., None], *args: Any) -> float:
        """Do one piece of work; returns for how many seconds the next one must wait: none with a share of all time."""
        before_s = self._clock.monotonic()
        handle(*args)
        now_s = self._clock.monotonic()
        earned_s = (now_s - self._at_s) * self._share
        self._left_s = min(_BURST_S, self._left_s + earned_s) - (now_s - before_s)
        self._at_s = now_s
        return max(0.0, -self._left_s / self._share) if self._share < 1 else 0.0
