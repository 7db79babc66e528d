"""Where the embedded PostgreSQL listens: in a directory that nobody else may enter, with a path that a socket can have.

Being able to connect is all that the server asks of a client, so these directories are its only door.
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
_SHARED_DIR = Path("/tmp")  # noqa: S108 - only for a private directory in it, which is looked at when it exists


def choose(pg_dir: Path, account: Account | None, *, port: str) -> Path:
    """The database directory itself; where that path is too long for a socket, a short directory as private as it.

    The same one each time, so that a server of before is found again. Raises SetUpFailed when it is not ours.
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
