"""The files below a session's working directory: list, download, upload and remove. No file is in memory whole.

Their content is hostile: every file is a download, and sandboxed.
"""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import PurePosixPath
from typing import Any

from tornado.web import HTTPError

from gateway.http.api.artifacts import disposition
from gateway.http.base.bodies import declared_bytes
from gateway.http.base.handler import BaseHandler
from gateway.http.parse import urls
from gateway.http.parse.times import iso
from sessions.errors import CellblockError, TooLarge
from sessions.kernels.files import SandboxFileReader, SandboxFileWriter
from sessions.model import FileEntry, SessionId
from sessions.output.media import guess

SLOWEST_UPLOAD_BYTES_PER_S = 64 << 10
"""A body may take as much longer than others as its size takes at this speed."""


class SessionFilesHandler(BaseHandler):
    """All files of a session."""

    async def handle_request(self) -> None:
        session_id = urls.session_in(self.request.path)
        files = await self.context.service.session_files(self.tenant, session_id)
        await self.send_json({"files": [_entry(entry) for entry in await files.list()]})


class SessionFileHandler(BaseHandler):
    """One file. Its state beside the base class's: `_writer`, into which the body goes while it comes."""

    _writer: SandboxFileWriter | None = None

    async def handle_request(self) -> None:
        session_id, path = self._address()
        if self.request.method == "PUT":
            await self._commit()
            return
        files = await self.context.service.session_files(self.tenant, session_id)
        if self.request.method == "DELETE":
            await files.remove(path)
            await self.send_nothing()
            return
        reader = await files.open(path)
        try:
            await self._send_file(reader)
        finally:
            reader.close()

    def _address(self) -> tuple[SessionId, str]:
        return urls.session_in(self.request.path), urls.file_in(self.request.path)

    # --- down ---------------------------------------------------------------------------------------------------------

    async def _send_file(self, reader: SandboxFileReader) -> None:
        """Send it as it was when it was opened."""
        entry = reader.entry
        name = PurePosixPath(entry.path).name
        self.set_header("Content-Type", guess(name))
        self.set_header("Content-Disposition", disposition(name, inline=False))
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        self.set_header("Last-Modified", entry.modified_at)
        await self.send_pieces(entry.size_bytes, lambda _offset: reader.read())

    # --- up -----------------------------------------------------------------------------------------------------------

    @property
    def _body_limit_bytes(self) -> int:
        limits = self.context.config.limits
        return limits.disk_bytes if self.request.method == "PUT" else limits.request_bytes

    def _too_large(self) -> TooLarge:
        if self.request.method != "PUT":
            return super()._too_large()
        return TooLarge("The file is larger than `limits.disk` allows a session to hold.")

    def _check_headers(self) -> None:
        super()._check_headers()
        if self.request.method in self.route.methods:
            self._address()

    async def prepare(self) -> None:  # type: ignore[override]  # tornado awaits it
        """Open the file for the body, once it is clear that the body will be taken."""
        super().prepare()
        if self.request.method != "PUT" or self._refusal is not None:
            return
        self._allow_more_time()
        try:
            session_id, path = self._address()
            files = await self.context.service.session_files(self.tenant, session_id)
            self._writer = await files.create(path, self._body_limit_bytes)
        except (CellblockError, HTTPError) as error:
            self._refusal = error
            if self.request.headers.get("Expect", "").lower() == "100-continue":
                raise

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Write a piece; tornado reads the next one when this is done."""
        if self.request.method != "PUT":
            return super().data_received(chunk)
        return self._write_chunk(chunk)

    async def _write_chunk(self, chunk: bytes) -> None:
        if self._counts(chunk) and self._writer is not None:
            try:
                await self._writer.write(chunk)
            except CellblockError as error:
                self._refusal = error
        if self._refusal is not None:
            self._drop_writer()
            self._disconnect_endless()

    async def _commit(self) -> None:
        if self._writer is None:
            raise HTTPError(500)
        try:
            entry, is_new = await self._writer.commit()
        finally:
            self._drop_writer()
        if is_new:
            self.set_header("Location", urls.file_url(self.base_url, self._address()[0], entry.path))
        await self.send_json(_entry(entry), 201 if is_new else 200)

    def on_connection_close(self) -> None:
        """A file that has not come whole is not kept."""
        super().on_connection_close()
        if not self._is_answering:
            self._drop_writer()

    def on_finish(self) -> None:
        """Nor is one that was refused."""
        super().on_finish()
        if not self._is_answering:
            self._drop_writer()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _allow_more_time(self) -> None:
        """A large file over a slow line takes longer than any other body."""
        connection: Any = self.request.connection
        patience_s = connection.params.body_timeout
        if patience_s is not None:
            size_bytes = declared_bytes(self.request.headers) or self._body_limit_bytes
            connection.set_body_timeout(patience_s + size_bytes / SLOWEST_UPLOAD_BYTES_PER_S)


def _entry(entry: FileEntry) -> dict[str, Any]:
    return {"path": entry.path, "bytes": entry.size_bytes, "modified_at": iso(entry.modified_at)}
