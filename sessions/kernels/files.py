"""Files of a sandbox, as the gateway sees them: listed, read, written and removed by asking its supervisor.

What the answers say is judged here, every type and number of it; whether there is one is file_exchange.py's business.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kernel_image import protocol
from sessions.errors import InvalidRequest, TooLarge
from sessions.kernels.file_exchange import BAD_PATH, FileExchange, Transfer, wrong_answer
from sessions.model import FileEntry
from sessions.sanitize import relative_path

_MAX_PAGES = 20
_MAX_FILE_BYTES = 1 << 53
_ENTRY_FIELDS = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)


class Transfers:
    """`sessions.ports.KernelFiles` over the link of the moment to one supervisor.

    `send_text` and `send_binary` send a frame on that link; without one they raise Unavailable or do nothing. An answer
    must come within `answer_timeout_s`.
    """

    def __init__(
        self, send_text: Callable[[str], None], send_binary: Callable[[bytes], None], answer_timeout_s: float
    ) -> None:
        self._exchange = FileExchange(send_text, send_binary, answer_timeout_s)

    def __repr__(self) -> str:
        return f"<Transfers {self._exchange!r}>"

    async def list(self) -> builtins.list[FileEntry]:
        """All files, by path, up to the supervisor's own bound and at most twenty pages."""
        entries: list[FileEntry] = []
        after = ""
        with self._exchange.transfer() as transfer:
            for _ in range(_MAX_PAGES):
                answer = await transfer.ask(protocol.FILE_LIST, protocol.FILE_ENTRIES, after=after)
                page, after, goes_on = _page_of(answer.fields, after)
                entries += page
                if not goes_on:
                    break
        return entries

    async def open(self, path: str) -> Reader:
        """Open one for reading."""
        _check(path)
        with self._exchange.transfer(stays=True) as transfer:
            answer = await transfer.ask(protocol.FILE_OPEN, protocol.FILE_OPENED, path=path)
            return Reader(transfer, _entry_of(path, answer.fields))

    async def create(self, path: str, limit_bytes: int) -> Writer:
        """Begin to write one, with the directories that it needs."""
        _check(path)
        with self._exchange.transfer(stays=True) as transfer:
            await transfer.ask(protocol.FILE_CREATE, protocol.FILE_OPENED, path=path, limit_bytes=limit_bytes)
            return Writer(transfer, path, limit_bytes)

    async def remove(self, path: str) -> None:
        """Remove one."""
        _check(path)
        with self._exchange.transfer() as transfer:
            await transfer.ask(protocol.FILE_REMOVE, protocol.FILE_REMOVED, path=path)

    def handle_control(self, fields: Mapping[str, Any]) -> None:
        """Take a control message whose `op` begins with `file_`."""
        self._exchange.handle_control(fields)

    def handle_frame(self, data: bytes | memoryview) -> None:
        """Take a binary frame numbered 0, without its number."""
        self._exchange.handle_frame(data)

    def link_lost(self) -> None:
        """Fail everything under way with Unavailable; what begins later goes over another link."""
        self._exchange.link_lost()


class Reader:
    """`sessions.ports.FileReader`. Its state: how much has been read."""

    def __init__(self, transfer: Transfer, entry: FileEntry) -> None:
        self._transfer = transfer
        self._entry = entry
        self._offset = 0

    @property
    def entry(self) -> FileEntry:
        """What the file was when it was opened."""
        return self._entry

    async def read(self) -> bytes:
        """The next piece; empty at the end."""
        left = self._entry.size_bytes - self._offset
        if left == 0:
            return b""
        answer = await self._transfer.ask(protocol.FILE_READ, protocol.FILE_CHANNEL)
        piece = answer.piece
        is_next = _is_number(answer.fields.get("offset"), self._offset, self._offset)
        if not is_next or not 0 < len(piece) <= min(left, protocol.FILE_PIECE_BYTES):
            self._transfer.close()
            raise wrong_answer()
        self._offset += len(piece)
        return piece

    def close(self) -> None:
        """Let it go."""
        self._transfer.close()


class Writer:
    """`sessions.ports.FileWriter`. Its state: how much has been written."""

    def __init__(self, transfer: Transfer, path: str, limit_bytes: int) -> None:
        self._transfer = transfer
        self._path = path
        self._limit_bytes = limit_bytes
        self._written_bytes = 0

    async def write(self, data: bytes) -> None:
        """Add a piece; more than a piece goes in several."""
        if self._written_bytes + len(data) > self._limit_bytes:
            self._transfer.close()
            raise TooLarge(f"The file is larger than the {self._limit_bytes} bytes allowed: send a smaller one.")
        for start in range(0, len(data), protocol.FILE_PIECE_BYTES):
            piece = data[start : start + protocol.FILE_PIECE_BYTES]
            answer = await self._transfer.give(piece, self._written_bytes)
            self._written_bytes += len(piece)
            if not _is_number(answer.fields.get("offset"), self._written_bytes, self._written_bytes):
                self._transfer.close()
                raise wrong_answer()

    async def commit(self) -> tuple[FileEntry, bool]:
        """Put the file in its place; returns it, and whether there was none of that name."""
        answer = await self._transfer.ask(protocol.FILE_COMMIT, protocol.FILE_COMMITTED)
        self._transfer.end()
        entry, is_new = _entry_of(self._path, answer.fields), answer.fields.get("created")
        if entry.size_bytes != self._written_bytes or not isinstance(is_new, bool):
            raise wrong_answer()
        return entry, is_new

    def close(self) -> None:
        """Forget what has not been committed."""
        self._transfer.close()


def _check(path: str) -> None:
    """Raise InvalidRequest unless the path can be a file's, and is text all through."""
    if relative_path(path) != path:
        raise InvalidRequest(BAD_PATH)


def _page_of(fields: Mapping[str, Any], after: str) -> tuple[list[FileEntry], str, bool]:
    """The entries of a page, the path after which to go on, and whether to. Raises Unavailable for a wrong one."""
    rows, goes_on = fields.get("entries"), fields.get("more")
    if not isinstance(rows, list) or len(rows) > protocol.FILE_PAGE or not isinstance(goes_on, bool):
        raise wrong_answer()
    entries = []
    for row in rows:
        if not isinstance(row, list) or len(row) != _ENTRY_FIELDS:
            raise wrong_answer()
        path = relative_path(row[0])
        if path is None or row[0] <= after:
            raise wrong_answer()
        after = row[0]
        entries.append(_entry_of(path, {"bytes": row[1], "mtime_ns": row[2]}))
    if goes_on and not rows:
        raise wrong_answer()
    return entries, after, goes_on


def _entry_of(path: str, fields: Mapping[str, Any]) -> FileEntry:
    """A file with what an answer says of it. Raises Unavailable for a wrong one."""
    size_bytes, mtime_ns = fields.get("bytes"), fields.get("mtime_ns")
    if not _is_number(size_bytes, 0, _MAX_FILE_BYTES) or type(mtime_ns) is not int:
        raise wrong_answer()
    return FileEntry(path, int(size_bytes or 0), _time_of(mtime_ns))


def _time_of(mtime_ns: int) -> datetime:
    """The time, or the nearest there is in our calendar: code can give its files any."""
    try:
        return _EPOCH + timedelta(microseconds=mtime_ns // 1000)
    except OverflowError:
        return _LATEST if mtime_ns > 0 else _EARLIEST


def _is_number(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
