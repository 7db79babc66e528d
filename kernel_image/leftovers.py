"""What a dead kernel leaves beside its processes and files: shared memory, semaphores, message queues, sockets.

System V objects and /dev/shm are for a container alone, which shares them with nobody; the caller knows where it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import stat
from pathlib import Path

_SYSV = Path("/proc/sysvipc")
_SHARED = (Path("/dev/shm"), Path("/dev/mqueue"))  # noqa: S108 - the container's
_IPC_RMID = 0


def remove_shared_objects() -> None:
    """Remove every System V and POSIX object of this IPC namespace. Nobody may be making new ones."""
    libc = ctypes.CDLL(None)
    for object_id in _ids("shm"):
        libc.shmctl(object_id, _IPC_RMID, None)
    for object_id in _ids("sem"):
        libc.semctl(object_id, 0, _IPC_RMID)
    for object_id in _ids("msg"):
        libc.msgctl(object_id, _IPC_RMID, None)
    for directory in _SHARED:
        empty(directory)


def _ids(kind: str) -> list[int]:
    """The ids that proc(5) lists in the second column, below a line of titles."""
    try:
        lines = (_SYSV / kind).read_text("ascii").splitlines()[1:]
    except OSError:
        return []
    return [int(line.split()[1]) for line in lines]


def make_usable(directory: Path) -> None:
    """Make a directory unless it is there, and give its owner back the rights that the code has taken away."""
    _unlock(directory.parent)
    directory.mkdir(parents=True, exist_ok=True)
    _unlock(directory)


def _unlock(directory: Path) -> None:
    with contextlib.suppress(OSError):
        mode = directory.lstat().st_mode
        if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:  # noqa: PLR2004 - the owner's rights
            directory.chmod(stat.S_IMODE(mode) | 0o700)


def empty(directory: Path, *, spared: str = "") -> None:
    """Remove what is in a directory, through no link, and leave what cannot be removed. Nobody may be writing to it.

    What has the name `spared` stays. Nests are taken apart from the top: neither their depth nor the length of their
    paths matters.
    """
    _unlock(directory)
    with contextlib.suppress(OSError):
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            while any([_remove(top, name) for name in os.listdir(top) if name != spared]):  # noqa: C419, PTH208 - each of them; a descriptor
                pass
        finally:
            os.close(top)


def _remove(top: int, name: str) -> bool:
    """Remove a file, or a directory whose own directories are moved to the top; returns whether that was possible."""
    try:
        if _unlink(top, name):
            return True
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            for child in os.listdir(below):  # noqa: PTH208 - of a descriptor
                if not _unlink(below, child):
                    os.rename(child, secrets.token_hex(16), src_dir_fd=below, dst_dir_fd=top)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=top)
    except OSError:
        return False
    return True


def _unlink(directory: int, name: str) -> bool:
    """Remove a file. False when it is a directory, which can be entered and moved then."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        os.chmod(name, 0o700, dir_fd=directory)
        return False
    return True
