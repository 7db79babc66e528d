"""Questions to a supervisor about files, and their answers: one at a time per transfer, awaited for so long.

The supervisor may be anybody's by now: an answer counts when it is the one that is waited for, and a wrong one fails
that question and nothing else. What is asked is files.py's business.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kernel_image import protocol
from sessions.errors import (
    CellblockError,
    Conflict,
    InvalidRequest,
    NotFound,
    ProtocolViolation,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from sessions.kernels.messages import decode_object

BAD_PATH = (
    "A file's path is relative to the working directory, without empty parts, `.` or `..`, has at most "
    f"{protocol.MAX_PATH_CHARACTERS} characters, and no part of it begins with `.cellblock-`."
)

_MAX_AT_ONCE = 8
_MAX_FRAME_BYTES = protocol.FILE_PIECE_BYTES + (64 << 10)
_PIECE_PARTS = 5
_PIECE_HEADER = json.dumps({"msg_id": "", "msg_type": "file"}).encode()
_WHY: Mapping[str, tuple[type[CellblockError], str]] = {
    "not_found": (NotFound, "There is no file of this name in the session."),
    "not_a_file": (InvalidRequest, "There is something of this name that is no regular file: name a file."),
    "link": (InvalidRequest, "This file is behind a symbolic link: name the file that the link leads to."),
    "invalid": (InvalidRequest, BAD_PATH),
    "too_large": (TooLarge, "The file is larger than files may be here: send a smaller one."),
    "no_space": (TooLarge, "The sandbox's disk has no room for this file: remove what is no longer needed."),
    "too_many": (TooManyRequests, "Too many files of this session are under way: try again in a moment."),
    "changed": (Conflict, "Code in the session has changed this file meanwhile: try again."),
    "io": (Unavailable, "The sandbox could not read or write this file; try again."),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a supervisor says: the fields of a control message, or of a frame with a piece of a file."""

    fields: Mapping[str, Any]
    piece: bytes = b""


@dataclass(slots=True)
class _Question:
    """Waits for an answer of one kind: a control message's `op`, or a frame on `FILE_CHANNEL`."""

    kind: str
    future: asyncio.Future[Answer | CellblockError]

    def resolve(self, result: Answer | CellblockError) -> None:
        if not self.future.done():
            self.future.set_result(result)


def failure(why: str) -> CellblockError:
    """The error that a word of the protocol stands for."""
    error, message = _WHY[why]
    return error(message)


def wrong_answer() -> Unavailable:
    """For what no honest supervisor says."""
    return Unavailable("The sandbox gave an answer that makes no sense; try again.")


