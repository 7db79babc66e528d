"""Sends the files that a run has made: within the limits, in pieces, and no faster than the gateway acknowledges.

Which files those are is artifacts.py's business. Content that several files share is sent once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from kernel_image import protocol
from kernel_image.artifacts import Found, WorkingDirectory
from kernel_image.relay import Relay

_CHUNK_BYTES = 1 << 20
_MAX_SKIPPED = 256
_MAX_NAMED_CHARACTERS = 256
_HEADER = json.dumps({"msg_id": "", "msg_type": "artifact"}).encode()
_TOO_MANY = {"path": "", "bytes": 0, "why": "entries"}


def not_there(paths: Sequence[str]) -> list[dict[str, Any]]:
    """What is said of files that were asked for by name, and are not there."""
    return [{"path": path[:_MAX_NAMED_CHARACTERS], "bytes": 0, "why": protocol.MISSING} for path in paths]


class ArtifactSender:
    """Reads files of the working directory and puts them into the relay."""

    def __init__(self, settings: protocol.SupervisorSettings, relay: Relay, work: WorkingDirectory) -> None:
        self._settings = settings
        self._relay = relay
        self._work = work

    async def send(
        self, request_header: bytes, found: list[Found], stop: asyncio.Event, *, missing: Sequence[str], complete: bool
    ) -> list[dict[str, Any]]:
        """Send the content of files; returns what is `missing` and was skipped, and that there may be more.

        The latter is said unless the files are `complete`.

        Once `stop` is set, the files that are left are skipped.
        """
        settings = self._settings
        skipped = not_there(missing)
        counts = {True: 0, False: 0}
        left_bytes = settings.files_bytes
        sent: dict[tuple[bool, bytes], str] = {}
        for file in found:
            limit_bytes = settings.image_bytes if file.is_image else settings.file_bytes
            why = self._why_not(file, limit_bytes, counts[file.is_image])
            if why is not None:
                pass
            elif not await self._has_room(stop):
                why = "time"
            elif (data := self._work.read(file.path, limit_bytes)) is None:
                why = "changed"
            elif original := sent.get(key := (file.is_image, hashlib.sha256(data).digest())):
                counts[file.is_image] += 1
                self._put_piece(request_header, b"", path=file.path, bytes=len(data), offset=0, same_as=original)
            elif len(data) > left_bytes:
                why = "total"
            else:
                counts[file.is_image] += 1
                left_bytes -= len(data)
                sent[key] = file.path
                for offset in range(0, len(data) or 1, _CHUNK_BYTES):
                    piece = data[offset : offset + _CHUNK_BYTES]
                    self._put_piece(request_header, piece, path=file.path, bytes=len(data), offset=offset)
            if why and len(skipped) < _MAX_SKIPPED:
                skipped.append({"path": file.path[:_MAX_NAMED_CHARACTERS], "bytes": file.size_bytes, "why": why})
        return skipped if complete else [*skipped, _TOO_MANY]

    def _why_not(self, file: Found, limit_bytes: int, count: int) -> str | None:
        """Which limit keeps a file from being read, when `count` of its kind have been sent."""
        if len(file.path) > protocol.MAX_PATH_CHARACTERS:
            return "path"
        if file.size_bytes > limit_bytes:
            return "bytes"
        limit_count = self._settings.image_count if file.is_image else self._settings.file_count
        return "count" if count >= limit_count else None

    async def _has_room(self, stop: asyncio.Event) -> bool:
        """Wait until a whole file may be sent: its pieces are acknowledged together. False once `stop` is set."""
        if stop.is_set():
            return False
        room, stopped = asyncio.ensure_future(self._relay.wait_for_room()), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({room, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
            stopped.cancel()
        return not stop.is_set()

    def _put_piece(self, request_header: bytes, piece: bytes, **content: Any) -> None:
        parts = [_HEADER, request_header, b"{}", json.dumps(content).encode(), piece]
        self._relay.put_message(protocol.ARTIFACT_CHANNEL, parts, droppable=False)
