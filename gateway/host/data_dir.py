"""The gateway's data directory: made private, locked against a second gateway, with the gateway's id and its secret.

Its contents (database, sockets) belong to other modules; this one only names their places.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import uuid
from pathlib import Path
from typing import NamedTuple

from kernel_image.protocol import SOCKET_NAME, UNIX_PATH_MAX_BYTES
from sessions.errors import Misconfigured, SetUpFailed
from sessions.model import GatewayId, KernelId

_LOCK_NAME = "lock"
_ID_NAME = "gateway_id"
_KEY_NAME = "secret"
_SECRET_BYTES = 32
_SOCKETS_NAME = "s"
_KERNELS_NAME = "k"
_ZYGOTE_NAME = "z"
_ENVIRONMENTS_NAME = "python"
KERNEL_DIR_CHARACTERS = 13
"""As much of a kernel's id as the directory of its socket has for a name."""


class Holder(NamedTuple):
    """The process that holds a data directory, and the address at which it listens; empty while it does not."""

    pid: int
    url: str


def holder_of(data_dir: Path) -> Holder | None:
    """Who holds this directory, or was the last to do so; None where nobody says."""
    try:
        *lines, _ = (data_dir / _LOCK_NAME).read_text(encoding="utf-8").split("\n")  # what has no end is half written
        return Holder(int(lines[0]), lines[1] if len(lines) > 1 else "")
    except (OSError, ValueError, IndexError):
        return None


def present_holder(data_dir: Path) -> Holder | None:
    """Who holds this directory now. Takes no lock: a gateway that starts in this moment would stumble over it."""
    holder = holder_of(data_dir)
    try:
        inode = str((data_dir / _LOCK_NAME).stat().st_ino)
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except OSError:
        return None
    # number, kind, mode, access, process, device and inode: proc_locks(5)
    held = {(lock[4], lock[5].rpartition(":")[2]) for lock in locks if lock[1] == "FLOCK"}
    return holder if holder is not None and (str(holder.pid), inode) in held else None


def environments_in(data_dir: Path) -> Path:
    """Where the Python environments of the process engine's kernels are; without holding the directory."""
    return data_dir / _ENVIRONMENTS_NAME


class DataDir:
    """Held from `open` to `release` by one process.

    The state is the locked file's descriptor, and the secret once it has been read.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd: int | None = lock_fd
        self._secret: bytes | None = None

    @classmethod
    def open(cls, path: Path) -> DataDir:
        """Create the directory if it is missing, and lock it.

        Raises SetUpFailed when it cannot be used or another gateway holds it, Misconfigured when the path is too long
        for the sockets in it.
        """
        check_path_length(path)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetUpFailed(
                f"The data directory {path} cannot be used ({error.strerror}): set `server.data_dir` to another one."
            ) from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = holder_of(path)
            os.close(lock_fd)
            raise SetUpFailed(
                f"Another gateway (process {holder.pid if holder else 'unknown'}) uses the data directory {path}: "
                "stop it, or give this one a `server.data_dir` of its own."
            ) from error
        data_dir = cls(path, lock_fd)
        try:
            data_dir._write_holder()
        except SetUpFailed:
            data_dir.release()
            raise
        return data_dir

    def tell_address(self, url: str) -> None:
        """Write down, for `holder_of`, who we are and where we listen. Raises SetUpFailed."""
        self._write_holder(url)

    def _write_holder(self, *more: str) -> None:
        assert self._lock_fd is not None  # noqa: S101 - for mypy; it is held
        try:
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, "".join(f"{line}\n" for line in (os.getpid(), *more)).encode(), 0)
        except OSError as error:
            raise SetUpFailed(
                f"The data directory {self.path} cannot be written ({error.strerror}): free some room there, or set "
                "`server.data_dir` to another one."
            ) from error

    @property
    def zygote(self) -> Path:
        """Where the zygote's socket is; nobody else may enter."""
        return self.path / _ZYGOTE_NAME

    @property
    def sockets(self) -> Path:
        """Where supervisors dial in. Short, since socket paths are."""
        return self.path / _SOCKETS_NAME

    @property
    def kernels(self) -> Path:
        """What the process engine's kernels own."""
        return self.path / _KERNELS_NAME

    def gateway_id(self) -> GatewayId:
        """The id that this directory's containers and runs carry; made once."""
        file = self.path / _ID_NAME
        if file.exists() and (known := file.read_text(encoding="ascii").strip()):
            return GatewayId(known)
        made = uuid.uuid4().hex
        fresh = file.with_suffix(".new")
        fresh.write_text(made + "\n", encoding="ascii")
        fresh.replace(file)
        return GatewayId(made)

    def credential_of(self, kernel_id: KernelId) -> str:
        """The credential of one kernel's supervisor, the same each time this gateway runs.

        Derived from the secret in this directory, so that none has to be stored and none reveals another.
        """
        if self._secret is None:
            self._secret = self._read_or_make_secret()
        return hmac.new(self._secret, kernel_id.encode(), hashlib.sha256).hexdigest()

    def _read_or_make_secret(self) -> bytes:
        file = self.path / _KEY_NAME
        if file.exists() and len(known := file.read_bytes()) == _SECRET_BYTES:
            return known
        made = secrets.token_bytes(_SECRET_BYTES)
        fresh = file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writing:
            writing.write(made)
        fresh.replace(file)
        return made

    def release(self) -> None:
        """Unlock the directory. The lock file stays: removing it would let two gateways in at once."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def check_path_length(path: Path) -> None:
    """Raise Misconfigured when a supervisor's socket below `path` would have too long a name."""
    longest = path / _SOCKETS_NAME / ("k" * KERNEL_DIR_CHARACTERS) / SOCKET_NAME
    excess = len(os.fsencode(longest)) - UNIX_PATH_MAX_BYTES
    if excess > 0:
        raise Misconfigured(
            f"The data directory's path is {excess} bytes too long for the unix sockets in it: set `server.data_dir` "
            "to a shorter one."
        )