class FileExchange:
    """What is asked of one supervisor about files.

    Its state: the ids of the transfers under way, the questions without an answer, and how many links have been lost.
    """

    def __init__(
        self, send_text: Callable[[str], None], send_binary: Callable[[bytes], None], answer_timeout_s: float
    ) -> None:
        self.send_text = send_text
        self.send_binary = send_binary
        self.lost_links = 0
        self._answer_timeout_s = answer_timeout_s
        self._under_way: set[str] = set()
        self._questions: dict[str, _Question] = {}
        self._last_id = 0

    def __repr__(self) -> str:
        return f"<FileExchange {len(self._under_way)} under way, {len(self._questions)} without an answer>"

    @contextmanager
    def transfer(self, *, stays: bool = False) -> Iterator[Transfer]:
        """A transfer that ends with the block, or outlives it when it `stays` and the block does not fail.

        Raises TooManyRequests.
        """
        if len(self._under_way) >= _MAX_AT_ONCE:
            raise failure("too_many")
        self._last_id += 1
        transfer = Transfer(self, str(self._last_id))
        self._under_way.add(transfer.id)
        try:
            yield transfer
        except BaseException:
            transfer.close()
            raise
        if not stays:
            transfer.end()

    async def answer_to(self, transfer_id: str, kind: str, send: Callable[[], None]) -> Answer:
        """Ask by `send`, and wait. Raises what a refusal means, or Unavailable."""
        if transfer_id in self._questions:
            raise RuntimeError("a transfer was used twice at a time")
        question = self._questions[transfer_id] = _Question(kind, asyncio.get_running_loop().create_future())
        try:
            send()
            async with asyncio.timeout(self._answer_timeout_s):
                result = await question.future
        except TimeoutError:
            raise Unavailable("The sandbox did not answer in time; try again.") from None
        finally:
            del self._questions[transfer_id]
        if isinstance(result, CellblockError):
            raise result
        return result

    def forget(self, transfer_id: str) -> None:
        """This transfer has ended."""
        self._under_way.discard(transfer_id)

    def handle_control(self, fields: Mapping[str, Any]) -> None:
        """Take a control message about files. One that nobody waits for is dropped."""
        question = self._question_of(fields)
        if question is None:
            return
        op, why = fields.get("op"), fields.get("why")
        if op == question.kind:
            question.resolve(Answer(fields))
        elif op == protocol.FILE_FAILED and isinstance(why, str) and why in _WHY:
            question.resolve(failure(why))
        else:
            question.resolve(wrong_answer())

    def handle_frame(self, data: bytes | memoryview) -> None:
        """Take a frame numbered 0, without its number. One that is no piece, or that nobody waits for, is dropped."""
        if len(data) > _MAX_FRAME_BYTES:
            return
        try:
            channel, parts = protocol.decode_message(data)
            fields = decode_object(parts[3])
        except (protocol.FrameError, ProtocolViolation):
            return
        question = self._question_of(fields)
        if question is None:
            return
        is_piece = channel == protocol.FILE_CHANNEL == question.kind and len(parts) == _PIECE_PARTS
        question.resolve(Answer(fields, parts[-1]) if is_piece else wrong_answer())

    def link_lost(self) -> None:
        """Fail everything under way: the supervisor closes all files with the connection."""
        self.lost_links += 1
        for question in self._questions.values():
            question.resolve(link_broke())

    def _question_of(self, fields: Mapping[str, Any]) -> _Question | None:
        transfer_id = fields.get("id")
        return self._questions.get(transfer_id) if isinstance(transfer_id, str) else None


class Transfer:
    """What goes on under one id, over the link on which it began. Its state: whether it has ended.

    The first question that fails ends it.
    """

    def __init__(self, exchange: FileExchange, transfer_id: str) -> None:
        self.id = transfer_id
        self._exchange = exchange
        self._link = exchange.lost_links
        self._has_ended = False

    async def ask(self, op: str, kind: str, **fields: Any) -> Answer:
        """Ask by a control message. Raises what a refusal means, or Unavailable."""
        text = protocol.encode_control(op, id=self.id, **fields)
        return await self._ask(kind, lambda: self._exchange.send_text(text))

    async def give(self, piece: bytes, offset: int) -> Answer:
        """Send a piece. Raises as `ask` does."""
        content = json.dumps({"id": self.id, "offset": offset}).encode()
        frame = protocol.encode_message(protocol.FILE_CHANNEL, [_PIECE_HEADER, b"{}", b"{}", content, piece])
        return await self._ask(protocol.FILE_WRITTEN, lambda: self._exchange.send_binary(frame))

    def end(self) -> None:
        """Make room for another one. The supervisor has nothing open for this one."""
        self._has_ended = True
        self._exchange.forget(self.id)

    def close(self) -> None:
        """End, and have the supervisor close what it may have open. Does nothing the second time."""
        if self._has_ended:
            return
        self.end()
        if self._link == self._exchange.lost_links:
            with suppress(Unavailable):
                self._exchange.send_text(protocol.encode_control(protocol.FILE_CLOSE, id=self.id))

    async def _ask(self, kind: str, send: Callable[[], None]) -> Answer:
        if self._link != self._exchange.lost_links:
            self.close()
            raise link_broke()
        if self._has_ended:
            raise Unavailable("This file is not open any more; try again.")
        try:
            return await self._exchange.answer_to(self.id, kind, send)
        except BaseException:
            self.close()
            raise


def link_broke() -> Unavailable:
    """For what was under way when the supervisor's connection ended."""
    return Unavailable("The sandbox's connection broke; try again.")
