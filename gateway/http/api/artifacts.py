"""`GET /image/<uuid>_<name>` and `GET /file/<uuid>_<name>`: files that runs made, served so that no browser is harmed.

The content is hostile: only four picture formats, told by their first bytes, are shown; all else is an attachment, and
everything is sandboxed. The unguessable id is the only key, so that chat pages can embed pictures.
"""

from __future__ import annotations

import re
from typing import ClassVar
from urllib.parse import quote, unquote_to_bytes

from gateway.http.base.handler import BaseHandler
from gateway.http.render.answer import file_name
from sessions.errors import NotFound
from sessions.model import ArtifactId, ArtifactKind, ArtifactRef
from sessions.output.media import sniff
from sessions.sanitize import canonical_uuid

_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,80}")
_SHOWN = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})  # an SVG can hold scripts
_MAGIC_BYTES = 16
_FIRST_PIECE_BYTES = 64 << 10
_PIECE_BYTES = 256 << 10


class ArtifactHandler(BaseHandler):
    """Serves one kind of artifact; `kind` and `missing` differ between images and files."""

    kind: ClassVar[ArtifactKind]
    missing: ClassVar[str]

    async def handle_request(self) -> None:
        """Read only as much as is sent, and no more of it than the client takes."""
        ref = await self._find()
        etag = f'"{ref.id}"'
        self.set_header("ETag", etag)
        self.set_header("Cache-Control", "private, max-age=31536000, immutable")
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        if has_version(self.request.headers.get("If-None-Match", ""), etag):
            self.set_status(304)
            return
        service = self.context.service
        first_bytes = _MAGIC_BYTES if self.request.method == "HEAD" else _FIRST_PIECE_BYTES
        beginning = await service.artifact_piece(ref.id, 0, first_bytes)
        if ref.size_bytes and not beginning:
            raise NotFound(self.missing)  # retention has removed it meanwhile
        picture_type = shown_type(beginning)
        self.set_header("Content-Type", picture_type or _declared_type(ref))
        self.set_header("Content-Disposition", disposition(file_name(ref), inline=picture_type is not None))

        async def read(offset: int) -> bytes:
            return await service.artifact_piece(ref.id, offset, _PIECE_BYTES) if offset else beginning

        await self.send_pieces(ref.size_bytes, read)

    async def _find(self) -> ArtifactRef:
        """The artifact that the path names. Raises NotFound, whatever is wrong with the name."""
        segment = unquote_to_bytes(self.request.path.split("/", 2)[2])
        identifier, separator, name = segment.partition(b"_")
        canonical = canonical_uuid(identifier.decode("ascii", "replace"))
        if not separator or canonical is None:
            raise NotFound(self.missing)
        try:
            ref = await self.context.service.artifact_ref(ArtifactId(canonical))
        except NotFound as error:
            raise NotFound(self.missing) from error
        if ref.kind is not self.kind or file_name(ref).encode() != name:
            raise NotFound(self.missing)
        return ref


class ImageHandler(ArtifactHandler):
    """Pictures."""

    kind: ClassVar[ArtifactKind] = ArtifactKind.IMAGE
    missing: ClassVar[str] = "Image not found"


class FileHandler(ArtifactHandler):
    """All other files."""

    kind: ClassVar[ArtifactKind] = ArtifactKind.FILE
    missing: ClassVar[str] = "File not found"


def shown_type(data: bytes) -> str | None:
    """The content type of a picture that may be shown, by its first bytes, or None."""
    content_type = sniff(data)
    return content_type if content_type in _SHOWN else None


def disposition(name: str, *, inline: bool) -> str:
    """A Content-Disposition with the name in both forms of RFC 6266: ASCII, and RFC 5987's UTF-8."""
    plain = re.sub(r"[^ !#-\[\]-~]", "_", name)
    kind = "inline" if inline else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _declared_type(ref: ArtifactRef) -> str:
    declared = ref.content_type.lower()
    return declared if _MEDIA_TYPE.fullmatch(declared) else "application/octet-stream"


def has_version(if_none_match: str, etag: str) -> bool:
    """Whether an `If-None-Match` header names this ETag."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags
