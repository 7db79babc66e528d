"""Files that the code has written and not closed: what is buffered is written out, and the files stay open.

It keeps no state. Pipes and sockets are left alone, since writing to them may take for ever.
"""

from __future__ import annotations

import fcntl
import gc
import gzip
import io
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

_FOREIGN_FILES = (("h5py", "File"), ("tables", "File"))
"""Files of other libraries with a `flush` of their own."""


def flush_unclosed_files() -> None:
    """Write out what is buffered for regular files, text before the bytes that it becomes."""
    if not any(_is_written_file(int(name)) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208 - no Path for each
        return
    for found, flush in _objects_to_flush():
        # Whatever a class of the user's own raises, or a file that is full, closed or detached.
        with suppress(Exception):
            flush(found)


def _objects_to_flush() -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """Objects with buffers and how each is flushed, the outer ones first. Only types are looked at.

    The collector knows all objects but those of the fork server, which are frozen; no code has written to them.
    """
    kinds: list[tuple[type, Callable[[Any], None]]] = [
        (io.TextIOWrapper, _flush),
        (gzip.GzipFile, _flush_gzip),
        (zipfile.ZipFile, _flush_zip),
        *((kind, _flush_foreign) for kind in _foreign_types()),
        (io.BufferedWriter, _flush),
        (io.BufferedRandom, _flush),
    ]
    found: list[list[Any]] = [[] for _ in kinds]
    ranks: dict[int, int | None] = {}
    for candidate in gc.get_objects():
        kind = type(candidate)
        if id(kind) not in ranks:
            matching = (rank for rank, (base, _) in enumerate(kinds) if base in type.mro(kind))
            ranks[id(kind)] = next(matching, None)
        rank = ranks[id(kind)]
        if rank is not None:
            found[rank].append(candidate)
    for rank, (_, flush) in enumerate(kinds):
        for candidate in found[rank]:
            yield candidate, flush


def _foreign_types() -> Iterator[type]:
    for module, name in _FOREIGN_FILES:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            yield kind


def _is_written_file(descriptor: int) -> bool:
    """Whether this is a regular file that is open for writing."""
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return is_regular and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


def _flush(file: io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom) -> None:
    if _is_written_file(file.fileno()):
        file.flush()


def _flush_foreign(file: Any) -> None:
    file.flush()


def _flush_gzip(file: gzip.GzipFile) -> None:
    """Write a trailer too, without which the file counts as cut off. What the code writes later replaces it."""
    if file.mode != gzip.WRITE or not _is_written_file(file.fileno()):
        return
    file.flush()
    raw: Any = file.fileobj
    end = file.compress.copy().flush(zlib.Z_FINISH)
    trailer = struct.pack("<LL", file.crc, file.size & 0xFFFFFFFF)  # type: ignore[attr-defined]
    position = raw.tell()
    raw.write(end + trailer)
    raw.flush()
    raw.seek(position)


def _flush_zip(archive: zipfile.ZipFile) -> None:
    """Write the directory, as `close` does. The next member goes in its place."""
    inner: Any = archive
    with inner._lock:  # noqa: SLF001 - there is no other way to a readable archive that stays open
        if inner.fp is None or inner.mode == "r" or inner._writing or not inner._didModify or not inner._seekable:  # noqa: SLF001
            return
        if _is_written_file(inner.fp.fileno()):
            inner.fp.seek(inner.start_dir)
            inner._write_end_record()  # noqa: SLF001
            inner.fp.flush()
