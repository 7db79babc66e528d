"""The pipes of a kernel that is not ours: its standard output and error, and the messages that its set-up code writes.

A kernel of another language publishes its output from a thread of its own, which may fall behind the reply and the
`idle`, and what child processes write to the standard streams it does not publish at all. What is in a pipe was written
before the code went on, and outlives the process.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import json
import os
import termios
from collections.abc import Callable
from typing import Any

from kernel_image.kernel_messages import JSON_ERRORS

MESSAGES_VARIABLE = "CELLBLOCK_MESSAGES_FD"
"""Tells the set-up code which descriptor takes its messages: a line of JSON each, {"type", "content", "metadata"}."""

_ACCEPTED = frozenset(
    {"stream", "display_data", "update_display_data", "execute_result", "error", "clear_output", "comm_open"}
    | {"comm_msg", "comm_close"}
)
_READ_BYTES = 64 << 10
_READS_PER_TURN = 4

Publish = Callable[[str, dict[str, Any], dict[str, Any]], None]
"""Gets the type, the content and the metadata of a message for iopub."""


class KernelPipes:
    """The read ends.

    The state: what of a character, and of a line, has come so far; whether output counts yet; and the texts of one
    stream that are still to be joined.
    """

    def __init__(self, publish: Publish, max_line_bytes: int) -> None:
        """Output counts once `publish_from_now` is called. A message in a longer line is left out."""
        self._publish = publish
        self._is_published = False
        self._stream = ""
        self._texts: list[str] = []
        self._lines = _Lines(self._on_line, max_line_bytes)
        self._readers: dict[int, Callable[[bytes], None]] = {}
        self._write_ends: list[int] = []
        for feed in (_Text("stdout", publish).feed, _Text("stderr", publish).feed, self._lines.feed):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._readers[reader] = feed
            self._write_ends.append(writer)
        for reader in self._readers:
            asyncio.get_running_loop().add_reader(reader, self._read, reader, _READS_PER_TURN * _READ_BYTES)

    @property
    def write_ends(self) -> tuple[int, int, int]:
        """The descriptors for the kernel's standard output, standard error, and messages."""
        stdout, stderr, messages = self._write_ends
        return stdout, stderr, messages

    def close_write_ends(self) -> None:
        """Leave them to the kernel, which has been started."""
        while self._write_ends:
            os.close(self._write_ends.pop())

    def publish_from_now(self) -> None:
        """What comes from now on is output of the code; what has come was the kernel's own."""
        self.read_written()
        self._is_published = True

    def read_written(self) -> None:
        """Read what has been written up to now, and no more: leftover threads may write without end."""
        for reader in list(self._readers):
            self._read(reader, _waiting_bytes(reader))

    def close(self) -> None:
        """Read nothing more."""
        self.close_write_ends()
        for reader in list(self._readers):
            self._close(reader)

    def _close(self, reader: int) -> None:
        asyncio.get_running_loop().remove_reader(reader)
        del self._readers[reader]
        os.close(reader)

    def _read(self, reader: int, most_bytes: int) -> None:
        while most_bytes > 0:
            try:
                data = os.read(reader, min(most_bytes, _READ_BYTES))
            except BlockingIOError:
                return
            if not data:
                self._close(reader)
                return
            most_bytes -= len(data)
            if self._is_published:
                self._readers[reader](data)
                self._publish_texts()

    def _on_line(self, line: bytes) -> None:
        with contextlib.suppress(*JSON_ERRORS):
            message = json.loads(line)
            content, metadata = message["content"], message.get("metadata") or {}
            if message["type"] not in _ACCEPTED or not isinstance(content, dict) or not isinstance(metadata, dict):
                return
            if message["type"] == "stream":
                self._join(str(content["name"]), str(content["text"]))
            else:
                self._publish_texts()
                self._publish(message["type"], content, metadata)

    def _join(self, stream: str, text: str) -> None:
        """Programs print line by line; a message for each would cost more than the program."""
        if stream != self._stream:
            self._publish_texts()
        self._stream = stream
        self._texts.append(text)

    def _publish_texts(self) -> None:
        if self._texts:
            text, self._texts = "".join(self._texts), []
            self._publish("stream", {"name": self._stream, "text": text}, {})


class _Text:
    """Decodes a standard stream, whose bytes may be split within a character."""

    def __init__(self, stream: str, publish: Publish) -> None:
        self._stream = stream
        self._publish = publish
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> None:
        if text := self._decoder.decode(data):
            self._publish("stream", {"name": self._stream, "text": text}, {})


class _Lines:
    """Cuts bytes into lines. The state: the line so far, and whether it is too long and its rest is left out."""

    def __init__(self, on_line: Callable[[bytes], None], max_bytes: int) -> None:
        self._on_line = on_line
        self._max_bytes = max_bytes
        self._line = bytearray()
        self._is_too_long = False

    def feed(self, data: bytes) -> None:
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._add(end)
            if not self._is_too_long:
                self._on_line(bytes(self._line))
            self._line.clear()
            self._is_too_long = False
        self._add(rest)

    def _add(self, part: bytes) -> None:
        if self._is_too_long or len(self._line) + len(part) > self._max_bytes:
            self._line.clear()
            self._is_too_long = True
        else:
            self._line += part


def _waiting_bytes(reader: int) -> int:
    """How many bytes a pipe holds; see FIONREAD in ioctl_tty(2)."""
    count = bytearray(4)
    fcntl.ioctl(reader, termios.FIONREAD, count)
    return int.from_bytes(count, "little")
