"""Finds out whether the PostgreSQL server of a database directory is running and ready. It starts and stops nothing."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from sessions.errors import SetUpFailed

_LOCK_NAME = "postmaster.pid"
_PID_LINE, _STATUS_LINE = 0, 7
_LEFTOVER_PATIENCE_S = 10.0
_POLL_S = 0.05


def read_lock(pg_dir: Path) -> tuple[int | None, str]:
    """The postmaster's process id and its status (`starting`, `ready`, `stopping`; empty while unknown)."""
    try:
        lines = (pg_dir / _LOCK_NAME).read_text().splitlines()
    except FileNotFoundError:
        return None, ""
    pid = int(lines[_PID_LINE]) if lines and lines[_PID_LINE].isdigit() else None
    return pid, lines[_STATUS_LINE].strip() if len(lines) > _STATUS_LINE else ""


def find_running(pg_dir: Path) -> psutil.Process | None:
    """The live postmaster of this directory, or None, after removing a stale lock file.

    A lock file alone proves nothing: after a crash or a reboot its process id may belong to any process, and
    PostgreSQL would refuse to start. So only a postgres whose working directory is this one counts. Children of a
    killed postmaster end soon. They are waited for, because a new server beside them would damage the data. Raises
    SetUpFailed when they stay.
    """
    deadline = time.monotonic() + _LEFTOVER_PATIENCE_S
    while servers := _servers_in(pg_dir):
        pid, _ = read_lock(pg_dir)
        for server in servers:
            if server.pid == pid:
                return server
        if time.monotonic() > deadline:
            pids = ", ".join(str(server.pid) for server in servers)
            raise SetUpFailed(f"Left-over PostgreSQL processes ({pids}) still use {pg_dir}: end them first.")
        time.sleep(_POLL_S)
    (pg_dir / _LOCK_NAME).unlink(missing_ok=True)
    return None


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
