"""The path of a file below a working directory, in URLs and in requests alike. Pure."""

from __future__ import annotations

import re

_MAX_PATH_CHARACTERS = 1024
_NO_NAME = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)")
"""A part that is empty, `.` or `..`."""


def why_no_file(path: str) -> str | None:
    """What is wrong with a path, as a sentence; None when it can name a file."""
    if not path or len(path) > _MAX_PATH_CHARACTERS or "\0" in path:
        return f"A file's path has 1 to {_MAX_PATH_CHARACTERS} characters, and no NUL."
    if _NO_NAME.search(path) is not None:
        return 'A file\'s path is relative, as in data/table.csv: without ".", ".." and empty parts.'
    return None
