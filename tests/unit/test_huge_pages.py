"""Which memory of a process is put into huge pages, and that nothing is lost by that, nor where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kernel_image import huge_pages

MAPS = """\
00400000-00401000 rw-p 00000000 08:01 4711                               /usr/bin/python3
01000000-02000000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
7f0001000000-7f0001400000 r--p 00000000 00:00 0
7f0002000000-7f0002400000 rw-s 00000000 00:05 12                         /dev/zero (deleted)
7f0003000000-7f0003400000 rwxp 00000000 00:00 0
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_its_own_memory_is_meant() -> None:
    assert huge_pages._own_memory(MAPS) == [
        (0x01000000, 0x02000000),
        (0x7F0000000000, 0x7F0000400000),
        (0x7F0003000000, 0x7F0003400000),
    ]


FILLED = """
import os
from kernel_image import huge_pages
filled = [bytes([number % 256]) * 5000 for number in range(4000)]
huge_pages.collapse()
if os.fork() == 0:
    filled[7] = b""
    os._exit(0 if all(one[:1] == one[-1:] for one in filled) else 1)
assert os.wait()[1] == 0
assert all(one == bytes([number % 256]) * 5000 for number, one in enumerate(filled))
print("whole")
"""


def test_nothing_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", FILLED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr


@pytest.mark.parametrize("size", [None, "", "many"])
def test_where_there_are_no_huge_pages_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str | None
) -> None:
    monkeypatch.setattr(huge_pages, "_SIZE", tmp_path / "size")
    if size is not None:
        huge_pages._SIZE.write_text(size)
    monkeypatch.setattr(huge_pages, "_own_memory", lambda _: pytest.fail("memory is looked for"))
    huge_pages.collapse()
