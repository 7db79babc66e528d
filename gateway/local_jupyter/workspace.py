"""A bridge's own directory, and those that killed bridges have left behind.

Its path is short, as paths of unix sockets must be. It is not below `server.data_dir`, where a gateway that starts
removes foreign containers and sockets. A lock on it says that its bridge lives.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from kernel_image.protocol import UNIX_PATH_MAX_BYTES
from sessions.errors import SetUpFailed
from sessions.model import GatewayId

_PREFIX = "cellblock-k-"
_LONGEST_SOCKET = f"{_PREFIX}0123456789ab/k/0123456789ab/ipc/k99999-9"
_SHORT_ROOT = Path("/tmp")  # noqa: S108 - what is made there is nobody else's to enter


class Workspace:
    """A directory and the lock on it, from `make` or `take_over` to `remove`. Its name follows from its gateway id."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def make(cls) -> Workspace:
        """Make one. Raises SetUpFailed."""
        path = _root() / f"{_PREFIX}{uuid4().hex[:12]}"
        # Until it is locked it has a name that `take_over_abandoned` does not match.
        unlocked = path.with_name(f".{path.name}")
        try:
            unlocked.mkdir(mode=0o700)
            lock_fd = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
            unlocked.rename(path)
        except OSError as error:
            raise SetUpFailed(f"No directory can be made in {path.parent} ({error.strerror}): set TMPDIR.") from error
        return cls(path, lock_fd)

    @property
    def gateway_id(self) -> GatewayId:
        """The gateway id on the labels of this bridge's containers."""
        return GatewayId(f"jupyter-{self.path.name.removeprefix(_PREFIX)}")

    @property
    def sockets(self) -> Path:
        """The directory of the socket that the supervisor dials."""
        return self.path / "s"

    @property
    def kernels(self) -> Path:
        """The directory of the process engine's kernels."""
        return self.path / "k"

    def remove(self) -> None:
        """Remove the directory and its lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Unlock it, and leave it to the next bridge."""
        os.close(self._lock_fd)


def take_over_abandoned() -> Iterator[Workspace]:
    """The workspaces of this user's bridges that were killed, locked for the caller, who is to `remove` each."""
    for path in _root().glob(f"{_PREFIX}*"):
        if re.fullmatch(f"{_PREFIX}[0-9a-f]{{12}}", path.name) and (workspace := _take_over(path)) is not None:
            yield workspace


def _take_over(path: Path) -> Workspace | None:
    try:
        lock_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(lock_fd).st_uid == os.geteuid():
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Workspace(path, lock_fd)
    except OSError:
        pass  # its bridge lives
    os.close(lock_fd)
    return None


def _root() -> Path:
    """The directory for temporary files, or /tmp when its path leaves no room for a socket's name."""
    usual = Path(tempfile.gettempdir())
    return usual if len(os.fsencode(usual / _LONGEST_SOCKET)) <= UNIX_PATH_MAX_BYTES else _SHORT_ROOT
