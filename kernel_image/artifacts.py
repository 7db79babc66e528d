"""Which files a run created or changed below the working directory, and what is in them.

The directory belongs to hostile code, which may change it while it is being read: see safe_directory.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from kernel_image.safe_directory import Mark, SafeDirectory

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")


class Found(NamedTuple):
    """A new or changed file; `path` is relative, with `/` between its parts."""

    path: str
    size_bytes: int

    @property
    def is_image(self) -> bool:
        """Whether its name says that a browser can show it."""
        return self.path.lower().endswith(IMAGE_SUFFIXES)


class WorkingDirectory:
    """The working directory, compared with the last scan, its state. At most `max_entries` entries are looked at."""

    def __init__(self, path: str, max_entries: int) -> None:
        self.directory = SafeDirectory(path)
        self._max_entries = max_entries
        self._seen: dict[str, Mark] = {}

    def files(self) -> tuple[dict[str, Mark], bool]:
        """The regular files by path, in no order, and whether all entries could be looked at."""
        found: dict[str, Mark] = {}
        complete = True
        for count, (path, mark) in enumerate(self.directory.walk()):
            if count >= self._max_entries:
                return found, False
            if mark is not None:
                found[path] = mark
            elif path.endswith("/"):
                complete = False
        return found, complete

    def changes(self) -> tuple[list[Found], bool]:
        """New and changed files since the last call, by path, and whether all entries could be looked at."""
        seen, complete = self.files()
        found = [Found(path, mark[1]) for path, mark in sorted(seen.items()) if self._seen.get(path) != mark]
        self._seen = seen
        return found, complete

    def files_of_run(self, fetch: Sequence[str]) -> tuple[list[Found], list[str], bool]:
        """The files of these paths, then the `changes`; the paths that are no regular file's; and as `changes` says."""
        changed, complete = self.changes()
        if not fetch:
            return changed, [], complete
        sizes = {path: self._size_bytes(path) for path in fetch}
        fetched = [Found(path, size_bytes) for path, size_bytes in sizes.items() if size_bytes is not None]
        missing = [path for path, size_bytes in sizes.items() if size_bytes is None]
        return [*fetched, *(file for file in changed if sizes.get(file.path) is None)], missing, complete

    def _size_bytes(self, path: str) -> int | None:
        try:
            file = self.directory.open_file(path)
        except OSError:
            return None
        try:
            status = os.fstat(file)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        finally:
            os.close(file)

    def note(self, path: str, mark: Mark | None) -> None:
        """Note that a client has written a file or, with None, removed it: no run did. Later changes count again."""
        if mark is None:
            self._seen.pop(path, None)
        else:
            self._seen[path] = mark

    def read(self, path: str, limit_bytes: int) -> bytes | None:
        """The content of a file that was found; None when it is gone, not a regular file, or over the limit."""
        try:
            file = self.directory.open_file(path)
        except OSError:
            return None
        with os.fdopen(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            data = stream.read(limit_bytes + 1)
        return data if len(data) <= limit_bytes else None
