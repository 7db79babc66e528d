"""Who holds a data directory, and where that process listens."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gateway.host.data_dir import DataDir, Holder, holder_of
from sessions.errors import SetUpFailed


def test_the_holder_says_where_it_listens_once_it_does(short_dir: Path) -> None:
    path = short_dir / "d"
    assert holder_of(path) is None
    held = DataDir.open(path)
    assert holder_of(path) == Holder(os.getpid(), "")
    held.tell_address("http://127.0.0.1:1234")
    assert holder_of(path) == Holder(os.getpid(), "http://127.0.0.1:1234")
    with pytest.raises(SetUpFailed, match=rf"Another gateway \(process {os.getpid()}\) uses"):
        DataDir.open(path)
    held.release()
    DataDir.open(path).release()
    assert holder_of(path) == Holder(os.getpid(), ""), "the address of a gateway that was killed is forgotten"


@pytest.mark.parametrize(
    ("content", "holder"), [("", None), ("12", None), ("12\nhttp://h", Holder(12, "")), ("no pid\n", None)]
)
def test_what_is_half_written_is_not_believed(short_dir: Path, content: str, holder: Holder | None) -> None:
    (short_dir / "lock").write_text(content)
    assert holder_of(short_dir) == holder


def test_a_full_disk_is_one_sentence_and_the_directory_is_not_held(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(SetUpFailed, match=r"cannot be written \(No space left on device\): free some room"):
            DataDir.open(short_dir)
    held = DataDir.open(short_dir)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SetUpFailed, match="free some room"):
        held.tell_address("http://127.0.0.1:8000")
    held.release()
