"""Which files a run created or changed below the working directory, read without ever following a link.

The directory belongs to hostile code that may change it while it is being read: every step goes through directory
descriptors with O_NOFOLLOW, and only regular files are opened. The mutable state is the picture of the last scan.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")

_SKIPPED_DIRECTORIES = frozenset({"__pycache__", ".ipynb_checkpoints"})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_DEPTH = 32

Mark = tuple[int, int, int]
"""Modification time (ns), size and inode: when any of them differs, the file has changed."""


@dataclass(frozen=True, slots=True)
class Found:
    """A new or changed file; `path` is relative, with `/` between its parts."""

    path: str
    size_bytes: int

    @property
    def is_image(self) -> bool:
        """Whether its name says that a browser can show it."""
        return self.path.lower().endswith(IMAGE_SUFFIXES)


class WorkingDirectory:
    """The working directory, compared with how it was at the last scan. At most `max_entries` entries are looked at."""

    def __init__(self, path: str, max_entries: int) -> None:
        self._path = path
        self._max_entries = max_entries
        self._seen: dict[str, Mark] = {}
        self._went_too_deep = False

    def changes(self) -> tuple[list[Found], bool]:
        """New and changed files since the last call, by path, and whether all entries could be looked at."""
        seen: dict[str, Mark] = {}
        complete = True
        self._went_too_deep = False
        for count, (path, mark) in enumerate(self._walk()):
            if count >= self._max_entries:
                complete = False
                break
            if mark is not None:
                seen[path] = mark
        found = [Found(path, mark[1]) for path, mark in sorted(seen.items()) if self._seen.get(path) != mark]
        self._seen = seen
        return found, complete and not self._went_too_deep

    def read(self, path: str, limit_bytes: int) -> bytes | None:
        """The content of a file that `changes` named, or None when it is gone, no file any more, or over the limit."""
        try:
            file = self._open(path)
        except OSError:
            return None
        with os.fdopen(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            data = stream.read(limit_bytes + 1)
        return data if len(data) <= limit_bytes else None

    def _open(self, path: str) -> int:
        """Open step by step, so that no directory on the way can be a link either."""
        *directories, name = path.split("/")
        descriptor = os.open(self._path, _DIRECTORY)
        try:
            for directory in directories:
                below = os.open(directory, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            return os.open(name, _FILE, dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def _walk(self) -> Iterator[tuple[str, Mark | None]]:
        try:
            descriptor = os.open(self._path, _DIRECTORY)
        except OSError:
            return
        yield from self._walk_below("", descriptor, 0)

    def _walk_below(self, prefix: str, descriptor: int, depth: int) -> Iterator[tuple[str, Mark | None]]:
        """Yield what is in the directory of `descriptor`, which is closed in the end, and below it.

        Only regular files have a mark; the rest counts too, or a million empty directories would be looked at.
        """
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield prefix + entry.name, None
                        if depth >= _MAX_DEPTH:
                            self._went_too_deep = True
                        elif entry.name not in _SKIPPED_DIRECTORIES:
                            yield from self._enter(prefix, entry.name, descriptor, depth)
                    elif entry.is_file(follow_symlinks=False):
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except OSError:
                            continue
                        yield prefix + entry.name, (status.st_mtime_ns, status.st_size, status.st_ino)
                    else:
                        yield prefix + entry.name, None
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _enter(self, prefix: str, name: str, descriptor: int, depth: int) -> Iterator[tuple[str, Mark | None]]:
        try:
            below = os.open(name, _DIRECTORY, dir_fd=descriptor)
        except OSError:
            return
        yield from self._walk_below(f"{prefix}{name}/", below, depth + 1)
