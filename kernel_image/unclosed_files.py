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
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

FileId = tuple[int, int]
"""Device and number of a file."""

_FOREIGN_FILES = (("h5py", "File"), ("tables", "File"))
"""Files of other libraries with a `flush` of their own."""

_FLUSHED = "_cellblock_flushed"
"""Attribute of an archive: how it stood when it was made readable. It is not touched again until it has changed."""

_XZ_MAGIC = b"\xfd7zXZ\x00"


def flush_unclosed_files(apart_from: FileId | None = None) -> None:
    """Write out what is buffered for regular files, text before the bytes that it becomes.

    `apart_from` is a file of the kernel's own, which is always open and has no buffer.
    """
    with suppress(OSError):  # there may be no descriptor left for looking; then nothing is known
        if not any(_is_written_file(int(name), apart_from) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208 - no Path for each
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
        *((kind, _flush_bz2) for kind in _types((("bz2", "BZ2File"),))),
        *((kind, _flush_xz) for kind in _types((("lzma", "LZMAFile"),))),
        *((kind, _flush_foreign) for kind in _types(_FOREIGN_FILES)),
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


def _types(names: Iterable[tuple[str, str]]) -> Iterator[type]:
    """Those of these types whose modules are imported."""
    for module, name in names:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            yield kind


def _is_written_file(descriptor: int, apart_from: FileId | None = None) -> bool:
    """Whether this is a regular file that is open for writing."""
    try:
        status = os.fstat(descriptor)
        is_wanted = stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) != apart_from
        return is_wanted and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


def _flush(file: io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom) -> None:
    if _is_written_file(file.fileno()):
        file.flush()


def _flush_foreign(file: Any) -> None:
    file.flush()


def _has_changed(archive: Any, state: object) -> bool:
    """Whether an archive stands otherwise than when it was last made readable."""
    if getattr(archive, _FLUSHED, None) == state:
        return False
    setattr(archive, _FLUSHED, state)
    return True


def _flush_gzip(file: gzip.GzipFile) -> None:
    """Write a trailer too, without which the file counts as cut off. What the code writes later replaces it."""
    if file.mode != gzip.WRITE or not _is_written_file(file.fileno()):
        return
    if not _has_changed(file, (file.size, file.crc)):  # type: ignore[attr-defined]
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
        if _is_written_file(inner.fp.fileno()) and _has_changed(archive, (len(inner.filelist), inner.start_dir)):
            inner.fp.seek(inner.start_dir)
            inner._write_end_record()  # noqa: SLF001
            inner.fp.flush()


def _flush_bz2(file: Any) -> None:
    """End the stream and begin another: a file may have several, one after the other."""
    if file.writable() and _is_written_file(file.fileno()) and _has_changed(file, file.tell()):
        _end_stream(file, type(file._compressor)())  # noqa: SLF001 - as above


def _flush_xz(file: Any) -> None:
    """The same. The older format has no more than one stream; it is left alone."""
    if file.writable() and _is_written_file(file.fileno()) and _has_changed(file, file.tell()):
        file._fp.flush()  # noqa: SLF001 - as above
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as written:  # noqa: PTH123 - no Path for a descriptor
            is_xz = written.read(len(_XZ_MAGIC)) == _XZ_MAGIC
        if is_xz:
            _end_stream(file, type(file._compressor)())  # noqa: SLF001 - as above


def _end_stream(file: Any, following: Any) -> None:
    inner = file._fp  # noqa: SLF001 - as above
    inner.write(file._compressor.flush())  # noqa: SLF001 - as above
    inner.flush()
    file._compressor = following  # noqa: SLF001 - as above
