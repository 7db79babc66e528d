"""The gateway's end of the template: the process of which this gateway's supervisors are forked, and what it says.

It is started when it is first needed, and anew when it has ended or does not answer: kernels have its uid, and may end
it. Supervisors do not depend on it, but how one has ended is known only to the template that has forked it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_START_TIMEOUT_S = 60.0
_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 4096
_NICER_BY = 5


class Template:
    """May be used from any thread. Its state: the process, and the socket to it, while it runs."""

    def __init__(self, python: Path, environment: Mapping[str, str], home_bytes: int) -> None:
        """It is a process of `python` with this `environment`. No supervisor's HOME is longer than `home_bytes`."""
        self._python = python
        # The HOME of nobody. Each supervisor writes its own over it: /proc shows a fork what its program began with.
        self._environment = {**environment, "HOME": "/".ljust(home_bytes, "0")}
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._pid = 0

    def launch(self, environment: Mapping[str, str], settings: str, log: Path) -> int:
        """Fork a supervisor, in a process session of its own; returns its process id. Raises OSError."""
        told = json.dumps({"environment": dict(environment), "settings": settings}).encode()
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with self._lock:
                return self._launch({"home": environment["HOME"]}, told, log_fd)
        finally:
            os.close(log_fd)

    def wait(self, pid: int) -> int | None:
        """What waitpid says of a supervisor; None while it runs. Raises ChildProcessError where that is not known."""
        with self._lock:
            try:
                status: int | None = self._ask({"pid": pid})["status"]
            except ChildProcessError:
                raise
            except OSError as error:
                self._end()
                raise ChildProcessError(*error.args) from error
        return status

    def close(self) -> None:
        """End the process. What it has forked goes on."""
        with self._lock:
            self._end()

    def _launch(self, request: Mapping[str, Any], told: bytes, log: int) -> int:
        if self._channel is not None:
            try:
                return self._fork(request, told, log)
            except (ConnectionError, TimeoutError):
                self._end()
        self._channel, self._pid = self._start(log)
        try:
            self._answer(_START_TIMEOUT_S)
            return self._fork(request, told, log)
        except (ConnectionError, TimeoutError):
            self._end()
            raise

    def _fork(self, request: Mapping[str, Any], told: bytes, log: int) -> int:
        """Have a supervisor forked, and tell it what it is for: one whose process id has not come ends untold."""
        reader, writer = os.pipe()
        try:
            try:
                pid = int(self._ask(request, (reader, log))["pid"])
            finally:
                os.close(reader)
            with suppress(BrokenPipeError):  # it has ended: its fate says how
                os.write(writer, told)
        finally:
            os.close(writer)
        return pid

    def _start(self, log: int) -> tuple[socket.socket, int]:
        """Start the process; returns the socket to it, and its process id. What it cannot do, it says in `log`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = os.posix_spawn(
                self._python,
                [str(self._python), "-I", "-m", "kernel_image.template"],
                self._environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
            )
        weigh_less(pid)
        return ours, pid

    def _ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        if self._channel is None:
            raise ConnectionError("there is no template")
        socket.send_fds(self._channel, [json.dumps(dict(request)).encode()], files)
        answer = self._answer(_TIMEOUT_S)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"])
        return answer

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._channel is not None  # noqa: S101 - its callers have looked
        self._channel.settimeout(timeout_s)
        message = self._channel.recv(_MAX_ANSWER_BYTES)
        if not message:
            raise ConnectionError("the process that forks them has ended")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)


def weigh_less(pid: int) -> None:
    """Let the gateway and its database go first. What the process starts from now on inherits it."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICER_BY)
