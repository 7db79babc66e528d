"""The real clock; tests bring their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class SystemClock:
    """`sessions.ports.Clock` by the operating system."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        return datetime.now(UTC)
