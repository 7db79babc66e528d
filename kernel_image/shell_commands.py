"""Commands that the code gives to a shell: `!command`, `x = !command`, `os.system`. It keeps no state.

They have no terminal: output goes through pipes, and standard input is at its end. Each has a process group of its own,
which an interrupt ends before it ends the code.
"""

from __future__ import annotations

import codecs
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from kernel_image.kernel_streams import KernelStream

_GRACE_S = 0.5
"""What an interrupted command has for cleaning up."""

_POLL_S = 0.05
_READ_BYTES = 65_536


def run(command: str) -> int:
    """Run a command with the standard streams of the code; returns its exit status, negative for a signal.

    It may leave processes in the background, which write to the kernel's pipes. Where the code has put something else
    in a stream's place, output is read and written there until the command ends.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    streams: list[Any] = [sys.stdout, sys.stderr]
    stdout, stderr = (None if isinstance(stream, KernelStream) else subprocess.PIPE for stream in streams)
    with _started(_argv(command), stdout=stdout, stderr=stderr) as process:
        _copy([(process.stdout, streams[0]), (process.stderr, streams[1])], process)
        return process.wait()


def capture(command: str) -> tuple[int, str]:
    """Run a command; returns its exit status and all its output, errors included."""
    with _started(_argv(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output, _ = process.communicate()
        return process.returncode, output.decode("utf-8", "replace")


def system(command: Any) -> int:
    """`os.system`: run a command; returns how it ended as `os.wait` tells it. An interrupt ends the code, too."""
    with _started(["/bin/sh", "-c", os.fsdecode(command)]) as process:
        status = process.wait()
        return -status if status < 0 else status << 8


def _argv(command: str) -> list[str]:
    return [os.environ.get("SHELL") or "sh", "-c", command]


@contextmanager
def _started(argv: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended when what waits for it is interrupted."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=0, **streams)  # noqa: S603 - the user's own
    with ExitStack() as stack:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                stack.callback(pipe.close)
        try:
            yield process
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command with all its children, and kill what is left of them."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)


def _copy(pairs: Sequence[tuple[IO[bytes] | None, Any]], process: subprocess.Popen[bytes]) -> None:
    """Write what comes out of pipes to streams, until all are closed or the process has ended."""
    with selectors.DefaultSelector() as selector:
        for pipe, stream in pairs:
            if pipe is not None:
                decoder = codecs.getincrementaldecoder("utf-8")("replace")
                selector.register(pipe, selectors.EVENT_READ, (stream, decoder))
        while selector.get_map():
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else _POLL_S)
            for key, _ in ready:
                data = os.read(key.fd, _READ_BYTES)
                stream, decoder = key.data
                stream.write(decoder.decode(data, final=not data))
                if not data:
                    selector.unregister(key.fileobj)
            if has_ended and not ready:
                return
