"""Chooses the directory of the embedded PostgreSQL's socket: private, and with a path short enough for a socket.

The server trusts whoever can connect, so the permissions of this directory are its only protection.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from gateway.store.embedded import service_account
from gateway.store.embedded.service_account import Account
from sessions.errors import SetUpFailed

_PATH_MAX_BYTES = 107
_SHARED_DIR = Path("/tmp")  # noqa: S108 - only for a private directory in it, which is checked if it exists


def choose(pg_dir: Path, account: Account | None, *, port: str) -> Path:
    """The database directory itself, or, if its path is too long for a socket, a short directory that is as private.

    The same one each time, so that a running server is found again. Raises SetUpFailed when it is somebody else's.
    """
    if _fits(pg_dir, port):
        return pg_dir
    name = f"cellblock-{hashlib.sha256(os.fsencode(pg_dir)).hexdigest()[:12]}"
    own = Path(tempfile.gettempdir()) / name
    short = own if _fits(own, port) else _SHARED_DIR / name
    try:
        short.mkdir(mode=0o700)
    except FileExistsError:
        found = short.lstat()
        owners = (os.geteuid(), account.uid if account else os.geteuid())
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or stat.S_IMODE(found.st_mode) & 0o077:
            raise SetUpFailed(
                f"{pg_dir} is too long a path for a socket, and {short}, the place for it, belongs to somebody else: "
                "set server.data_dir to a shorter path."
            ) from None
    if account is not None:
        os.chown(short, account.uid, account.gid)
        service_account.grant_passage(account, short.parent)
    return short


def _fits(directory: Path, port: str) -> bool:
    return len(os.fsencode(directory / f".s.PGSQL.{port}.lock")) <= _PATH_MAX_BYTES
