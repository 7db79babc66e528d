"""stdout and stderr inside the kernel: ipykernel's OutStream, made to lose nothing.

Four things differ from OutStream. Every write is copied to the output ring, which the supervisor reads after a crash.
What child processes write to the file descriptor is read before a flush returns, so that it belongs to the run that
made it, and is decoded across reads, so that multi-byte characters stay whole. A flush of an empty stream costs
nothing; but one whose last output the IOPub thread is still packing waits for that, or `idle` would overtake it.
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


def _available_bytes(descriptor: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]


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

    Its own state: the ring, the sent count, the pipe's decoder, and whether buffered output is being sent.
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
        super().__init__(session, pub_thread, name, **options)
        self.buffer = _StreamBytes(self)

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
        """Write, and copy to the ring unless this is a forked child, whose output comes through the parent's pipe."""
        if self._ring is not None and isinstance(string, str) and self._is_master_process():
            self._ring.write(output_ring.encode(string))
        count: int | None = super().write(string)
        if isinstance(string, str):
            self._unsent_characters += len(string)
        if self._unsent_characters > _WRITE_AHEAD_CHARACTERS:
            self._unsent_characters = 0
            super().flush()  # not the pipe: emptying it calls this method
        return count

    def flush(self) -> None:
        """Send all that was written, by this process or through the file descriptor, before returning."""
        if not self._is_master_process():
            super().flush()
            return
        self._drain_pipe()
        # In this order: the buffers are emptied when `_is_sending` is set already.
        if self._buffers or self._flush_pending or self._is_sending:
            super().flush()

    def _flush(self) -> None:
        """Send what is buffered; runs in the IOPub thread. Each message says how much of the stream is sent with it."""
        if not self._is_master_process():
            super()._flush()
            return
        self._is_sending = True
        try:
            self._flush_pending = False
            for parent, text in self._flush_buffers():
                if text:
                    self._send(parent, text)
        finally:
            self._is_sending = False

    def close(self) -> None:
        """Flush. The stream is the session's, and stays open for the runs to come."""
        self.flush()

    def _send(self, parent: dict[str, Any], text: str) -> None:
        """Queue a message behind all that is queued already; even the IOPub thread sends it later."""
        self._sent_bytes += len(output_ring.encode(text))
        self.session.pid = os.getpid()
        message = self.session.msg(
            "stream",
            {"name": self.name, "text": text.encode("utf-8", "replace").decode()},
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

    def _drain_pipe(self) -> None:
        """Read what is in the pipe now, and not what a child writes meanwhile: that could go on for ever."""
        if self._fid is None or not self._should_watch:
            return
        with self._pipe_lock:
            left_bytes = _available_bytes(self._fid)
            while left_bytes > 0:
                data = os.read(self._fid, min(left_bytes, _READ_BYTES))
                left_bytes -= len(data)
                if text := self._decoder.decode(data):
                    self.write(text)
