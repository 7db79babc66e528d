"""The account that PostgreSQL runs as where the gateway is root, and its access to directories.

PostgreSQL refuses to run as root. Access control lists give the account alone the right to traverse directories;
nothing is opened to other users.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sessions.errors import SetUpFailed

ACCOUNT_NAME = "cellblock-pg"

# The layout of this attribute is Linux's include/uapi/linux/posix_acl_xattr.h: a version, then (tag, permissions, id).
_ACL_ATTRIBUTE = "system.posix_acl_access"
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_ACL_NO_ID = 0xFFFFFFFF
_USER_OWNER, _USER, _GROUP_OWNER, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_SEARCH = 0o1

_AclEntry = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Account:
    """A system account that a server runs as."""

    uid: int
    gid: int


def for_postgres() -> Account | None:
    """The account, created on first use; None unless we are root.

    Raises SetUpFailed.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(ACCOUNT_NAME)
    except KeyError:
        entry = _make_account()
    return Account(entry.pw_uid, entry.pw_gid)


def grant_passage(account: Account, directory: Path) -> None:
    """Let the account, and nobody else, traverse `directory` and its parents, without listing them.

    Raises SetUpFailed where the file system has no access control lists.
    """
    for step in (directory, *directory.parents):
        if step.stat().st_mode & stat.S_IXOTH:
            continue
        try:
            _add_search_entry(step, account.uid)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EROFS):
                raise
            raise SetUpFailed(
                f"PostgreSQL cannot run as root, and its account {ACCOUNT_NAME} may not pass through {step}: set "
                f"server.data_dir to another place, run Cellblock as another user, or allow it with `chmod o+x {step}`."
            ) from error


def grant_reading(account: Account, directories: Iterable[Path]) -> None:
    """Let the account run the programs below `directories`, even if they were installed with a strict umask."""
    for top in directories:
        if not top.is_dir():
            continue
        grant_passage(account, top.parent)
        if top.stat().st_mode & stat.S_IXOTH:
            continue  # pip gives a whole package the same umask
        for path in (top, *top.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _make_account() -> pwd.struct_passwd:
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise SetUpFailed(
            "PostgreSQL cannot run as root, and there is no useradd to make an account for it: run Cellblock as "
            "another user, or set database.url."
        )
    command = [program, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    command += ["--shell", "/usr/sbin/nologin", ACCOUNT_NAME]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 - fixed words
    try:
        return pwd.getpwnam(ACCOUNT_NAME)  # another gateway may have made it at the same moment
    except KeyError:
        raise SetUpFailed(
            f"PostgreSQL cannot run as root, and its account could not be made: {done.stderr.strip()}. Run Cellblock "
            "as another user, or set database.url."
        ) from None


def _add_search_entry(directory: Path, uid: int) -> None:
    """Add `user:<uid>:--x`, keeping every other entry."""
    entries = _read_acl(directory)
    known = [perm for tag, perm, owner in entries if tag == _USER and owner == uid]
    masks = [perm for tag, perm, _ in entries if tag == _MASK]
    if known and known[0] & _SEARCH and masks and masks[0] & _SEARCH:
        return
    group = next(perm for tag, perm, _ in entries if tag == _GROUP_OWNER)
    kept = [entry for entry in entries if entry[0] != _MASK and entry[::2] != (_USER, uid)]
    kept.append((_USER, (known[0] if known else 0) | _SEARCH, uid))
    # The mask bounds groups and named users; without one so far, the group's own bits were the bound.
    kept.append((_MASK, (masks[0] if masks else group) | _SEARCH, _ACL_NO_ID))
    kept.sort(key=lambda entry: (entry[0], entry[2]))
    packed = _ACL_HEADER.pack(_ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in kept)
    os.setxattr(directory, _ACL_ATTRIBUTE, packed)


def _read_acl(directory: Path) -> list[_AclEntry]:
    try:
        raw = os.getxattr(directory, _ACL_ATTRIBUTE)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        mode = directory.stat().st_mode
        return [
            (_USER_OWNER, mode >> 6 & 7, _ACL_NO_ID),
            (_GROUP_OWNER, mode >> 3 & 7, _ACL_NO_ID),
            (_OTHER, mode & 7, _ACL_NO_ID),
        ]
    return list(_ACL_ENTRY.iter_unpack(raw[_ACL_HEADER.size :]))
