"""The last output of a kernel, in memory shared with the supervisor, so that a crash cannot take it along.

ipykernel hands its output to a thread that sends it within 0.2 s; a kernel that dies in between loses it. Every write
is therefore copied here first. The supervisor compares how much was written with how much arrived, and takes the rest.
Both ends are here; who maps the file, and when, is not this module's business.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path

RING_BYTES = 256 << 10
"""How much of the end of each stream is kept."""

STREAMS = ("stdout", "stderr")
_TOTAL = struct.Struct("<Q")
_REGION_BYTES = _TOTAL.size + RING_BYTES


def encode(text: str) -> bytes:
    """The bytes that stand for `text` in the ring and in both ends' counts."""
    return text.encode("utf-8", "replace")


def create(path: Path) -> None:
    """Make the file that both ends map, whatever the last kernel has put in its place."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.truncate(_REGION_BYTES * len(STREAMS))


class Tail:
    """One stream's ring in the mapped file at `path`, for one writer process and one reader."""

    def __init__(self, path: Path, stream: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(descriptor, _REGION_BYTES * len(STREAMS))
        finally:
            os.close(descriptor)
        self._start = STREAMS.index(stream) * _REGION_BYTES
        self._lock = threading.Lock()

    @property
    def written_bytes(self) -> int:
        """How much has ever been written to this stream."""
        total: int = _TOTAL.unpack_from(self._memory, self._start)[0]
        return total

    def write(self, data: bytes) -> None:
        """Add to the end; what is older than the ring is long falls out."""
        with self._lock:
            total = self.written_bytes + len(data)
            kept = data[-RING_BYTES:]
            ring = self._start + _TOTAL.size
            position = (total - len(kept)) % RING_BYTES
            first = min(len(kept), RING_BYTES - position)
            self._memory[ring + position : ring + position + first] = kept[:first]
            self._memory[ring : ring + len(kept) - first] = kept[first:]
            _TOTAL.pack_into(self._memory, self._start, total)

    def after(self, seen_bytes: int) -> tuple[bytes, int]:
        """What was written behind the first `seen_bytes`, and how many bytes of that have already fallen out.

        The writer may be hostile: any total it left there gives an answer of at most `RING_BYTES`.
        """
        total = self.written_bytes
        missing = max(0, total - seen_bytes)
        kept = min(missing, RING_BYTES)
        position = (total - kept) % RING_BYTES
        ring = self._start + _TOTAL.size
        first = min(kept, RING_BYTES - position)
        data = self._memory[ring + position : ring + position + first] + self._memory[ring : ring + kept - first]
        return data, missing - kept

    def close(self) -> None:
        """Unmap."""
        self._memory.close()
