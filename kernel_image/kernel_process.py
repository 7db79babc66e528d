"""Forking, signalling and reaping kernel processes. Their messages are not this module's business.

Kernels of our own are forked by the fork server; foreign_kernels.py starts the others. Either way the kernel is a
direct child of this process in a session of its own, and its end is what waitpid says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kernel_image import accounting
from kernel_image.import_hooks import CPU_COUNT_VARIABLE
from kernel_image.protocol import SETTINGS_VARIABLE
from kernel_image.sandbox_log import log_event

FORKED_KERNELS = frozenset({"python3", "bash"})
"""The kernelspec names that stand for a fork of the fork server or the zygote: `kernel_program.KERNEL_CLASSES`."""

_START_TIMEOUT_S = 30.0
_FORK_TIMEOUT_S = 10.0
_KILL_ROUNDS = 50
_KILL_PAUSE_S = 0.02
_THREADS = 17
"""proc(5), /proc/pid/stat: their number is the eighteenth of `accounting.stat_fields`."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")


class Exit(NamedTuple):
    """How a process ended; exactly one of the two is set."""

    exit_code: int | None
    signal: int | None


class Reaper:
    """Waits for every child of this process, adopted orphans included.

    Its state: who watches which process id, and recent exits that nobody watched: a kernel may be forked and gone
    before its process id is known here.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[Exit], None]] = {}
        self._recent: dict[int, Exit] = {}

    def start(self) -> None:
        """Reap at every SIGCHLD from now on; needs a running event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def forget_recent(self) -> None:
        """Forget recent exits: from now on a process id can only mean a new process."""
        self._recent.clear()

    def watch(self, pid: int, ended: Callable[[Exit], None]) -> None:
        """Call `ended` once, when the process has ended, or soon if it has already."""
        if (known := self._recent.pop(pid, None)) is not None:
            asyncio.get_running_loop().call_soon(ended, known)
        else:
            self._watched[pid] = ended

    def reap(self) -> None:
        """Wait for all children that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            end = Exit(None, -code) if code < 0 else Exit(code, None)
            if (ended := self._watched.pop(pid, None)) is not None:
                ended(end)
            else:
                self._recent[pid] = end
                while len(self._recent) > 1024:  # noqa: PLR2004 - more than a burst of orphans between two looks
                    del self._recent[next(iter(self._recent))]


class ForkedServer(NamedTuple):
    """A fork server that was forked together with this supervisor, and waits to be asked."""

    pid: int
    channel: socket.socket


class ForkServer:
    """The fork server's process and the socket to it. It is restarted when it has ended or does not answer.

    Its uid is the code's, which may well stop it. The first may be there already, `forked` of a template.
    """

    def __init__(
        self, preload: Sequence[str], environment: dict[str, str], work_dir: str, forked: ForkedServer | None = None
    ) -> None:
        self._preload = tuple(preload)
        self._environment = environment
        self._work_dir = work_dir
        self._pid: int | None = forked.pid if forked else None
        self._forked = forked
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.failed_preloads: dict[str, str] = {}

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._pid

    async def start(self) -> None:
        """Start it and wait until everything is imported. Raises OSError when it ends first, or takes too long."""
        if self._forked is not None:
            ours, self._forked = self._forked.channel, None
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
            self._writer.write(
                json.dumps({"environment": self._environment, "preload": self._preload}).encode() + b"\n"
            )
        else:
            self.stop()
            self._reader, self._writer = await asyncio.open_connection(sock=self._spawn())
        self.failed_preloads = (await self._answer(_START_TIMEOUT_S))["failed"]

    def _spawn(self) -> socket.socket:
        """Start the process; returns the socket to it."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-m", "kernel_image.forkserver", *self._preload]
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - a fork and an exec
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=self._environment,
                cwd="/",
                start_new_session=True,
            )
        process.returncode = 0  # the reaper collects it
        self._pid = process.pid
        return ours

    async def fork(self, connection_file: Path, ring: Path) -> int:
        """Fork a kernel; returns its process id. Restarts a fork server that fails, once.

        Raises OSError or ValueError when that does not help.
        """
        request = {"connection_file": str(connection_file), "ring": str(ring), "work_dir": self._work_dir}
        try:
            return await self._ask(request)
        except (OSError, ValueError) as error:
            log_event("fork_server_failed", error)
            return await self._ask(request)

    async def _ask(self, request: dict[str, str]) -> int:
        """Have a kernel forked, by a new fork server if there is none; one that fails is stopped."""
        try:
            if self._writer is None:
                await self.start()
            assert self._writer is not None  # noqa: S101 - start() has set it
            self._writer.write(json.dumps(request).encode() + b"\n")
            pid: int = (await self._answer(_FORK_TIMEOUT_S))["pid"]
            if pid <= 0:  # a signal sent to it would reach this process
                raise OSError("the fork server could not fork")  # noqa: TRY301 - as bad as its end
        except (OSError, ValueError):
            self.stop()
            raise
        return pid

    def stop(self) -> None:
        """End it. The reaper collects it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = self._reader = None
        if self._forked is not None:
            self._forked.channel.close()
            self._forked = None
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._pid = None

    async def _answer(self, timeout_s: float) -> Any:
        assert self._reader is not None  # noqa: S101 - only called between start and stop
        async with asyncio.timeout(timeout_s):  # TimeoutError is an OSError
            line = await self._reader.readline()
        if not line:
            raise OSError("the fork server has ended")
        return json.loads(line)


def environment_of(home_dir: str, threads: int) -> dict[str, str]:
    """What kernels see: the container's own environment (the settings are scrubbed by now) and writable directories."""
    home = Path(home_dir)
    mpl_config = home / ".config" / "matplotlib"
    mpl_config.mkdir(parents=True, exist_ok=True)
    if cache := os.environ.get("CELLBLOCK_MPL_CACHE"):
        for file in Path(cache).glob("fontlist-*.json"):
            mpl_config.joinpath(file.name).write_bytes(file.read_bytes())
    environment = {
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **os.environ,
        "HOME": str(home),
        "MPLCONFIGDIR": str(mpl_config),
        "IPYTHONDIR": str(home / ".ipython"),
        **dict.fromkeys((*_THREAD_VARIABLES, CPU_COUNT_VARIABLE), str(threads)),
    }
    for variable in ("JPY_PARENT_PID", "CELLBLOCK_MPL_CACHE", SETTINGS_VARIABLE):
        environment.pop(variable, None)
    return environment


