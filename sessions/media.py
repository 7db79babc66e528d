"""What an image really is: type and size in pixels, from the bytes alone.

Magic bytes for what a browser shows; imagesize, pure Python, reads the dimensions. No pixel is ever decoded here.
"""

from __future__ import annotations

import io
import mimetypes
from pathlib import PurePosixPath

import imagesize

EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
}
"""The image types that browsers show, and the file extension of a displayed figure of each."""

_SVG = "image/svg+xml"
_SVG_PROLOGUE_BYTES = 4096


def sniff(data: bytes) -> str | None:
    """The content type that the bytes prove, one of `EXTENSIONS`, or None."""
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
    """Width times height; None where the header does not tell. SVG has no pixels: 0."""
    if content_type == _SVG:
        return 0
    try:
        width, height = imagesize.get(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - it parses hostile headers, and what it may raise is not documented
        return None
    return int(width * height) if width > 0 and height > 0 else None


def guess(name: str) -> str:
    """The content type of a file that is no image, from its name."""
    return mimetypes.guess_type(PurePosixPath(name).name)[0] or "application/octet-stream"
