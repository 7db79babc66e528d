"""The files in `static/`, read once, under a version that changes with any of them.

The version is a directory of their address, so that modules that import each other by relative names are of one
version, and may be kept for ever. No path is made of what a client says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "static"
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it is sent."""

    content: bytes
    content_type: str
    etag: str


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """All of them by path, and the version of them together."""

    version: str
    files: Mapping[str, StaticFile]


@cache
def static_files() -> StaticFiles:
    """Those that are installed."""
    content = {
        path.relative_to(_DIRECTORY).as_posix(): path.read_bytes()
        for path in sorted(_DIRECTORY.rglob("*"))
        if path.suffix in _CONTENT_TYPES
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    version = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:16]
    return StaticFiles(
        version,
        {
            name: StaticFile(data, _CONTENT_TYPES[Path(name).suffix], f'"{digests[name][:32]}"')
            for name, data in content.items()
        },
    )
