"""The bridge as its provisioner sees it: a child process that gets commands and whose events are read, never awaited.

Standard library only, and no event loop: jupyter_client calls a provisioner from whichever loop or thread it likes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_MODULE = "gateway.local_jupyter.bridge"
_READ_BYTES = 1 << 16


class BridgeProcess:
    """A bridge, running or ended. Its state: the process, and the part of a line that has not ended yet."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None, stderr: Any = None) -> None:
        # -P: whatever lies in the working directory, a notebook's, is not to be imported instead of our own modules.
        command = [sys.executable, "-P", "-m", _MODULE, *arguments, "--parent", str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the client, which decides whom to interrupt
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._unfinished = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def send(self, command: str) -> None:
        """Send a command of bridge_protocol.py. It is lost on a bridge that has ended or does not read."""
        with suppress(OSError, ValueError):
            self._stdin.write(f"{command}\n".encode())

    def read_events(self) -> list[dict[str, Any]]:
        """The events that have arrived since the last call."""
        data = b""
        with suppress(OSError, ValueError):
            while piece := self._stdout.read(_READ_BYTES):
                data += piece
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def disconnect(self) -> None:
        """End its standard input, at which it removes its container and ends."""
        with suppress(OSError):
            self._stdin.close()

    def kill(self) -> None:
        """Kill the process and close its pipes; the container then ends by itself."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Close the pipes of a bridge that has ended."""
        self.disconnect()
        with suppress(OSError):
            self._stdout.close()
