"""Huge pages for a process that is forked often: a fork copies its page table, in which each is a single entry.

A fork that writes to a huge page gets small pages in its place. What is shared stays shared, and is counted as before.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MADV_COLLAPSE = 25
"""madvise(2), since Linux 6.1. Where it is not known, or there is no room, the pages stay as they are."""


def collapse() -> None:
    """Put this process's own memory into huge pages, as far as that is possible."""
    with suppress(OSError, ValueError):
        size = int(_SIZE.read_text("ascii"))
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, end in _own_memory(Path("/proc/self/maps").read_text("utf-8", "replace")):
            for address in range(-(-start // size) * size, end - size + 1, size):
                libc.madvise(address, size, _MADV_COLLAPSE)


def _own_memory(maps: str) -> list[tuple[int, int]]:
    """The start and the end of all that is private, writable and of no file, apart from stacks; see proc(5)."""
    found = []
    for line in maps.splitlines():
        addresses, rights, _offset, _device, inode, *name = line.split(maxsplit=5)
        if rights.startswith("rw") and rights.endswith("p") and inode == "0" and name in ([], ["[heap]"]):
            start, _, end = addresses.partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found
