"""Files of a sandbox, listed, read, written and removed by asking its supervisor.

The supervisor may be hostile by now. An answer counts when a transfer waits for it, and a wrong answer fails that
transfer and nothing else. What an answer may say is checked in file_answers.py.
"""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kernel_image import protocol
from sessions.errors import CellblockError, ProtocolViolation, TooLarge, Unavailable
from sessions.kernels.file_answers import (
    FAILURES,
    check_path,
    entry_of,
    failure,
    is_number,
    link_lost,
    page_of,
    wrong_answer,
)
from sessions.kernels.messages import decode_object
from sessions.model import FileEntry
from sessions.ports import Link

_MAX_AT_ONCE = 8
_MAX_PAGES = 20
_MAX_FRAME_BYTES = protocol.FILE_PIECE_BYTES + (64 << 10)
_PIECE_PARTS = 5
_PIECE_HEADER = json.dumps({"msg_id": "", "msg_type": "file"}).encode()


class SupervisorFiles:
    """The files below a kernel's working directory, over the current link to its supervisor.

    A path is relative, without `..`. Raises NotFound, InvalidRequest for what is no regular file, or lies behind a
    link; Unavailable when the sandbox does not answer in time, or is gone.

    `linked` returns that link, or raises Unavailable. The supervisor must answer each question within
    `answer_timeout_s`. The mutable state is the transfers under way, by id.
    """

    def __init__(self, linked: Callable[[], Link], answer_timeout_s: float) -> None:
        self.linked = linked
        self.answer_timeout_s = answer_timeout_s
        self._transfers: dict[str, _Transfer] = {}
        self._last_id = 0

    def __repr__(self) -> str:
        waiting = sum(transfer.is_waiting() for transfer in self._transfers.values())
        return f"<SupervisorFiles {len(self._transfers)} under way, {waiting} without an answer>"

    # --- requests -----------------------------------------------------------------------------------------------------

    async def list(self) -> builtins.list[FileEntry]:
        """All files, by path, up to the supervisor's own bound and at most twenty pages."""
        entries: list[FileEntry] = []
        after = ""
        with self._transfer() as transfer:
            for _ in range(_MAX_PAGES):
                answer = await transfer.ask(protocol.FILE_LIST, protocol.FILE_ENTRIES, after=after)
                page, after, goes_on = page_of(answer.fields, after)
                entries += page
                if not goes_on:
                    break
        return entries

    async def open(self, path: str) -> SandboxFileReader:
        """Open a file for reading."""
        check_path(path)
        with self._transfer(stays=True) as transfer:
            answer = await transfer.ask(protocol.FILE_OPEN, protocol.FILE_OPENED, path=path)
            return SandboxFileReader(transfer, entry_of(path, answer.fields))

    async def create(self, path: str, limit_bytes: int) -> SandboxFileWriter:
        """Begin to write a file, with the directories that it needs."""
        check_path(path)
        with self._transfer(stays=True) as transfer:
            await transfer.ask(protocol.FILE_CREATE, protocol.FILE_OPENED, path=path, limit_bytes=limit_bytes)
            return SandboxFileWriter(transfer, path, limit_bytes)

    async def remove(self, path: str) -> None:
        """Remove a file."""
        check_path(path)
        with self._transfer() as transfer:
            await transfer.ask(protocol.FILE_REMOVE, protocol.FILE_REMOVED, path=path)

    @contextmanager
    def _transfer(self, *, stays: bool = False) -> Iterator[_Transfer]:
        """A transfer that ends with the block, or outlives it when it `stays` and the block does not fail.

        Raises TooManyRequests.
        """
        if len(self._transfers) >= _MAX_AT_ONCE:
            raise failure("too_many")
        self._last_id += 1
        transfer = self._transfers[str(self._last_id)] = _Transfer(self, str(self._last_id))
        try:
            yield transfer
        except BaseException:
            transfer.close()
            raise
        if not stays:
            transfer.end()

    def forget(self, transfer_id: str) -> None:
        """This transfer has ended."""
        self._transfers.pop(transfer_id, None)

    # --- what the supervisor sends ------------------------------------------------------------------------------------

    def handle_control(self, fields: Mapping[str, Any]) -> None:
        """Handle a control message whose `op` begins with `file_`. One that no transfer waits for is dropped."""
        transfer = self._waiting(fields)
        if transfer is None:
            return
        op, why = fields.get("op"), fields.get("why")
        if op == transfer.expected:
            transfer.resolve(_Answer(fields))
        elif op == protocol.FILE_FAILED and isinstance(why, str) and why in FAILURES:
            transfer.resolve(failure(why))
        else:
            transfer.resolve(wrong_answer())

    def handle_frame(self, data: bytes | memoryview) -> None:
        """Handle a binary frame numbered 0, without its number. What is no piece of an awaited file is dropped."""
        if len(data) > _MAX_FRAME_BYTES:
            return
        try:
            channel, parts = protocol.decode_message(data)
            fields = decode_object(parts[3])
        except (protocol.FrameError, ProtocolViolation):
            return
        transfer = self._waiting(fields)
        if transfer is None:
            return
        is_piece = channel == protocol.FILE_CHANNEL == transfer.expected and len(parts) == _PIECE_PARTS
        transfer.resolve(_Answer(fields, parts[-1]) if is_piece else wrong_answer())

    def handle_link_lost(self) -> None:
        """Fail the transfers under way with Unavailable: the supervisor closes all files with the connection."""
        for transfer in self._transfers.values():
            transfer.handle_link_lost()

    def _waiting(self, fields: Mapping[str, Any]) -> _Transfer | None:
        """The transfer that waits for this answer."""
        transfer_id = fields.get("id")
        transfer = self._transfers.get(transfer_id) if isinstance(transfer_id, str) else None
        return transfer if transfer is not None and transfer.is_waiting() else None


