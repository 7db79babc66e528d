"""A file of the working directory that the gateway has open, for reading or for writing.

The sandbox's code may change or remove it at any moment; nothing here follows a link. Requests and answers are
files.py's business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat

from kernel_image.protocol import FILE_PIECE_BYTES
from kernel_image.safe_directory import HIDDEN_PREFIX, Mark, SafeDirectory, mark_of

_WHY = {
    errno.ENOENT: "not_found",
    errno.ELOOP: "link",
    errno.ENOTDIR: "not_a_file",
    errno.EISDIR: "not_a_file",
    errno.ENXIO: "not_a_file",  # a socket
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EROFS: "denied",
    errno.ENAMETOOLONG: "invalid",
    errno.EINVAL: "invalid",
    errno.EFBIG: "too_large",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EMFILE: "too_many",
    errno.ENFILE: "too_many",
}


class Refused(Exception):
    """The request cannot be fulfilled; `why` is a word of the protocol."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def reason_of(error: Refused | OSError) -> str:
    """The protocol's word for why a request failed."""
    return error.why if isinstance(error, Refused) else _WHY.get(error.errno or 0, "io")


class FileReading:
    """A regular file, open for reading. Its state: its size when it was opened, and how much has been read."""

    def __init__(self, directory: SafeDirectory, path: str) -> None:
        """Raises Refused or OSError."""
        self._file = directory.open_file(path)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise Refused("not_a_file")
        self.size_bytes = status.st_size
        self.mtime_ns = status.st_mtime_ns
        self.offset = 0

    def read(self) -> bytes:
        """The next piece, empty at the end. Raises Refused when the file has become shorter, or OSError."""
        wanted = min(FILE_PIECE_BYTES, self.size_bytes - self.offset)
        data = os.pread(self._file, wanted, self.offset)
        if wanted and not data:
            raise Refused("changed")
        self.offset += len(data)
        return data

    def close(self) -> None:
        """Close it."""
        os.close(self._file)


class FileWriting:
    """A file that is written under a hidden name, then renamed in one step. Its state: how much is written."""

    def __init__(self, directory: SafeDirectory, path: str, limit_bytes: int) -> None:
        """Raises Refused or OSError, and leaves nothing behind but directories that were made."""
        self.path = path
        self._limit_bytes = limit_bytes
        self._hidden = HIDDEN_PREFIX + secrets.token_hex(8)
        self._above, self._name = directory.open_above(path, make=True)
        try:
            self._check_target()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._hidden, flags, 0o600, dir_fd=self._above)
        except BaseException:
            os.close(self._above)
            raise
        self.written_bytes = 0
        self.mtime_ns = os.fstat(self._file).st_mtime_ns

    def write(self, data: bytes) -> None:
        """Append to it. Raises Refused when it would exceed the limit, or OSError."""
        if self.written_bytes + len(data) > self._limit_bytes:
            raise Refused("too_large")
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            self.written_bytes += written
            view = view[written:]

    def commit(self) -> tuple[Mark, bool]:
        """Rename it into place; returns its mark, and whether the name is new. It is still to be closed.

        Raises Refused (`changed` when the code in here has touched it) or OSError.
        """
        status = os.fstat(self._file)
        try:
            hidden = os.stat(self._hidden, dir_fd=self._above, follow_symlinks=False)
        except FileNotFoundError:
            raise Refused("changed") from None
        if not os.path.samestat(status, hidden) or status.st_size != self.written_bytes:
            raise Refused("changed")
        is_new = self._check_target()
        os.rename(self._hidden, self._name, src_dir_fd=self._above, dst_dir_fd=self._above)
        return mark_of(status), is_new

    def close(self) -> None:
        """Close it, and remove it unless it was committed."""
        with contextlib.suppress(OSError):  # the code has removed it, or made a directory of it
            os.unlink(self._hidden, dir_fd=self._above)
        os.close(self._file)
        os.close(self._above)

    def _check_target(self) -> bool:
        """Whether the name is free. Raises Refused when it belongs to something that a file must not replace."""
        try:
            check_regular(self._name, self._above)
        except FileNotFoundError:
            return True
        return False


def remove(directory: SafeDirectory, path: str) -> None:
    """Remove a regular file. Raises Refused or OSError."""
    above, name = directory.open_above(path)
    try:
        check_regular(name, above)
        os.unlink(name, dir_fd=above)
    finally:
        os.close(above)


def check_regular(name: str, above: int) -> None:
    """Raise Refused unless this name in the directory `above` is a regular file's; OSError when it is free."""
    mode = os.stat(name, dir_fd=above, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        raise Refused("link")
    if not stat.S_ISREG(mode):
        raise Refused("not_a_file")
