"""Processes on this machine: telling one from a later one with the same id, and ending it with all its descendants.

Linux only (/proc). Knows nothing of kernels.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from kernel_image.accounting import stat_fields

_ROUNDS = 50
_DEATH_TIMEOUT_S = 1.0
_PAUSE_S = 0.002


def process_identity(pid: int) -> str | None:
    """Names this very process for as long as the machine is up, or None when there is none; a zombie counts as none.

    A process id is used again; this boot's id and the start time in clock ticks (proc(5), field 22) are not.
    """
    try:
        fields = stat_fields(pid)
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot_id}/{start_ticks}"


def end_tree(pid: int) -> None:
    """SIGKILL a process that adopts its orphans (a child subreaper), and everything below it. Blocks.

    The root is stopped first and killed last: as long as it is there no descendant can leave the tree, and while it is
    stopped it starts nothing new.
    """
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        root.suspend()
        for _ in range(_ROUNDS):
            below = [child for child in root.children(recursive=True) if _is_alive(child)]
            if not below:
                break
            end_all(below)
        end_all([root])


def end_all(victims: Sequence[psutil.Process]) -> None:
    """SIGKILL these and wait until they are dead, a second at most; none is started anew while the rest are killed.

    `psutil.Process.wait` would take the exit status of a child of ours away from whoever asks for it.
    """
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in victims:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.send_signal(number)
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    while any(_is_alive(process) for process in victims) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)


def processes_at_home(home: Path) -> list[psutil.Process]:
    """Processes that were started with this HOME, whoever their parent is now; unreadable ones are passed over."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _is_alive(process) and process.environ().get("HOME") == str(home):
                found.append(process)
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
