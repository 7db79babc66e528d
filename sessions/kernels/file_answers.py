"""What a supervisor may answer about files: every type and number is checked, refusals become errors. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kernel_image import protocol
from sessions.errors import (
    CellblockError,
    Conflict,
    FileNotTaken,
    InvalidRequest,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from sessions.model import FileEntry
from sessions.sanitize import relative_path

_MAX_FILE_BYTES = 1 << 53
_ENTRY_FIELDS = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
_BAD_PATH = (
    "A file's path is relative to the working directory, without empty parts, `.` or `..`, has at most "
    f"{protocol.MAX_PATH_CHARACTERS} characters, and no part of it begins with `.cellblock-`."
)
_DENIED = (
    "Code in the session has taken away the permission to read or write this file, or its directory: give it back "
    "(chmod), or name another file."
)
FAILURES: Mapping[str, tuple[type[CellblockError], str]] = {
    "not_found": (NotFound, "There is no file of this name in the session."),
    "not_a_file": (InvalidRequest, "There is something of this name that is no regular file: name a file."),
    "link": (InvalidRequest, "This file is behind a symbolic link: name the file that the link leads to."),
    "denied": (InvalidRequest, _DENIED),
    "invalid": (InvalidRequest, _BAD_PATH),
    "too_large": (TooLarge, "The file is larger than files may be here: send a smaller one."),
    "no_space": (TooLarge, "The sandbox's disk has no room for this file: remove what is no longer needed."),
    "too_many": (TooManyRequests, "Too many files of this session are under way: try again in a moment."),
    "changed": (Conflict, "Code in the session has changed this file meanwhile: try again."),
    "io": (FileNotTaken, "The sandbox could not read or write this file; try again."),
}


def failure(why: str) -> CellblockError:
    """The error that a word of the protocol stands for."""
    error, message = FAILURES[why]
    return error(message)


def wrong_answer() -> Unavailable:
    """For what no honest supervisor says."""
    return Unavailable("The sandbox gave an answer that makes no sense; try again.")


def link_lost() -> Unavailable:
    """For what was under way when the supervisor's connection ended."""
    return Unavailable("The sandbox's connection broke; try again.")


def check_path(path: str) -> None:
    """Raise InvalidRequest unless this can be the path of a file."""
    if relative_path(path) != path:
        raise InvalidRequest(_BAD_PATH)


def page_of(fields: Mapping[str, Any], after: str) -> tuple[list[FileEntry], str, bool]:
    """The entries of a page, its last path, and whether another page follows. Raises Unavailable for a wrong page."""
    rows, goes_on = fields.get("entries"), fields.get("more")
    if not isinstance(rows, list) or len(rows) > protocol.FILE_PAGE or not isinstance(goes_on, bool):
        raise wrong_answer()
    entries = []
    for row in rows:
        if not isinstance(row, list) or len(row) != _ENTRY_FIELDS:
            raise wrong_answer()
        path = relative_path(row[0])
        if path is None or row[0] <= after:
            raise wrong_answer()
        after = row[0]
        entries.append(entry_of(path, {"bytes": row[1], "mtime_ns": row[2]}))
    if goes_on and not rows:
        raise wrong_answer()
    return entries, after, goes_on


def entry_of(path: str, fields: Mapping[str, Any]) -> FileEntry:
    """The file as an answer describes it. Raises Unavailable for a wrong answer."""
    size_bytes, mtime_ns = fields.get("bytes"), fields.get("mtime_ns")
    if not is_number(size_bytes, 0, _MAX_FILE_BYTES) or type(mtime_ns) is not int:
        raise wrong_answer()
    return FileEntry(path, int(size_bytes or 0), _time_of(mtime_ns))


def _time_of(mtime_ns: int) -> datetime:
    """The time, or the nearest that `datetime` has: code can give its files any time."""
    try:
        return _EPOCH + timedelta(microseconds=mtime_ns // 1000)
    except OverflowError:
        return _LATEST if mtime_ns > 0 else _EARLIEST


def is_number(value: Any, least: int, most: int) -> bool:
    """Whether this is an integer within these bounds."""
    return type(value) is int and least <= value <= most