@dataclass(frozen=True, slots=True)
class _Answer:
    """The fields of a control message, or those of a frame with a piece of a file."""

    fields: Mapping[str, Any]
    piece: bytes = b""


class _Transfer:
    """What goes on under one id, over the link on which it began: one question at a time.

    `expected` is the kind of answer that the last question wants: a control message's `op`, or `FILE_CHANNEL` for a
    frame. The first question that fails ends the transfer. The mutable state is the answer that is awaited, whether
    the link is lost, and whether the transfer has ended.
    """

    def __init__(self, files: SupervisorFiles, transfer_id: str) -> None:
        self.expected = ""
        self._files = files
        self._id = transfer_id
        self._answer: asyncio.Future[_Answer | CellblockError] | None = None
        self._is_link_lost = False
        self._has_ended = False

    def is_waiting(self) -> bool:
        """Whether a question has no answer yet."""
        return self._answer is not None

    async def ask(self, op: str, expected: str, **fields: Any) -> _Answer:
        """Ask by a control message. Raises what a refusal means, or Unavailable."""
        text = protocol.encode_control(op, id=self._id, **fields)
        return await self._ask(expected, lambda: self._files.linked().send_text(text))

    async def send_piece(self, piece: bytes, offset: int) -> _Answer:
        """Send a piece. Raises as `ask` does."""
        content = json.dumps({"id": self._id, "offset": offset}).encode()
        frame = protocol.encode_message(protocol.FILE_CHANNEL, [_PIECE_HEADER, b"{}", b"{}", content, piece])
        return await self._ask(protocol.FILE_WRITTEN, lambda: self._files.linked().send_binary(frame))

    async def _ask(self, expected: str, send: Callable[[], None]) -> _Answer:
        if self._is_link_lost:
            self.close()
            raise link_lost()
        if self._has_ended:
            raise Unavailable("This file is not open any more; try again.")
        if self._answer is not None:
            raise RuntimeError("a transfer was used twice at a time")
        self.expected, self._answer = expected, asyncio.get_running_loop().create_future()
        try:
            send()
            async with asyncio.timeout(self._files.answer_timeout_s):
                return _unless_refused(await self._answer)
        except TimeoutError:
            self.close()
            raise Unavailable("The sandbox did not answer in time; try again.") from None
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = None

    def resolve(self, answer: _Answer | CellblockError) -> None:
        """The answer has come; only the first one counts."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def handle_link_lost(self) -> None:
        """The supervisor has closed what it had open."""
        self._is_link_lost = True
        self.resolve(link_lost())

    def end(self) -> None:
        """Make room for another transfer. The supervisor has nothing open for this one."""
        self._has_ended = True
        self._files.forget(self._id)

    def close(self) -> None:
        """End, and have the supervisor close what it may have open. Does nothing the second time."""
        if self._has_ended:
            return
        self.end()
        if not self._is_link_lost:
            with suppress(Unavailable):
                self._files.linked().send_text(protocol.encode_control(protocol.FILE_CLOSE, id=self._id))


class SandboxFileReader:
    """A sandbox's file, open for reading. The mutable state is how much has been read.

    `entry` is the file as it was when it was opened; its size is how many bytes there are to read. Raises Unavailable
    when the sandbox does not answer, or is gone.
    """

    def __init__(self, transfer: _Transfer, entry: FileEntry) -> None:
        self._transfer = transfer
        self.entry = entry
        self._offset = 0

    async def read(self) -> bytes:
        """The next piece, at most 256 KiB; empty at the end. Raises Conflict when the file has become shorter."""
        left = self.entry.size_bytes - self._offset
        if left == 0:
            return b""
        answer = await self._transfer.ask(protocol.FILE_READ, protocol.FILE_CHANNEL)
        piece = answer.piece
        is_next = is_number(answer.fields.get("offset"), self._offset, self._offset)
        if not is_next or not 0 < len(piece) <= min(left, protocol.FILE_PIECE_BYTES):
            self._transfer.close()
            raise wrong_answer()
        self._offset += len(piece)
        return piece

    def close(self) -> None:
        """Close the file. Always call this."""
        self._transfer.close()


class SandboxFileWriter:
    """A new file beside the one that it will replace. The mutable state is how much has been written.

    Raises Unavailable as SandboxFileReader does.
    """

    def __init__(self, transfer: _Transfer, path: str, limit_bytes: int) -> None:
        self._transfer = transfer
        self._path = path
        self._limit_bytes = limit_bytes
        self._written_bytes = 0

    async def write(self, data: bytes) -> None:
        """Append `data`, in pieces of at most 256 KiB. Raises TooLarge when file or disk have no room for it."""
        if self._written_bytes + len(data) > self._limit_bytes:
            self._transfer.close()
            raise TooLarge(f"The file is larger than the {self._limit_bytes} bytes allowed: send a smaller one.")
        for start in range(0, len(data), protocol.FILE_PIECE_BYTES):
            piece = data[start : start + protocol.FILE_PIECE_BYTES]
            answer = await self._transfer.send_piece(piece, self._written_bytes)
            self._written_bytes += len(piece)
            if not is_number(answer.fields.get("offset"), self._written_bytes, self._written_bytes):
                self._transfer.close()
                raise wrong_answer()

    async def commit(self) -> tuple[FileEntry, bool]:
        """Move the file into place atomically; returns it, and whether its name is new."""
        answer = await self._transfer.ask(protocol.FILE_COMMIT, protocol.FILE_COMMITTED)
        self._transfer.end()
        entry, is_new = entry_of(self._path, answer.fields), answer.fields.get("created")
        if entry.size_bytes != self._written_bytes or not isinstance(is_new, bool):
            raise wrong_answer()
        return entry, is_new

    def close(self) -> None:
        """Discard what has not been committed. Always call this."""
        self._transfer.close()


def _unless_refused(answer: _Answer | CellblockError) -> _Answer:
    if isinstance(answer, CellblockError):
        raise answer
    return answer
