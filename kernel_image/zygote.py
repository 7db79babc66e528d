"""The zygote: a process with everything imported that forks kernels into containers which Docker has made as ever.

It runs in a container of its own, made of the same image, with the rights that entering others takes. It runs no user
code, reads nothing that a sandbox has written, and is asked by the gateway alone, over a socket in a directory that
nobody else can enter. docs/security.md says what is trusted here, docs/architecture.md how a kernel comes to be.

One connection is one request: a line of JSON, {"container", "init"}. The answer is a line, too:
{"pid"} as the container counts, or {"error"}. An empty request is answered by what could not be imported.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from kernel_image import completion, entering, hardening, huge_pages, kernel_process, kernel_program, seccomp
from kernel_image.outside_forks import RING_NAME, prefix_of
from kernel_image.protocol import SETTINGS_VARIABLE, ZygoteSettings
from kernel_image.sandbox_log import describe, log_event, never_wait

_MAX_REQUEST_BYTES = 4096
_MOST_AT_ONCE = 32
_MOST_WAITING = 1024
"""More are refused, and a gateway that is refused takes the zygote for lost."""
_REQUEST_TIMEOUT_S = 5.0
_LONGEST_S = 20
_START_TIMEOUT_S = 30.0
_FIRST_PAUSE_S = 2.0
_PAUSE_S = 0.2
_POLL_S = 0.001
_CREDENTIALS = struct.Struct("3i")
"""`struct ucred` of unix(7), SO_PEERCRED: process id, user id, group id."""


class Zygote:
    """The listening socket, the forks that are under way, and when the gateway was last heard of."""

    def __init__(self, settings: ZygoteSettings) -> None:
        self._settings = settings
        self._forking: set[int] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._failed: dict[str, str] = {}

    def run(self) -> None:
        """Import everything, then fork whenever asked; returns when no gateway has asked for long."""
        self._failed = kernel_program.import_all([*self._settings.preload])
        with suppress(FileNotFoundError):
            os.unlink(self._settings.socket)  # noqa: PTH108 - pathlib need not stay imported in kernels
        self._socket.bind(self._settings.socket)
        os.chown(self._settings.socket, self._settings.uid, -1)
        self._socket.listen(_MOST_WAITING)
        log_event("zygote_ready", failed_preloads=self._failed)
        self._serve_for(_FIRST_PAUSE_S)
        for _ in _improve():
            self._serve_for(_PAUSE_S)
        while select.select([self._socket], [], [], self._settings.orphan_timeout_s)[0]:
            self._take_request()
        log_event("no_gateway", waited_s=self._settings.orphan_timeout_s)

    def _serve_for(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0 and select.select([self._socket], [], [], left_s)[0]:
            self._take_request()

    def _take_request(self) -> None:
        self._reap(wait=len(self._forking) >= _MOST_AT_ONCE)
        connection, _ = self._socket.accept()
        with connection:
            if self._peer_of(connection) not in (0, self._settings.uid):
                return
            child = os.fork()
            if child == 0:
                self._serve(connection)
            self._forking.add(child)

    def _peer_of(self, connection: socket.socket) -> int:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        return int(uid)

    def _reap(self, *, wait: bool) -> None:
        while self._forking:
            pid, _ = os.waitpid(-1, 0 if wait else os.WNOHANG)
            if pid == 0:
                return
            self._forking.discard(pid)
            wait = False

    def _serve(self, connection: socket.socket) -> NoReturn:
        """Handle one request in a process of its own, which ends when the kernel is on its way."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.alarm(_LONGEST_S)  # a sandbox that keeps it waiting must not keep a place
        try:
            self._socket.close()
            connection.settimeout(_REQUEST_TIMEOUT_S)
            line = connection.makefile("rb").readline(_MAX_REQUEST_BYTES)
            connection.settimeout(None)
            if line.strip():
                self._fork_into(json.loads(line), connection)
            else:
                _answer(connection, failed=self._failed)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the gateway is told
            _answer(connection, error=describe(error))
        finally:
            os._exit(0)

    def _fork_into(self, request: dict[str, Any], connection: socket.socket) -> None:
        """Enter a container and fork there; fork once more, so that the kernel becomes a child of the first process.

        The kernel's report is passed on when it has closed its end, so that all it has open by then is the sandbox's.
        """
        container = entering.look_at(str(request["container"]), int(request["init"]), Path(self._settings.cgroup_root))
        reader, writer = os.pipe()
        hardening.offer_to_oom_killer()  # by now: in a sandbox that is full, its first process would go instead
        entering.enter(container)
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                _become_kernel(container, self._settings, writer)
            os._exit(0)
        os.close(writer)
        os.waitpid(between, 0)
        with open(reader, "rb") as report:  # noqa: PTH123 - a descriptor
            connection.sendall(report.read() or _line(error="the kernel has ended"))


def _improve() -> Iterator[None]:
    """Make later kernels and their first completions cheaper, in short steps: all of it takes seconds."""
    huge_pages.collapse()
    yield
    yield from completion.warm_up()
    gc.collect()
    yield
    gc.freeze()
    huge_pages.collapse()


def _become_kernel(container: entering.Container, settings: ZygoteSettings, report: int) -> NoReturn:
    """Be a process of the sandbox from here on, and run a kernel once the supervisor has looked at it."""
    try:
        os.setsid()
        os.umask(0o077)
        entering.become_one_of(container, keep=report)
        while os.getppid() != 1:
            time.sleep(_POLL_S)
        hardening.allow_tracing()
        hardening.die_with_parent()
        os.write(report, _line(pid=os.getpid()))
        os.close(report)
    except BaseException as error:  # noqa: BLE001 - likewise
        with suppress(OSError):
            os.write(report, _line(error=describe(error)))
        os._exit(1)
    connection_file = _connection_file(settings)
    _wait_for(connection_file)
    status = 1
    try:
        # Only now that the supervisor has looked: among the user's packages is code that runs at once.
        kernel_program.settle(settings.work_dir, str(Path(settings.ipc_dir, RING_NAME)))
        kernel_program.run_kernel(connection_file)
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    finally:
        os._exit(status)


def _connection_file(settings: ZygoteSettings) -> str:
    """This process's own."""
    return str(prefix_of(settings.ipc_dir, os.getpid()).with_suffix(".json"))


def _wait_for(connection_file: str) -> None:
    """Wait for the file by which the supervisor lets the kernel begin; end where it does not come."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not os.path.exists(connection_file):  # noqa: PTH110 - likewise
        if time.monotonic() > deadline_s:
            os._exit(1)
        time.sleep(_POLL_S)


def _answer(connection: socket.socket, **fields: Any) -> None:
    with suppress(OSError):
        connection.sendall(_line(**fields))


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def main() -> None:
    """Read the settings and serve."""
    settings = ZygoteSettings.from_json(hardening.pop_secret(SETTINGS_VARIABLE))
    hardening.forbid_tracing()
    never_wait()
    if not seccomp.is_supported():
        log_event("machine_not_known")
        sys.exit(1)
    environment = kernel_process.environment_of(settings.home_dir, settings.threads)
    os.environ.clear()
    os.environ.update(environment)
    Zygote(settings).run()


if __name__ == "__main__":
    main()
