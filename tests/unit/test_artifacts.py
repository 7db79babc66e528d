"""Which files a run made, in a directory that belongs to hostile code: real files, links, pipes and odd names."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kernel_image.artifacts import Found, WorkingDirectory


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def directory(work: Path) -> WorkingDirectory:
    return WorkingDirectory(str(work), max_entries=1000)


def names(directory: WorkingDirectory) -> list[str]:
    found, complete = directory.changes()
    assert complete
    return [file.path for file in found]


def test_new_files_are_found_in_any_subdirectory_by_path(work: Path, directory: WorkingDirectory) -> None:
    (work / "a" / "b").mkdir(parents=True)
    (work / "z.txt").write_text("z")
    (work / "a" / "b" / "t.csv").write_text("1,2")
    assert directory.changes() == ([Found("a/b/t.csv", 3), Found("z.txt", 1)], True)


def test_a_file_is_found_once_and_again_when_it_changes(work: Path, directory: WorkingDirectory) -> None:
    (work / "t").write_text("one")
    assert names(directory) == ["t"]
    assert names(directory) == []
    (work / "t").write_text("three")
    assert names(directory) == ["t"]


def test_a_file_replaced_by_another_of_the_same_size_and_time_is_found(work: Path, directory: WorkingDirectory) -> None:
    (work / "t").write_text("one")
    status = (work / "t").stat()
    assert names(directory) == ["t"]
    (work / "new").write_text("two")
    os.utime(work / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (work / "new").rename(work / "t")
    assert names(directory) == ["t"]


def test_a_deleted_file_is_no_change_and_found_when_it_comes_back(work: Path, directory: WorkingDirectory) -> None:
    (work / "t").write_text("one")
    assert names(directory) == ["t"]
    (work / "t").unlink()
    assert names(directory) == []
    (work / "t").write_text("one")
    assert names(directory) == ["t"]


def test_links_pipes_and_sockets_are_never_followed(tmp_path: Path, work: Path, directory: WorkingDirectory) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.txt").write_text("secret")
    (work / "link.txt").symlink_to(tmp_path / "secret.txt")
    (work / "dir").symlink_to(tmp_path / "elsewhere")
    (work / "loop").symlink_to(work)
    os.mkfifo(work / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(work / "socket.csv"))
    assert names(directory) == []
    for path in ("link.txt", "dir/secret.txt", "pipe.png", "socket.csv", "loop/link.txt"):
        assert directory.read(path, 100) is None


def test_a_file_that_becomes_a_link_between_the_scan_and_the_reading_is_not_read(
    tmp_path: Path, work: Path, directory: WorkingDirectory
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (work / "d").mkdir()
    (work / "d" / "secret.txt").write_text("mine")
    assert names(directory) == ["d/secret.txt"]
    assert directory.read("d/secret.txt", 100) == b"mine"
    (work / "d" / "secret.txt").unlink()
    (work / "d").rmdir()
    (work / "d").symlink_to(tmp_path)
    assert directory.read("d/secret.txt", 100) is None


def test_a_file_over_the_limit_or_gone_is_not_read(work: Path, directory: WorkingDirectory) -> None:
    (work / "t").write_bytes(b"12345")
    assert directory.read("t", 4) is None
    assert directory.read("t", 5) == b"12345"
    assert directory.read("other", 5) is None
    assert directory.read("t/below", 5) is None


def test_names_that_are_no_text_are_found_and_read(work: Path, directory: WorkingDirectory) -> None:
    path = os.fsencode(work) + b"/\xff\xfe.png"
    with open(path, "wb") as file:  # noqa: PTH123 - Path takes no bytes
        file.write(b"data")
    (name,) = names(directory)
    assert os.fsencode(name) == b"\xff\xfe.png"
    assert directory.read(name, 100) == b"data"


@pytest.mark.parametrize("skipped", ["__pycache__", ".ipynb_checkpoints"])
def test_what_tools_leave_behind_is_no_artifact(work: Path, directory: WorkingDirectory, skipped: str) -> None:
    (work / skipped).mkdir()
    (work / skipped / "x.pyc").write_text("")
    assert names(directory) == []


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_no_more_entries_than_allowed_are_looked_at_and_that_is_said(work: Path, kind: str) -> None:
    for number in range(30):
        entry = work / str(number)
        if kind == "file":
            entry.touch()
        elif kind == "directory":
            entry.mkdir()
        else:
            entry.symlink_to("nowhere")
    found, complete = WorkingDirectory(str(work), max_entries=20).changes()
    assert not complete
    assert len(found) == (20 if kind == "file" else 0)
    assert WorkingDirectory(str(work), max_entries=30).changes()[1]


def test_directories_below_a_certain_depth_are_left_alone(work: Path, directory: WorkingDirectory) -> None:
    (work / "/".join("d" * 32)).mkdir(parents=True)
    (work / "/".join("d" * 32) / "seen").touch()
    (work / "/".join("d" * 33)).mkdir(parents=True)
    (work / "/".join("d" * 33) / "unseen").touch()
    found, complete = directory.changes()
    assert [file.path for file in found] == ["/".join("d" * 32) + "/seen"]
    assert not complete


def test_a_working_directory_that_is_gone_or_a_link_is_empty(tmp_path: Path, work: Path) -> None:
    (tmp_path / "secret").touch()
    work.rmdir()
    assert names(WorkingDirectory(str(work), 100)) == []
    work.symlink_to(tmp_path)
    assert names(WorkingDirectory(str(work), 100)) == []


def test_scanning_leaves_no_descriptor_open(work: Path) -> None:
    for number in range(20):
        (work / str(number) / "below").mkdir(parents=True)
        (work / str(number) / "below" / "f").touch()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the count of names is all that is wanted
    for max_entries in (7, 1000):
        directory = WorkingDirectory(str(work), max_entries)
        directory.changes()
        directory.read("3/below/f", 10)
        directory.read("3/nothing/f", 10)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".gif", ".SVG", ".webp"])
def test_an_image_is_known_by_its_name(suffix: str) -> None:
    assert Found(f"dir.d/x{suffix}", 1).is_image
    assert not Found(f"x{suffix}.txt", 1).is_image
