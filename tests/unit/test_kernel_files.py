"""Files between the gateway and a sandbox: both real ends over a real directory, which belongs to hostile code."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kernel_image import open_files, protocol
from kernel_image.artifacts import WorkingDirectory
from kernel_image.files import SessionFiles
from kernel_image.safe_directory import HIDDEN_PREFIX
from sessions.errors import Conflict, InvalidRequest, NotFound, TooLarge, TooManyRequests, Unavailable
from sessions.kernels.file_answers import failure
from sessions.kernels.files import SandboxFileReader, SupervisorFiles
from sessions.settings import Timeouts

PIECE = protocol.FILE_PIECE_BYTES


class Sandbox:
    """A working directory, the supervisor's end of its files, and the gateway's; `said` is what the supervisor said."""

    def __init__(self, root: Path, scan_entries: int = 20_000) -> None:
        self.root = root
        self.work = root / "work"
        self.work.mkdir()
        self.artifacts = WorkingDirectory(str(self.work), scan_entries)
        self.supervisor = SessionFiles(self.artifacts, self._from_supervisor)
        self.files = SupervisorFiles(lambda: self, Timeouts().file_answer_timeout_s)
        self.said: list[str | bytes] = []

    def send_text(self, text: str) -> None:
        fields = json.loads(text)
        self.supervisor.on_control(fields.pop("op"), fields)

    def send_binary(self, data: bytes) -> None:
        channel, parts = protocol.decode_message(data)
        assert channel == protocol.FILE_CHANNEL
        self.supervisor.on_piece(parts)

    def close(self, reason: str) -> None:
        raise AssertionError(reason)

    def _from_supervisor(self, frame: str | bytes) -> None:
        self.said.append(frame)
        if isinstance(frame, str):
            assert len(frame) < 1 << 20, "the gateway takes no longer control message"
            self.files.handle_control(json.loads(frame))
        else:
            number, rest = protocol.split_number(frame)
            assert number == 0
            self.files.handle_frame(rest)

    def lose_link(self) -> None:
        self.supervisor.close_all()
        self.files.handle_link_lost()

    async def put(self, path: str, data: bytes, limit_bytes: int = 1 << 30) -> bool:
        writer = await self.files.create(path, limit_bytes)
        try:
            for start in range(0, len(data), PIECE):
                await writer.write(data[start : start + PIECE])
            return (await writer.commit())[1]
        finally:
            writer.close()

    async def get(self, path: str) -> bytes:
        reader = await self.files.open(path)
        try:
            return await whole(reader)
        finally:
            reader.close()

    async def names(self) -> list[str]:
        return [entry.path for entry in await self.files.list()]

    def artifact_names(self) -> list[str]:
        return [found.path for found in self.artifacts.changes()[0]]

    def hidden(self) -> list[Path]:
        return list(self.work.rglob(f"{HIDDEN_PREFIX}*"))


async def whole(reader: SandboxFileReader) -> bytes:
    pieces = []
    while piece := await reader.read():
        pieces.append(piece)
    return b"".join(pieces)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


# --- reading and writing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE])
async def test_what_is_written_is_read_back(sandbox: Sandbox, size: int) -> None:
    data = os.urandom(size)
    assert await sandbox.put("a/b/t.bin", data)
    assert (sandbox.work / "a" / "b" / "t.bin").read_bytes() == data
    assert await sandbox.get("a/b/t.bin") == data
    assert not sandbox.hidden()


async def test_a_file_and_its_new_directories_are_for_their_owner_only(sandbox: Sandbox) -> None:
    await sandbox.put("new/t", b"x")
    assert stat.S_IMODE((sandbox.work / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((sandbox.work / "new" / "t").stat().st_mode) == 0o600


async def test_a_file_is_replaced_in_one_step_and_that_it_was_there_is_said(sandbox: Sandbox) -> None:
    assert await sandbox.put("t", b"old")
    writer = await sandbox.files.create("t", 100)
    await writer.write(b"new")
    assert await sandbox.get("t") == b"old"
    assert await sandbox.names() == ["t"]
    entry, is_new = await writer.commit()
    assert (entry.path, entry.size_bytes, is_new) == ("t", 3, False)
    assert await sandbox.get("t") == b"new"


async def test_what_is_not_committed_leaves_nothing(sandbox: Sandbox) -> None:
    await sandbox.put("t", b"old")
    writer = await sandbox.files.create("t", 100)
    await writer.write(b"new")
    writer.close()
    writer.close()
    assert await sandbox.get("t") == b"old"
    assert not sandbox.hidden()
    with pytest.raises(Unavailable):
        await writer.commit()


async def test_a_piece_larger_than_one_goes_in_several(sandbox: Sandbox) -> None:
    writer = await sandbox.files.create("t", 10 * PIECE)
    await writer.write(b"x" * (2 * PIECE + 5))
    entry, _ = await writer.commit()
    assert entry.size_bytes == 2 * PIECE + 5


async def test_a_file_that_is_not_there_is_not_found(sandbox: Sandbox) -> None:
    for path in ("t", "a/t"):
        with pytest.raises(NotFound):
            await sandbox.files.open(path)
        with pytest.raises(NotFound):
            await sandbox.files.remove(path)


async def test_a_removed_file_is_gone(sandbox: Sandbox) -> None:
    await sandbox.put("a/t", b"x")
    await sandbox.files.remove("a/t")
    assert await sandbox.names() == []


async def test_a_file_that_grows_is_read_as_long_as_it_was(sandbox: Sandbox) -> None:
    (sandbox.work / "t").write_bytes(b"x" * 10)
    reader = await sandbox.files.open("t")
    (sandbox.work / "t").write_bytes(b"x" * 20)
    assert reader.entry.size_bytes == len(await whole(reader)) == 10


async def test_a_file_that_becomes_shorter_is_a_conflict(sandbox: Sandbox) -> None:
    (sandbox.work / "t").write_bytes(b"x" * (PIECE + 10))
    reader = await sandbox.files.open("t")
    assert len(await reader.read()) == PIECE
    os.truncate(sandbox.work / "t", 5)
    with pytest.raises(Conflict):
        await reader.read()


async def test_a_removed_file_that_is_open_is_read_to_its_end(sandbox: Sandbox) -> None:
    (sandbox.work / "t").write_bytes(b"x" * (2 * PIECE))
    reader = await sandbox.files.open("t")
    (sandbox.work / "t").unlink()
    assert len(await whole(reader)) == 2 * PIECE


# --- paths and what is in the way -------------------------------------------------------------------------------------

BAD_PATHS = ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", "x" * 1025, "\udcff", "\ud800"]


async def everything(sandbox: Sandbox, path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await sandbox.files.open(path)
    with pytest.raises(error):
        await sandbox.files.create(path, 100)
    with pytest.raises(error):
        await sandbox.files.remove(path)


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_a_path_that_leaves_the_directory_is_refused_without_asking(sandbox: Sandbox, path: str) -> None:
    await everything(sandbox, path, InvalidRequest)
    assert sandbox.said == []


@pytest.mark.parametrize("path", [*BAD_PATHS, f"{HIDDEN_PREFIX}x", f"{HIDDEN_PREFIX}d/x", 5, None, ["a"]])
@pytest.mark.parametrize("op", [protocol.FILE_OPEN, protocol.FILE_CREATE, protocol.FILE_REMOVE])
def test_the_supervisor_refuses_a_bad_path_too(sandbox: Sandbox, op: str, path: Any) -> None:
    (sandbox.work / HIDDEN_PREFIX).mkdir()
    sandbox.supervisor.on_control(op, {"id": "1", "path": path, "limit_bytes": 5})
    assert [json.loads(text) for text in sandbox.said] == [{"op": "file_failed", "id": "1", "why": "invalid"}]


async def test_a_name_too_long_for_the_disk_is_refused(sandbox: Sandbox) -> None:
    await everything(sandbox, "x" * 300, InvalidRequest)


async def test_links_are_followed_nowhere(sandbox: Sandbox) -> None:
    outside = sandbox.root / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (sandbox.work / "link").symlink_to(outside / "secret")
    (sandbox.work / "dangling").symlink_to(outside / "new")
    (sandbox.work / "dir").symlink_to(outside)
    (sandbox.work / "d").mkdir()
    (sandbox.work / "d" / "dir").symlink_to(outside)
    for path in ("link", "dangling", "dir/secret", "dir/new", "d/dir/secret", "d/dir/deeper/new", "dir"):
        await everything(sandbox, path, InvalidRequest)
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"secret": "secret"}
    assert await sandbox.names() == []


async def test_what_is_no_regular_file_is_left_alone(sandbox: Sandbox) -> None:
    (sandbox.work / "d").mkdir()
    (sandbox.work / "f").touch()
    os.mkfifo(sandbox.work / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(sandbox.work / "socket"))
    for path in ("d", "pipe", "socket", "f/below", "pipe/below"):
        await everything(sandbox, path, InvalidRequest)
    assert sorted(path.name for path in sandbox.work.iterdir()) == ["d", "f", "pipe", "socket"]


async def test_a_directory_that_takes_the_name_during_the_upload_stays(sandbox: Sandbox) -> None:
    writer = await sandbox.files.create("t", 100)
    await writer.write(b"x")
    (sandbox.work / "t").mkdir()
    with pytest.raises(InvalidRequest):
        await writer.commit()
    assert (sandbox.work / "t").is_dir()
    assert not sandbox.hidden()


@pytest.mark.parametrize("replacement", ["nothing", "link", "file", "directory", "longer"])
async def test_a_hidden_file_that_code_lays_hands_on_is_not_put_in_place(sandbox: Sandbox, replacement: str) -> None:
    secret = sandbox.root / "secret"
    secret.write_text("secret")
    writer = await sandbox.files.create("t", 100)
    await writer.write(b"x")
    (hidden,) = sandbox.hidden()
    if replacement == "longer":
        hidden.write_bytes(b"xyz")
    else:
        hidden.unlink()
    if replacement == "link":
        hidden.symlink_to(secret)
    elif replacement == "file":
        hidden.write_bytes(b"y")
    elif replacement == "directory":
        hidden.mkdir()
    with pytest.raises(Conflict):
        await writer.commit()
    assert await sandbox.names() == []
    assert secret.read_text() == "secret"


async def test_a_directory_removed_during_the_upload_is_a_conflict(sandbox: Sandbox) -> None:
    writer = await sandbox.files.create("d/t", 100)
    (hidden,) = sandbox.hidden()
    hidden.unlink()
    (sandbox.work / "d").rmdir()
    with pytest.raises(Conflict):
        await writer.commit()


async def test_a_working_directory_that_is_gone_is_empty_and_made_anew(sandbox: Sandbox) -> None:
    sandbox.work.rmdir()
    assert await sandbox.names() == []
    with pytest.raises(NotFound):
        await sandbox.files.open("t")
    assert await sandbox.put("d/t", b"x")
    assert (sandbox.work / "d" / "t").read_bytes() == b"x"


async def test_a_working_directory_that_is_a_link_is_not_followed(sandbox: Sandbox) -> None:
    (sandbox.root / "outside").mkdir()
    sandbox.work.rmdir()
    sandbox.work.symlink_to(sandbox.root / "outside")
    with pytest.raises((InvalidRequest, Unavailable)):
        await sandbox.put("t", b"x")
    assert list((sandbox.root / "outside").iterdir()) == []


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_a_file_over_its_limit_is_refused_before_it_is_sent(sandbox: Sandbox) -> None:
    writer = await sandbox.files.create("t", 5)
    await writer.write(b"12345")
    with pytest.raises(TooLarge, match="5 bytes"):
        await writer.write(b"6")
    assert not sandbox.hidden()


def test_the_supervisor_holds_to_the_limit_too(sandbox: Sandbox) -> None:
    sandbox.supervisor.on_control(protocol.FILE_CREATE, {"id": "1", "path": "t", "limit_bytes": 5})
    content = json.dumps({"id": "1", "offset": 0}).encode()
    sandbox.supervisor.on_piece([b"{}", b"{}", b"{}", content, b"123456"])
    assert json.loads(sandbox.said[-1]) == {"op": "file_failed", "id": "1", "why": "too_large"}
    assert not sandbox.hidden()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_said_and_leaves_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    writer = await sandbox.files.create("t", 100)

    def write(*_args: Any) -> int:
        raise OSError(number, "full")

    monkeypatch.setattr(open_files.os, "write", write)
    with pytest.raises(TooLarge, match="room"):
        await writer.write(b"x")
    monkeypatch.undo()
    assert not sandbox.hidden()


async def test_a_disk_that_fails_is_unavailable(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    (sandbox.work / "t").write_bytes(b"x")
    reader = await sandbox.files.open("t")

    def pread(*_args: Any) -> bytes:
        raise OSError(errno.EIO, "bad")

    monkeypatch.setattr(open_files.os, "pread", pread)
    with pytest.raises(Unavailable):
        await reader.read()


async def test_so_many_transfers_at_once_and_no_more(sandbox: Sandbox) -> None:
    (sandbox.work / "t").touch()
    readers = [await sandbox.files.open("t") for _ in range(8)]
    for attempt in (sandbox.files.open("t"), sandbox.files.list(), sandbox.files.remove("t")):
        with pytest.raises(TooManyRequests):
            await attempt
    readers[0].close()
    assert await sandbox.names() == ["t"]


def test_the_supervisor_opens_so_many_and_no_more(sandbox: Sandbox) -> None:
    (sandbox.work / "t").touch()
    for number in range(17):
        sandbox.supervisor.on_control(protocol.FILE_OPEN, {"id": str(number), "path": "t"})
    failed = [json.loads(text) for text in sandbox.said if "failed" in str(text)]
    assert failed == [{"op": "file_failed", "id": "16", "why": "too_many"}]


@pytest.mark.parametrize(
    "parts",
    [
        [b"{}"] * 5,
        [b"", b"", b"", b'{"id": "1", "offset": 1}', b"x"],
        [b"", b"", b"", b'{"id": ["1"], "offset": 0}', b"x"],
        [b"", b"", b"", b'{"id": "1", "offset": 0}'],
        [b"", b"", b"", b'{"id": "1", "offset": 0}', b"x" * (PIECE + 1)],
        [b"", b"", b"", b'{"id": "2", "offset": 0}', b"x"],
    ],
)
def test_a_piece_that_does_not_fit_writes_nothing(sandbox: Sandbox, parts: list[bytes]) -> None:
    sandbox.supervisor.on_control(protocol.FILE_CREATE, {"id": "1", "path": "t", "limit_bytes": 1 << 30})
    sandbox.supervisor.on_piece(parts)
    assert [path.stat().st_size for path in sandbox.hidden()] in ([], [0])
    assert sandbox.said[1:] == [] or json.loads(sandbox.said[-1])["why"] == "invalid"


def test_files_left_open_are_closed_with_the_connection(sandbox: Sandbox) -> None:
    (sandbox.work / "t").touch()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the count of names is all that is wanted
    for number in range(5):
        sandbox.supervisor.on_control(protocol.FILE_OPEN, {"id": f"r{number}", "path": "t"})
        sandbox.supervisor.on_control(protocol.FILE_OPEN, {"id": f"n{number}", "path": "none"})
        sandbox.supervisor.on_control(protocol.FILE_OPEN, {"id": f"d{number}", "path": "."})
        sandbox.supervisor.on_control(
            protocol.FILE_CREATE, {"id": f"w{number}", "path": f"d/{number}", "limit_bytes": 1}
        )
        sandbox.supervisor.on_control(protocol.FILE_CREATE, {"id": f"x{number}", "path": "d", "limit_bytes": 1})
    assert repr(sandbox.supervisor) == "<SessionFiles 10 open>"
    sandbox.supervisor.close_all()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not sandbox.hidden()


async def test_what_was_open_when_the_link_broke_says_so(sandbox: Sandbox) -> None:
    (sandbox.work / "t").write_bytes(b"x" * 10)
    reader, writer = await sandbox.files.open("t"), await sandbox.files.create("new", 100)
    sandbox.lose_link()
    with pytest.raises(Unavailable, match="connection broke"):
        await reader.read()
    with pytest.raises(Unavailable, match="connection broke"):
        await writer.write(b"x")
    reader.close()
    writer.close()
    assert await sandbox.get("t") == b"x" * 10
    assert await sandbox.names() == ["t"]


# --- lists and artifacts ----------------------------------------------------------------------------------------------


async def test_a_list_has_the_regular_files_by_path(sandbox: Sandbox) -> None:
    for directory in ("a", "__pycache__", ".ipynb_checkpoints", f"{HIDDEN_PREFIX}d"):
        (sandbox.work / directory).mkdir()
        (sandbox.work / directory / "f").write_text("x")
    (sandbox.work / f"{HIDDEN_PREFIX}left").write_text("x")
    (sandbox.work / "z.txt").write_text("xyz")
    os.utime(sandbox.work / "z.txt", ns=(0, 1_700_000_000_123_456_789))
    (sandbox.work / "link").symlink_to("z.txt")
    os.mkfifo(sandbox.work / "pipe")
    entries = await sandbox.files.list()
    assert [(entry.path, entry.size_bytes) for entry in entries] == [("a/f", 1), ("z.txt", 3)]
    assert entries[1].modified_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


async def test_a_long_list_comes_in_pages_and_whole(sandbox: Sandbox) -> None:
    for number in range(2500):
        (sandbox.work / f"{number:05}").touch()
    assert await sandbox.names() == [f"{number:05}" for number in range(2500)]
    assert len(sandbox.said) == 3


async def test_a_list_of_long_names_comes_in_more_pages(sandbox: Sandbox) -> None:
    above = sandbox.work / "/".join("é" * 120 for _ in range(4))
    above.mkdir(parents=True)
    for number in range(400):
        (above / f"{number:03}").touch()
    assert len(await sandbox.names()) == 400
    assert len(sandbox.said) > 1


async def test_no_more_is_looked_at_than_the_bound(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path, scan_entries=10)
    for number in range(50):
        (sandbox.work / str(number)).touch()
    assert len(await sandbox.names()) == 10


async def test_names_that_are_no_text_and_times_that_are_none_are_listed(sandbox: Sandbox) -> None:
    for name in (b"\xff", b"\xfe\xff", b"plain"):
        with open(os.fsencode(sandbox.work) + b"/" + name, "wb"):  # noqa: PTH123, ASYNC230 - Path takes no bytes
            pass
    os.utime(sandbox.work / "plain", ns=(0, -(10**18)))
    assert await sandbox.names() == ["plain", "%FE%FF", "%FF"]


async def test_what_a_client_puts_or_removes_is_no_artifact_and_what_a_run_does_to_it_is(sandbox: Sandbox) -> None:
    await sandbox.put("t", b"one")
    await sandbox.put("u", b"one")
    assert sandbox.artifact_names() == []
    (sandbox.work / "t").write_text("three")
    assert sandbox.artifact_names() == ["t"]
    await sandbox.files.remove("t")
    assert sandbox.artifact_names() == []
    (sandbox.work / "t").write_text("three")
    await sandbox.put("u", b"two")
    assert sandbox.artifact_names() == ["t"]


async def test_what_is_being_written_is_no_artifact(sandbox: Sandbox) -> None:
    writer = await sandbox.files.create("t", 100)
    await writer.write(b"x")
    assert sandbox.artifact_names() == []
    await writer.commit()
    assert sandbox.artifact_names() == []


@pytest.mark.parametrize(
    ("number", "why"), [(errno.EACCES, "denied"), (errno.EPERM, "denied"), (errno.EROFS, "denied"), (errno.EIO, "io")]
)
def test_a_permission_that_is_missing_is_no_passing_fault(number: int, why: str) -> None:
    assert open_files.reason_of(OSError(number, "")) == why
    assert isinstance(failure(why), InvalidRequest) is (why == "denied")
