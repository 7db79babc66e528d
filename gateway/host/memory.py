"""Has memory that is free go back to the system. With another C library than glibc nothing is done."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from pathlib import Path
from typing import Any

_M_MMAP_THRESHOLD = -3  # malloc.h
_THRESHOLD_BYTES = 1 << 20

_GROWN_BYTES = 16 << 20
_QUIET_BYTES = 2 << 20
_MOST_LOOKS = 60
_PAUSE_S = 1.0
_LATE_PAUSES = 5


def return_large_blocks() -> None:
    """From now on, have what is larger than 1 MiB returned as soon as it is freed.

    glibc itself raises this threshold, up to 32 MiB, whenever such a block is freed. Request bodies and answers would
    then be cut out of its heaps, which stay as large as they have ever been.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)


async def return_free_memory(pause_s: float = _PAUSE_S) -> None:
    """Return what is free in the heaps after each time in which the process has grown, and soon again. Does not end.

    What only the collector finds is collected before: exceptions keep the bodies that they were raised for.
    """
    trim = _function("malloc_trim")
    if trim is None:
        return
    growth = Growth(resident_bytes())
    while True:
        await asyncio.sleep(pause_s)
        if growth.is_over(resident_bytes()):
            for pauses in (0, _LATE_PAUSES):  # once more for what clients that read nothing have kept a little longer
                await asyncio.sleep(pauses * pause_s)
                gc.collect()
                await asyncio.to_thread(trim, 0)
            growth = Growth(resident_bytes())


class Growth:
    """Tells when a process that has grown is quiet again, or has been at it for a minute.

    Its state: the least that it had, what it had last, and how often it was looked at since it has grown.
    """

    def __init__(self, resident: int) -> None:
        self._least = self._last = resident
        self._looks = 0

    def is_over(self, resident: int) -> bool:
        """Look again."""
        self._least = min(self._least, resident)
        if self._looks or resident > self._least + _GROWN_BYTES:
            self._looks += 1
        is_quiet = abs(resident - self._last) < _QUIET_BYTES
        self._last = resident
        return self._looks > 0 and (is_quiet or self._looks >= _MOST_LOOKS)


def resident_bytes() -> int:
    """The memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _function(name: str) -> Any:
    """A function of the C library, or None."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
