"""A bridge's own directory, and what bridges that were killed have left behind.

It is short, since the paths of unix sockets are; it is not below `server.data_dir`, whose containers and sockets a
gateway that starts there clears away. A lock on it says that its bridge lives.
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
        # Under this name nobody takes it for one whose bridge has died, before it is locked.
        unborn = path.with_name(f".{path.name}")
        try:
            unborn.mkdir(mode=0o700)
            lock_fd = os.open(unborn, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
            unborn.rename(path)
        except OSError as error:
            raise SetUpFailed(f"No directory can be made in {path.parent} ({error.strerror}): set TMPDIR.") from error
        return cls(path, lock_fd)

    @property
    def gateway_id(self) -> GatewayId:
        """What the containers of this bridge carry."""
        return GatewayId(f"jupyter-{self.path.name.removeprefix(_PREFIX)}")

    @property
    def sockets(self) -> Path:
        """Where the supervisor dials in."""
        return self.path / "s"

    @property
    def kernels(self) -> Path:
        """What the process engine's kernel owns."""
        return self.path / "k"

    def remove(self) -> None:
        """Remove the directory, and let go of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Leave it to somebody else."""
        os.close(self._lock_fd)


def take_over_abandoned() -> Iterator[Workspace]:
    """The places of this user's bridges that have been killed; each is the caller's to clear away and `remove`."""
    for path in _root().glob(f"{_PREFIX}*"):
        if re.fullmatch(f"{_PREFIX}[0-9a-f]{{12}}", path.name) and (place := _take_over(path)) is not None:
            yield place


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
    """Where temporary files go, unless that leaves no room for a socket's name."""
    usual = Path(tempfile.gettempdir())
    return usual if len(os.fsencode(usual / _LONGEST_SOCKET)) <= UNIX_PATH_MAX_BYTES else _SHORT_ROOT
