"""Lines that say what is being measured, on standard error."""

from __future__ import annotations

import sys
import time

_BEGUN_S = time.monotonic()


def say(what: str) -> None:
    """One line, with the minutes since the beginning."""
    passed_s = int(time.monotonic() - _BEGUN_S)
    print(f"{passed_s // 60:3}:{passed_s % 60:02}  {what}", file=sys.stderr, flush=True)
