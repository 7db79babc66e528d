"""How much of the gateway's time one sandbox may take: whatever a flood is made of, it gets a share and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sessions.ports import Clock

_SHARE = 0.25
_BURST_S = 1.0


class Throttle:
    """The state: what is left of the time, and when it was last added to."""

    def __init__(self, clock: Clock, share: float = _SHARE) -> None:
        self._clock = clock
        self._share = share
        self._left_s = _BURST_S
        self._at_s = clock.monotonic()

    def metered(self, handle: Callable[..., None], *args: Any) -> float:
        """Do one piece of work; returns for how many seconds the next one must wait."""
        before_s = self._clock.monotonic()
        handle(*args)
        now_s = self._clock.monotonic()
        earned_s = (now_s - self._at_s) * self._share
        self._left_s = min(_BURST_S, self._left_s + earned_s) - (now_s - before_s)
        self._at_s = now_s
        return max(0.0, -self._left_s / self._share)
