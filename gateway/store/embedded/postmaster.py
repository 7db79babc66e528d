"""Finds out whether the PostgreSQL server of a database directory is running and ready. It starts and stops nothing.

Beside the directory there is a lock, which every process of the server inherits. So it is held for exactly as long as
one of them lives, and seen from other containers on the same volume, which cannot see the processes.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import psutil

from sessions.errors import SetUpFailed

_LOCK_NAME = "postmaster.pid"
_SERVER_LOCK_NAME = "pg.lock"
_PID_LINE, _STATUS_LINE = 0, 7
_LEFTOVER_PATIENCE_S = 10.0
_POLL_S = 0.05


def read_lock(pg_dir: Path) -> tuple[int | None, str]:
    """The postmaster's process id and its status (`starting`, `ready`, `stopping`; empty while unknown)."""
    try:
        lines = (pg_dir / _LOCK_NAME).read_text("ascii", "replace").splitlines()
    except FileNotFoundError:
        return None, ""
    pid = int(lines[_PID_LINE]) if lines and lines[_PID_LINE].isdecimal() else None
    return pid, lines[_STATUS_LINE].strip() if len(lines) > _STATUS_LINE else ""


def open_lock(pg_dir: Path) -> int:
    """Open the file whose lock the server holds; returns the descriptor. Nothing is locked yet."""
    return os.open(pg_dir.with_name(_SERVER_LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def find_running(pg_dir: Path, lock: int) -> psutil.Process | None:
    """The live postmaster of this directory; or None, after locking `lock` and removing a stale lock file.

    A lock file alone proves nothing: after a crash or a reboot its process id may belong to any process, and
    PostgreSQL would refuse to start. So only a postgres whose working directory is this one counts. Children of a
    killed postmaster end soon. They are waited for, because a new server beside them would damage the data. Raises
    SetUpFailed when they stay, or when a server that cannot be seen from here has the lock.
    """
    deadline = time.monotonic() + _LEFTOVER_PATIENCE_S
    while True:
        servers = _servers_in(pg_dir)
        pid, _ = read_lock(pg_dir)
        for server in servers:
            if server.pid == pid:
                return server
        if not servers and _locks(lock):
            (pg_dir / _LOCK_NAME).unlink(missing_ok=True)
            return None
        if not pg_dir.exists():  # somebody is making it, which takes a while
            deadline = time.monotonic() + _LEFTOVER_PATIENCE_S
        if time.monotonic() > deadline:
            if not servers:
                raise SetUpFailed(
                    f"A PostgreSQL server that cannot be seen from here, of another container perhaps, uses {pg_dir}: "
                    "stop it, or set server.data_dir to another place."
                )
            pids = ", ".join(str(server.pid) for server in servers)
            raise SetUpFailed(f"Left-over PostgreSQL processes ({pids}) still use {pg_dir}: end them first.")
        time.sleep(_POLL_S)


def _locks(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _servers_in(pg_dir: Path) -> list[psutil.Process]:
    """Processes named postgres whose working directory is this one: every server process has it there."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.name() == "postgres"
                and process.status() != psutil.STATUS_ZOMBIE
                and Path(process.cwd()) == pg_dir
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
