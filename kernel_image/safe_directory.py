"""A directory that belongs to hostile code, walked without ever following a link.

The code may change it at any moment, so every step goes through directory descriptors with O_NOFOLLOW. What the files
are for is not known here. Its only state is its path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from kernel_image.protocol import MAX_PATH_CHARACTERS

HIDDEN_PREFIX = ".cellblock-"
"""Prefix of files that are being written; no scan and no list shows them."""

_SKIPPED_DIRECTORIES = frozenset({"__pycache__", ".ipynb_checkpoints"})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK, since opening a pipe would wait for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_DEPTH = 32

Mark = tuple[int, int, int]
"""Modification time (ns), size and inode: when any of them differs, the file has changed."""


def mark_of(status: os.stat_result) -> Mark:
    """The mark of a file with this status."""
    return status.st_mtime_ns, status.st_size, status.st_ino


def is_path_of_file(path: object) -> bool:
    """Whether this can name a file below a directory."""
    if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH_CHARACTERS or "\0" in path:
        return False
    if any(part in ("", ".", "..") or part.startswith(HIDDEN_PREFIX) for part in path.split("/")):
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class SafeDirectory:
    """The directory at `path`. Paths below it are relative, with `/` between their parts and no `..`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open_file(self, path: str) -> int:
        """Open `path` for reading, whatever it is. Raises OSError, with ELOOP when a link is on the way."""
        above, name = self.open_above(path)
        try:
            return os.open(name, _FILE, dir_fd=above)
        finally:
            os.close(above)

    def open_above(self, path: str, *, make: bool = False) -> tuple[int, str]:
        """The descriptor of the parent directory of `path`, and the name in it. `make` creates missing directories.

        Raises OSError, with ELOOP when a link is on the way.
        """
        *directories, name = path.split("/")
        if make:
            os.makedirs(self._path, mode=0o700, exist_ok=True)  # noqa: PTH103 - the user may have removed it
        descriptor = os.open(self._path, _DIRECTORY)
        try:
            for directory in directories:
                below = _step(descriptor, directory, make=make)
                os.close(descriptor)
                descriptor = below
        except OSError:
            os.close(descriptor)
            raise
        return descriptor, name

    def walk(self) -> Iterator[tuple[str, Mark | None]]:
        """Yield every entry below the directory, in no order; none when it is gone.

        Only regular files have a mark. Other entries are yielded so that the caller can bound their number. The path of
        a directory that is too deep to be entered ends in `/`.
        """
        yield from _walk_below("", self._path, None, 0)


def _step(above: int, name: str, *, make: bool) -> int:
    """Open the directory `name`. Raises OSError: for a link of ELOOP, where the system says ENOTDIR."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
        with contextlib.suppress(FileExistsError):  # the code was faster; the next line checks what it has made
            os.mkdir(name, 0o700, dir_fd=above)
        return os.open(name, _DIRECTORY, dir_fd=above)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise


def _walk_below(prefix: str, name: str, above: int | None, depth: int) -> Iterator[tuple[str, Mark | None]]:
    """Yield every entry below the directory `name` in `above`; none when it cannot be opened."""
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError:
        return
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.name.startswith(HIDDEN_PREFIX):
                    yield path, None
                elif entry.is_dir(follow_symlinks=False):
                    yield (path + "/" if depth >= _MAX_DEPTH else path), None
                    if depth < _MAX_DEPTH and entry.name not in _SKIPPED_DIRECTORIES:
                        yield from _walk_below(f"{path}/", entry.name, descriptor, depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    yield path, mark_of(status)
                else:
                    yield path, None
    except OSError:
        return
    finally:
        os.close(descriptor)
