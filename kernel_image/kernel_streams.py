"""stdout and stderr inside the kernel: ipykernel's OutStream, made to lose nothing.

Five things differ from OutStream. Every write is copied to the output ring, which the supervisor reads after a crash.
What child processes write to the file descriptor, forked ones too, is read before anything else is written and before a
flush returns, so that it belongs to the run that made it, in its place; lines and multi-byte characters stay whole. A
flush of an empty stream costs nothing; but one whose last output the IOPub thread is still packing waits for that, or
`idle` would overtake it. And there is what scripts expect of a stream: `buffer`, `fileno`, `reconfigure`.
"""

from __future__ import annotations

import array
import codecs
import fcntl
import io
import os
import select
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipykernel.iostream import OutStream

from kernel_image import output_ring

RING_VARIABLE = "CELLBLOCK_OUTPUT_RING"
"""Environment variable with the path of the output ring's file; removed as the kernel starts."""

_READ_BYTES = 65_536
_WRITE_AHEAD_CHARACTERS = 1 << 19
"""How much may be written before it is sent: a loop writes a gigabyte in the time that the thread waits to send."""


class _StreamBytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes become text of the stream. Its state: characters of which some bytes are missing.

    Wrappers that are dropped close it; the stream stays open.
    """

    def __init__(self, stream: KernelStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.name = f"<{stream.name}>"
        self.mode = "wb"

    @property
    def raw(self) -> _StreamBytes:
        """Itself, for there is no buffer in between."""
        return self

    def writable(self) -> bool:
        """Bytes can be written."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes-like data to the stream."""
        content = memoryview(data).cast("B").tobytes()
        if text := self._decoder.decode(content):
            self._stream.write(text)
        return len(content)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def fileno(self) -> int:
        """The stream's own descriptor."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """It is no terminal."""
        return False

    def close(self) -> None:
        """Flush."""
        self.flush()


class KernelStream(OutStream):  # type: ignore[misc]
    """One of the kernel's two output streams.

    Its own state: the ring, the sent count, the pipe's decoder, what has come through the pipe and is held, whether our
    own last line is unfinished, whether buffered output is being sent, and the parent header of the last write, with
    what stands for it as a key. A forked child holds what it will write.
    """

    encoding = "utf-8"
    errors = "replace"
    line_buffering = False
    write_through = False
    mode = "w"

    def __init__(self, session: Any, pub_thread: Any, name: str, **options: Any) -> None:
        path = os.environ.get(RING_VARIABLE)
        self._ring = output_ring.OutputRing(Path(path), name) if path else None
        self._sent_bytes = 0
        self._unsent_characters = 0
        self._is_sending = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pipe_lock = threading.RLock()
        self._available_bytes = array.array("i", [0])
        self._held = ""
        self._is_mid_line = False
        self._parent: tuple[dict[str, Any], frozenset[tuple[str, Any]]] = ({}, frozenset())
        super().__init__(session, pub_thread, name, **options)
        self.buffer = _StreamBytes(self)
        os.register_at_fork(after_in_child=self._become_child)

    def fileno(self) -> int:
        """The descriptor that child processes inherit; ipykernel has the one of before, which leads nowhere."""
        descriptor = getattr(self, "_original_stdstream_fd", None)
        return super().fileno() if descriptor is None else int(descriptor)

    def reconfigure(
        self,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        line_buffering: bool | None = None,
        write_through: bool | None = None,
    ) -> None:
        """Accept what scripts ask of TextIOWrapper. Text arrives as it is written, so there is nothing to change."""

    def detach(self) -> _StreamBytes:
        """The binary stream, for those who wrap it anew; this one goes on."""
        self.flush()
        return self.buffer

    def write(self, string: object) -> int | None:
        """Write, behind what child processes have written; but no line of theirs goes into one of ours."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string).__name__}")
        if not self._is_master_process():  # not Python alone forks: some children were never told
            self._write_in_child(string)
            return len(string)
        if not self._is_mid_line:
            self._drain_pipe()
        self._write_text(string)
        if string:
            self._is_mid_line = not string.endswith("\n")
        return len(string)

    def flush(self) -> None:
        """Send all that was written, by this process or through the file descriptor, before returning."""
        if not self._is_master_process():
            self._write_in_child("", whole_lines=False)
            return
        self._drain_pipe(parts_lines=True)
        self._is_mid_line = False  # a child may go on with the line
        # In this order: the buffers are emptied when `_is_sending` is set already.
        if self._buffers or self._flush_pending or self._is_sending:
            super().flush()

    def _write_text(self, text: str) -> None:
        """Buffer text to be sent, and copy it to the ring: OutStream.write with less to do for each `print`."""
        header = self.parent_header
        known, key = self._parent
        if header is not known:
            key = frozenset(header.items())
            self._parent = (header, key)
        with self._buffer_lock:
            if self._ring is not None:
                self._ring.write(output_ring.encode(text))
            self._buffers[key].write(text)
        if not self._flush_pending:
            self._schedule_flush()
        self._unsent_characters += len(text)
        if self._unsent_characters > _WRITE_AHEAD_CHARACTERS:
            self._unsent_characters = 0
            super().flush()  # not the pipe: emptying it calls this method

    def _become_child(self) -> None:
        """Forget what the parent has buffered, and locks that its threads hold: this is a forked child."""
        self._held = ""
        self._is_mid_line = False
        self._pipe_lock = threading.RLock()
        self._buffer_lock = threading.RLock()
        self._rotate_buffers()

    def _write_in_child(self, text: str, *, whole_lines: bool = True) -> None:
        """Write to the pipe that the parent reads, a few whole lines at a time, which no other writer can part."""
        with self._pipe_lock:
            self._held += text
            ready, self._held = _split_lines(self._held) if whole_lines else (self._held, "")
            piece = b""
            for line in ready.splitlines(keepends=True):
                data = line.encode("utf-8", "replace")
                if piece and len(piece) + len(data) > select.PIPE_BUF:
                    _write_all(self.fileno(), piece)
                    piece = b""
                piece += data
            _write_all(self.fileno(), piece)

    def _flush(self) -> None:
        """Send what is buffered; runs in the IOPub thread. Each message says how much of the stream is sent with it."""
        if self._held and self._pipe_lock.acquire(blocking=False):  # its owner may wait for this thread
            try:
                self._write_held()
            finally:
                self._pipe_lock.release()
        self._is_sending = True
        try:
            self._flush_pending = False
            with self._buffer_lock:
                buffers = self._rotate_buffers()
                written_bytes = self._ring.written_bytes if self._ring is not None else 0
            pieces = [(dict(parent), output_ring.encode(buffer.getvalue())) for parent, buffer in buffers.items()]
            # Not a sum of what was sent: a KeyboardInterrupt in a `print` can leave text in the ring alone.
            self._sent_bytes = written_bytes - sum(len(data) for _, data in pieces)
            for parent, data in pieces:
                if data:
                    self._send(parent, data)
        finally:
            self._is_sending = False

    def close(self) -> None:
        """Flush. The stream is the session's, and stays open for the runs to come."""
        self.flush()

    def _send(self, parent: dict[str, Any], data: bytes) -> None:
        """Queue a message behind all that is queued already; even the IOPub thread sends it later."""
        self._sent_bytes += len(data)
        self.session.pid = os.getpid()
        message = self.session.msg(
            "stream",
            {"name": self.name, "text": data.decode()},
            parent=parent,
            metadata={output_ring.SENT_METADATA: [self.name, self._sent_bytes]},
        )
        for hook in self._hooks:
            message = hook(message)
            if message is None:
                return
        self.session.send(self.pub_thread, message, ident=self.topic)

    def _watch_pipe_fd(self) -> None:
        """Wait for output on the file descriptor; the reading itself is shared with `flush`."""
        poller = select.poll()
        poller.register(self._fid, select.POLLIN)
        while self._should_watch:
            events = poller.poll()
            # Whatever one read raises: when nobody watches the pipe it fills up, and whoever writes to it hangs.
            with suppress(Exception):
                self._drain_pipe()
            if any(event & (select.POLLHUP | select.POLLNVAL | select.POLLERR) for _, event in events):
                return

    def _drain_pipe(self, *, parts_lines: bool = False) -> None:
        """Read what is in the pipe now, and not what a child writes meanwhile: that could go on for ever.

        It is held while one of our own lines is unfinished, unless a flush parts the line anyway.
        """
        if self._fid is None or not self._should_watch:
            return
        with self._pipe_lock:
            fcntl.ioctl(self._fid, termios.FIONREAD, self._available_bytes)
            left_bytes = self._available_bytes[0]
            while left_bytes > 0:
                data = os.read(self._fid, min(left_bytes, _READ_BYTES))
                left_bytes -= len(data)
                self._held += self._decoder.decode(data)
                if len(self._held) > _READ_BYTES:
                    self._write_held()
            if self._held:
                if parts_lines or not self._is_mid_line:
                    self._write_held()
                else:
                    self._schedule_flush()

    def _write_held(self) -> None:
        text, self._held = self._held, ""
        self._write_text(text)


def _split_lines(text: str) -> tuple[str, str]:
    """The whole lines of a text, and what follows them."""
    end = text.rfind("\n") + 1
    return text[:end], text[end:]


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
