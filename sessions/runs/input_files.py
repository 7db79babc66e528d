"""Writes the files that a run is given into its sandbox, one after the other, before the code is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sessions.errors import CellblockError, Conflict, FileNotTaken, InvalidRequest, NotFound, TooLarge, TooManyRequests
from sessions.kernels.files import SandboxFileWriter, SupervisorFiles

_PAUSE_S = 0.02
"""Between two attempts to begin a transfer while clients of the session have as many as there may be."""


class NotWritten(Exception):
    """A file could not be written, and will not be the next time; `why` is the error that says so."""

    def __init__(self, path: str, why: CellblockError) -> None:
        super().__init__(f"The file {path} could not be written. {why}")
        self.why = why

    def as_error(self) -> CellblockError:
        """The same, as an error for a client."""
        return type(self.why)(str(self))


async def write_files(files: SupervisorFiles, contents: Mapping[str, bytes]) -> None:
    """Write them. Raises NotWritten; Unavailable when the sandbox is gone, or does not answer."""
    for path, data in contents.items():
        try:
            await _write(files, path, data)
        except (Conflict, FileNotTaken, InvalidRequest, NotFound, TooLarge) as error:
            raise NotWritten(path, error) from error


async def _write(files: SupervisorFiles, path: str, data: bytes) -> None:
    writer = await _begin(files, path, len(data))
    try:
        await writer.write(data)
        await writer.commit()
    finally:
        writer.close()


async def _begin(files: SupervisorFiles, path: str, size_bytes: int) -> SandboxFileWriter:
    while True:
        try:
            return await files.create(path, size_bytes)
        except TooManyRequests:
            await asyncio.sleep(_PAUSE_S)
