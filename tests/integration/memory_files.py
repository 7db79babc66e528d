"""`sessions.kernels.files.SupervisorFiles` in memory: a file is there once it is committed.

Readers and writers are counted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sessions.errors import Conflict, NotFound, TooLarge
from sessions.model import FileEntry

PIECE_BYTES = 256 << 10
WRITTEN_AT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


@dataclass
class MemoryFiles:
    """`content` by path; `open_count` counts readers and writers that were not closed. `gate` holds writes back."""

    content: dict[str, bytes] = field(default_factory=dict)
    open_count: int = 0
    written_bytes: int = 0
    largest_piece_bytes: int = 0
    gate: asyncio.Event | None = None
    shrinks: bool = False
    next_error: Exception | None = None
    was_opened: asyncio.Event = field(default_factory=asyncio.Event)
    was_closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def list(self) -> list[FileEntry]:
        return [self.entry(path) for path in sorted(self.content)]

    async def open(self, path: str) -> MemoryReader:
        return MemoryReader(self, self.entry(path))

    async def create(self, path: str, limit_bytes: int) -> MemoryWriter:
        return MemoryWriter(self, path, limit_bytes)

    async def remove(self, path: str) -> None:
        self.entry(path)
        del self.content[path]

    def entry(self, path: str) -> FileEntry:
        if path not in self.content:
            raise NotFound("There is no such file.")
        return FileEntry(path, len(self.content[path]), WRITTEN_AT)

    def opened(self) -> None:
        self.open_count += 1
        self.was_opened.set()

    def closed(self) -> None:
        self.open_count -= 1
        self.was_closed.set()


class MemoryReader:
    def __init__(self, files: MemoryFiles, entry: FileEntry) -> None:
        self.entry = entry
        self._files = files
        self._at = 0
        files.opened()

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self._files.shrinks and self._at:
            raise Conflict("The file became shorter while it was read.")
        piece = self._files.content[self.entry.path][self._at : self._at + PIECE_BYTES]
        self._at += len(piece)
        return piece

    def close(self) -> None:
        self._files.closed()


class MemoryWriter:
    def __init__(self, files: MemoryFiles, path: str, limit_bytes: int) -> None:
        self._files = files
        self._path = path
        self._limit_bytes = limit_bytes
        self._data = bytearray()
        files.opened()

    async def write(self, data: bytes) -> None:
        self._files.largest_piece_bytes = max(self._files.largest_piece_bytes, len(data))
        if self._files.gate is not None:
            await self._files.gate.wait()
        if self._files.next_error is not None:
            raise self._files.next_error
        self._data += data
        self._files.written_bytes += len(data)
        if len(self._data) > self._limit_bytes:
            raise TooLarge("The file is too large.")

    async def commit(self) -> tuple[FileEntry, bool]:
        is_new = self._path not in self._files.content
        self._files.content[self._path] = bytes(self._data)
        return self._files.entry(self._path), is_new

    def close(self) -> None:
        self._files.closed()