def interrupt(pid: int) -> None:
    """SIGINT to the kernel's whole process group, so that the child process it waits for stops as well."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGINT)


def kill_all_but(*spared: int | None) -> bool:
    """SIGKILL every descendant of this process except the `spared`; returns whether none is left.

    Processes are stopped first, so that a fork bomb cannot outrun the killing. One that forks and ends faster than
    /proc is read escapes the list. PID 1 reaches it by kill(2) of -1, to which Linux lets no fork slip through.
    """
    own = os.getpid()
    spares = any(pid is not None for pid in spared)
    try:
        for _ in range(_KILL_ROUNDS):
            if own == 1:
                _signal_all(signal.SIGSTOP if spares else signal.SIGKILL)
            victims = [pid for pid in accounting.descendants(own) if pid not in spared and not _has_ended(pid)]
            if not victims:
                return True
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in victims:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            time.sleep(_KILL_PAUSE_S)  # a few rounds at most, while nothing else is left to do in here
        return False
    finally:
        if own == 1 and spares:
            _signal_all(signal.SIGCONT)


def _signal_all(number: signal.Signals) -> None:
    """Send a signal to everything that PID 1 may signal in its container, itself excepted."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, number)


def _has_ended(pid: int) -> bool:
    """Whether a process is gone or waits to be reaped; not when its main thread alone has ended."""
    try:
        fields = accounting.stat_fields(pid)
    except OSError:
        return True
    return fields[0] in ("Z", "X") and int(fields[_THREADS]) <= 1
