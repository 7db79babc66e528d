"""Files of the working directory for the gateway: listed, read in pieces, written, removed.

Requests are checked and answered here, by unnumbered frames; open_files.py does the work. A call blocks for one piece,
or one scan of the directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kernel_image import protocol
from kernel_image.artifacts import WorkingDirectory
from kernel_image.kernel_messages import JSON_ERRORS
from kernel_image.open_files import FileReading, FileWriting, Refused, reason_of, remove
from kernel_image.safe_directory import is_path_of_file

_MAX_OPEN = 16
_MAX_ID_CHARACTERS = 64
_PAGE_CHARACTERS = 512 << 10
"""How long the JSON of one page may be; the gateway accepts control messages of twice that."""

_ENTRY_CHARACTERS = 60
_PIECE_HEADER = json.dumps({"msg_id": "", "msg_type": "file"}).encode()
_PIECE_PARTS = 5

Send = Callable[[str | bytes], None]
"""Sends a frame now, if a gateway is there."""


class SessionFiles:
    """Serves the gateway's requests for files. Its state: the open files, by the id that the gateway has chosen."""

    def __init__(self, work: WorkingDirectory, send: Send) -> None:
        self._work = work
        self._send = send
        self._open: dict[str, FileReading | FileWriting] = {}

    def __repr__(self) -> str:
        return f"<SessionFiles {len(self._open)} open>"

    def on_control(self, op: str, fields: dict[str, Any]) -> None:
        """Handle a control message about files, and answer it."""
        file_id = fields.get("id")
        if not isinstance(file_id, str) or len(file_id) > _MAX_ID_CHARACTERS:
            return  # an answer would need the id
        self._guarded(file_id, lambda: self._do(op, file_id, fields))

    def on_piece(self, parts: list[bytes]) -> None:
        """Append a piece to a file that is being written, and answer its size."""
        try:
            content = json.loads(parts[3])
            file_id, offset = content["id"], content["offset"]
        except JSON_ERRORS:
            return
        if isinstance(file_id, str):
            self._guarded(file_id, lambda: self._write(file_id, offset, parts))

    def close_all(self) -> None:
        """Close the open files and drop what is not committed: the gateway that asked is gone."""
        for file_id in list(self._open):
            self._close(file_id)

    def _guarded(self, file_id: str, work: Callable[[], None]) -> None:
        """Do `work`; when it fails, close the file and answer why."""
        try:
            work()
        except (Refused, OSError) as error:
            self._close(file_id)
            self._answer(protocol.FILE_FAILED, file_id, why=reason_of(error))

    def _do(self, op: str, file_id: str, fields: dict[str, Any]) -> None:
        match op:
            case protocol.FILE_LIST:
                self._list(file_id, fields.get("after"))
            case protocol.FILE_OPEN:
                path = self._path_of_new(file_id, fields)
                reading = self._open[file_id] = FileReading(self._work.directory, path)
                self._answer(protocol.FILE_OPENED, file_id, bytes=reading.size_bytes, mtime_ns=reading.mtime_ns)
            case protocol.FILE_CREATE:
                path, limit_bytes = self._path_of_new(file_id, fields), fields.get("limit_bytes")
                if type(limit_bytes) is not int:
                    raise Refused("invalid")
                writing = self._open[file_id] = FileWriting(self._work.directory, path, limit_bytes)
                self._answer(protocol.FILE_OPENED, file_id, bytes=0, mtime_ns=writing.mtime_ns)
            case protocol.FILE_READ:
                self._read(file_id)
            case protocol.FILE_COMMIT:
                self._commit(file_id)
            case protocol.FILE_CLOSE:
                self._close(file_id)
            case protocol.FILE_REMOVE:
                path = _path(fields)
                remove(self._work.directory, path)
                self._work.note(path, None)
                self._answer(protocol.FILE_REMOVED, file_id)
            case _:
                raise Refused("invalid")

    def _list(self, file_id: str, after: Any) -> None:
        """Answer with the next page of the files, as many as one control message may hold."""
        if not isinstance(after, str):
            raise Refused("invalid")
        files, _ = self._work.files()
        paths = sorted(path for path in files if path > after and len(path) <= protocol.MAX_PATH_CHARACTERS)
        entries: list[tuple[str, int, int]] = []
        characters = 0
        for path in paths[: protocol.FILE_PAGE]:
            mtime_ns, size_bytes, _ = files[path]
            characters += len(json.dumps(path)) + _ENTRY_CHARACTERS
            if characters > _PAGE_CHARACTERS:
                break
            entries.append((path, size_bytes, mtime_ns))
        self._answer(protocol.FILE_ENTRIES, file_id, entries=entries, more=len(entries) < len(paths))

    def _read(self, file_id: str) -> None:
        reading = self._open.get(file_id)
        if not isinstance(reading, FileReading):
            raise Refused("invalid")
        content = json.dumps({"id": file_id, "offset": reading.offset}).encode()
        parts = [_PIECE_HEADER, b"{}", b"{}", content, reading.read()]
        self._send(protocol.number_frame(0, protocol.encode_message(protocol.FILE_CHANNEL, parts)))

    def _write(self, file_id: str, offset: Any, parts: list[bytes]) -> None:
        writing = self._open.get(file_id)
        if not isinstance(writing, FileWriting) or offset != writing.written_bytes or len(parts) != _PIECE_PARTS:
            raise Refused("invalid")
        if len(parts[-1]) > protocol.FILE_PIECE_BYTES:
            raise Refused("invalid")
        writing.write(parts[-1])
        self._answer(protocol.FILE_WRITTEN, file_id, offset=writing.written_bytes)

    def _commit(self, file_id: str) -> None:
        writing = self._open.get(file_id)
        if not isinstance(writing, FileWriting):
            raise Refused("invalid")
        mark, is_new = writing.commit()
        self._work.note(writing.path, mark)
        self._close(file_id)
        mtime_ns, size_bytes, _ = mark
        self._answer(protocol.FILE_COMMITTED, file_id, bytes=size_bytes, mtime_ns=mtime_ns, created=is_new)

    def _close(self, file_id: str) -> None:
        if (file := self._open.pop(file_id, None)) is not None:
            file.close()

    def _path_of_new(self, file_id: str, fields: dict[str, Any]) -> str:
        """The path of a file that is to be opened. Raises Refused when the id is in use or too many files are open."""
        if file_id in self._open:
            raise Refused("invalid")
        if len(self._open) >= _MAX_OPEN:
            raise Refused("too_many")
        return _path(fields)

    def _answer(self, op: str, file_id: str, **fields: Any) -> None:
        self._send(protocol.encode_control(op, id=file_id, **fields))


def _path(fields: dict[str, Any]) -> str:
    """The path in a control message. Raises Refused unless it stays below a directory and can be a file's name."""
    if not is_path_of_file(path := fields.get("path")):
        raise Refused("invalid")
    return str(path)
