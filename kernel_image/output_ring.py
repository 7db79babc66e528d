"""The output ring: the end of a kernel's output, in memory shared with the supervisor, where a crash cannot lose it.

ipykernel hands output to a thread that sends it within 0.2 s; a kernel that dies in between loses it. Every write is
therefore copied here first. The supervisor compares how much was written with how much arrived, and sends the rest.
This module has both ends of the ring; who maps the file, and when, is not its business.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

RING_BYTES = 256 << 10
"""How much of the end of each stream is kept."""

STREAMS = ("stdout", "stderr")

SENT_METADATA = "cellblock_sent"
"""Metadata field of `stream` messages: the stream's name, and how many of its bytes have been sent with this one."""

_TOTAL = struct.Struct("<Q")
_REGION_BYTES = _TOTAL.size + RING_BYTES


def encode(text: str) -> bytes:
    """The bytes that stand for `text` in the ring and in both ends' counts."""
    return text.encode("utf-8", "replace")


def create(path: Path) -> None:
    """Make the file that both ends map, whatever the last kernel has put in its place."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        # Allocated, not only sized: touching a hole of a mapped file on a full disk is a SIGBUS.
        os.posix_fallocate(file.fileno(), 0, _REGION_BYTES * len(STREAMS))


def written_bytes(path: Path) -> dict[str, int]:
    """How much has been written so far, by stream."""
    written = {}
    for stream in STREAMS:
        ring = OutputRing(path, stream)
        written[stream] = ring.written_bytes
        ring.close()
    return written


def unsent_output(path: Path, sent_bytes: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """By stream: the text that was written but never sent, and how many bytes before it are lost."""
    unsent = {}
    for stream in STREAMS:
        try:
            ring = OutputRing(path, stream)
        except (OSError, ValueError):  # the code has done something to the file
            continue
        data, gone_bytes = ring.after(sent_bytes.get(stream, 0))
        ring.close()
        if data:
            unsent[stream] = (data.decode("utf-8", "replace"), gone_bytes)
    return unsent


class OutputRing:
    """One stream's ring in the mapped file at `path`, for one writer process and one reader.

    The writer's threads must take turns; its signal handlers may write at any time. Its state: how much has ever been
    written.
    """

    def __init__(self, path: Path, stream: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(self._descriptor, _REGION_BYTES * len(STREAMS))
        except BaseException:
            os.close(self._descriptor)
            raise
        self._start = STREAMS.index(stream) * _REGION_BYTES
        self._ring = self._start + _TOTAL.size
        self.written_bytes: int = _TOTAL.unpack_from(self._memory, self._start)[0]

    def write(self, data: bytes) -> None:
        """Add to the end; what is older than the ring is long falls out. On the way of every `print`."""
        start = self.written_bytes
        position, total = start % RING_BYTES, start + len(data)
        if position + len(data) <= RING_BYTES:
            begin = self._ring + position
            self._memory[begin : begin + len(data)] = data
        else:
            self._write_around(data, total)
        if self.written_bytes != start:  # a signal handler has written meanwhile, to the same place
            self.write(data)
            return
        self.written_bytes = total  # behind the data, for a KeyboardInterrupt may come anywhere; before any other call
        _TOTAL.pack_into(self._memory, self._start, total)

    def _write_around(self, data: bytes, total: int) -> None:
        """Write what reaches over the end of the ring, to its end and then from its beginning."""
        kept = data[-RING_BYTES:]
        position = (total - len(kept)) % RING_BYTES
        first = min(len(kept), RING_BYTES - position)
        self._memory[self._ring + position : self._ring + position + first] = kept[:first]
        self._memory[self._ring : self._ring + len(kept) - first] = kept[first:]

    def after(self, seen_bytes: int) -> tuple[bytes, int]:
        """What was written behind the first `seen_bytes`, and how many bytes of that have already fallen out.

        The writer may be hostile: any total it left there gives an answer of at most `RING_BYTES`, and the file is read
        here, not the mapping, whose pages may have been taken away.
        """
        region = os.pread(self._descriptor, _REGION_BYTES, self._start).ljust(_REGION_BYTES, b"\0")
        total: int = _TOTAL.unpack_from(region)[0]
        missing = max(0, total - seen_bytes)
        kept = min(missing, RING_BYTES)
        position = (total - kept) % RING_BYTES
        ring = region[_TOTAL.size :]
        data = (ring + ring)[position : position + kept]
        return data, missing - kept

    def close(self) -> None:
        """Unmap."""
        self._memory.close()
        os.close(self._descriptor)
