"""Sends the files that a run has made: within the limits, in pieces, and no faster than the gateway acknowledges.

Which files those are is artifacts.py's business. It keeps no state.
"""

from __future__ import annotations

import json
from typing import Any

from kernel_image import protocol
from kernel_image.artifacts import Found, WorkingDirectory
from kernel_image.relay import Relay

_CHUNK_BYTES = 1 << 20
_MAX_SKIPPED = 256
_MAX_NAMED_CHARACTERS = 256
_HEADER = json.dumps({"msg_id": "", "msg_type": "artifact"}).encode()
_TOO_MANY = {"path": "", "bytes": 0, "why": "entries"}


class ArtifactSender:
    """Reads files of the working directory and puts them into the relay."""

    def __init__(self, settings: protocol.SupervisorSettings, relay: Relay, work: WorkingDirectory) -> None:
        self._settings = settings
        self._relay = relay
        self._work = work

    async def send(self, request_header: bytes, found: list[Found], *, complete: bool) -> list[dict[str, Any]]:
        """Send the content of files; returns what was skipped, and that there may be more unless `complete`."""
        skipped: list[dict[str, Any]] = []
        counts = {True: 0, False: 0}
        for file in found:
            limit_bytes, limit_count = (
                (self._settings.image_bytes, self._settings.image_count)
                if file.is_image
                else (self._settings.file_bytes, self._settings.file_count)
            )
            why = None
            if len(file.path) > protocol.MAX_PATH_CHARACTERS:
                why = "path"
            elif file.size_bytes > limit_bytes:
                why = "bytes"
            elif counts[file.is_image] >= limit_count:
                why = "count"
            elif (data := self._work.read(file.path, limit_bytes)) is None:
                why = "changed"
            else:
                counts[file.is_image] += 1
                await self._send_file(request_header, file.path, data)
            if why and len(skipped) < _MAX_SKIPPED:
                skipped.append({"path": file.path[:_MAX_NAMED_CHARACTERS], "bytes": file.size_bytes, "why": why})
        return skipped if complete else [*skipped, _TOO_MANY]

    async def _send_file(self, request_header: bytes, path: str, data: bytes) -> None:
        """Send one file. Room is awaited for all of it: its pieces are acknowledged together, once it is stored."""
        await self._relay.wait_for_room()
        for offset in range(0, len(data) or 1, _CHUNK_BYTES):
            content = json.dumps({"path": path, "bytes": len(data), "offset": offset}).encode()
            piece = data[offset : offset + _CHUNK_BYTES]
            parts = [_HEADER, request_header, b"{}", content, piece]
            self._relay.put_message(protocol.ARTIFACT_CHANNEL, parts, droppable=False)
