"""Content types of files, and the type and size of images, read from their bytes.

Magic bytes identify the image types that browsers show. The imagesize package, which is pure Python, reads the
dimensions. No pixel is decoded.
"""

from __future__ import annotations

import io
import mimetypes
from pathlib import PurePosixPath
from xml.parsers import expat

import imagesize

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp", "image/svg+xml": "svg"}
"""The image types that browsers show, each with the file extension of a displayed figure."""

_SVG = "image/svg+xml"
_SVG_PROLOGUE_BYTES = 4096
_MAX_READS = 4096
_MAX_BLOCKS = 150_000
"""How many parts of an image are walked through at most, or one for each 64 bytes of a large one."""
_BLOCK_BYTES = 64
_UNKNOWN = "application/octet-stream"
_ENCODINGS = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/x-brotli",
    "compress": "application/x-compress",
}
# Types that some Python versions lack or map differently. The tables of the host are never read.
_OWN_TYPES = {
    "application/json": ".json",
    "application/pdf": ".pdf",
    "application/sql": ".sql",
    "application/toml": ".toml",
    "application/vnd.apache.arrow.file": ".arrow .feather",
    "application/vnd.apache.parquet": ".parquet",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-powerpoint": ".ppt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.sqlite3": ".sqlite .sqlite3",
    "application/x-7z-compressed": ".7z",
    "application/x-hdf5": ".h5 .hdf5",
    "application/x-ipynb+json": ".ipynb",
    "application/x-ndjson": ".jsonl .ndjson",
    "application/xml": ".xml",
    "application/yaml": ".yaml .yml",
    "application/zip": ".zip",
    "application/zstd": ".zst",
    "audio/mpeg": ".mp3",
    "audio/wav": ".wav",
    "image/svg+xml": ".svg",
    "image/webp": ".webp",
    "text/csv": ".csv",
    "text/html": ".html .htm",
    "text/javascript": ".js .mjs",
    "text/markdown": ".md .markdown",
    "text/plain": ".txt .log",
    "text/tab-separated-values": ".tsv",
    "text/x-python": ".py",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
}


def _type_table() -> mimetypes.MimeTypes:
    table = mimetypes.MimeTypes()
    for content_type, extensions in _OWN_TYPES.items():
        for extension in extensions.split():
            table.add_type(content_type, extension)
    return table


_TYPES = _type_table()


class _BoundedReads(io.BytesIO):
    """Bytes with a limit on reads: imagesize walks a JPEG marker by marker, and there could be millions."""

    _left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; raises ValueError past the limit."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many parts")
        return super().read(size)


def sniff(data: bytes) -> str | None:
    """The image type that the first bytes identify, one of `EXTENSIONS`; None for everything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if b"<svg" in data[:_SVG_PROLOGUE_BYTES] and data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return _SVG
    return None


def count_pixels(data: bytes, content_type: str) -> int | None:
    """Width times height, or None when the header does not say. SVG has no pixels: 0."""
    if content_type == _SVG:
        return 0
    try:
        width, height = imagesize.get(_BoundedReads(data), exif_rotation=False)
    except Exception:  # noqa: BLE001 - it parses hostile headers, and what it may raise is not documented
        return None
    return int(width * height) if width > 0 and height > 0 else None


def is_whole(data: bytes, content_type: str) -> bool:
    """Whether an image of this type is there from its header to its end. What lies between is not decoded."""
    if content_type == _SVG:
        return _is_svg(data)
    if not count_pixels(data, content_type):
        return False
    match content_type:
        case "image/png":
            return _is_whole_png(data)
        case "image/gif":
            return _is_whole_gif(data)
        case "image/webp":
            return int.from_bytes(data[4:8], "little") <= len(data) - 8
        case _:
            return data.rfind(b"\xff\xd9") > data.find(b"\xff\xda") > 0


def _is_whole_png(data: bytes) -> bool:
    """Length, type, content and checksum of each chunk, as far as IEND: https://www.w3.org/TR/png/#5Chunk-layout."""
    offset, kinds = 8, set()
    for _ in range(_max_blocks(data)):
        if offset + 12 > len(data):
            return False
        size_bytes, kind = int.from_bytes(data[offset : offset + 4]), data[offset + 4 : offset + 8]
        offset += 12 + size_bytes
        kinds.add(kind)
        if kind == b"IEND":
            return offset <= len(data) and {b"IHDR", b"IDAT"} <= kinds
    return False


def _is_whole_gif(data: bytes) -> bool:
    """The blocks as far as the trailer, one of them an image: https://www.w3.org/Graphics/GIF/spec-gif89a.txt."""
    if len(data) <= 13:  # noqa: PLR2004 - the header's bytes
        return False
    offset, has_image, left = 13 + _color_table_bytes(data[10]), False, _max_blocks(data)
    while offset < len(data) and left > 0:
        match data[offset]:
            case 0x3B:
                return has_image
            case 0x21:
                offset += 2
            case 0x2C if offset + 10 < len(data):
                offset += 11 + _color_table_bytes(data[offset + 9])
                has_image = True
            case _:
                return False
        while offset < len(data) and data[offset] and left > 0:
            offset += 1 + data[offset]
            left -= 1
        offset += 1
        left -= 1
    return False


def _max_blocks(data: bytes) -> int:
    return max(_MAX_BLOCKS, len(data) // _BLOCK_BYTES)


def _color_table_bytes(flags: int) -> int:
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0


def _is_svg(data: bytes) -> bool:
    """Whether this is XML whose outermost element is `svg`. A document with entities of its own is not read further."""
    roots: list[str] = []
    parser = expat.ParserCreate(namespace_separator=" ")

    def start(name: str, _attributes: object) -> None:
        roots.append(name.rpartition(" ")[2])
        parser.StartElementHandler = None

    def stop(*_declaration: object) -> None:
        raise _EntityDeclared

    parser.StartElementHandler, parser.EntityDeclHandler = start, stop
    try:
        parser.Parse(data, True)  # noqa: FBT003 - expat takes no keywords
    except _EntityDeclared:
        return b"</svg" in data
    except (expat.ExpatError, ValueError):
        return False
    return roots == ["svg"]


class _EntityDeclared(Exception):
    """Entities can make a small document immense."""


def guess(name: str) -> str:
    """The content type of a file according to its name; for a compressed file, that of the compression."""
    # As a path, for `guess_type` parses "data:…" and "http://…" as URLs.
    content_type, encoding = _TYPES.guess_type("./" + PurePosixPath(name).name.lower())
    return _ENCODINGS.get(encoding, _UNKNOWN) if encoding else content_type or _UNKNOWN
