"""The environment of the process engine's kernels: made once, made anew when it should hold something else."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from sessions.errors import SetUpFailed
from sessions.provisioners.process import environment
from sessions.provisioners.process.environment import ensure_environment, find_environment
from sessions.settings import BuildSettings

SETTINGS = BuildSettings(dependencies=("tabulate",), preload=())


async def test_the_environment_holds_the_packages_and_the_supervisor_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requirements", lambda _: b"tabulate\n")  # ipykernel's twenty packages take long
    assert find_environment(SETTINGS, tmp_path) is None
    python = await ensure_environment(SETTINGS, tmp_path, print)
    modules = "import tabulate, kernel_image.protocol; print(tabulate.__file__)"
    where = await asyncio.to_thread(subprocess.check_output, [python, "-I", "-c", modules], text=True)
    assert tmp_path in Path(where).parents
    lines: list[str] = []
    assert await ensure_environment(SETTINGS, tmp_path, lines.append) == python
    assert lines == []
    assert find_environment(replace(SETTINGS, constraints="none"), tmp_path) is None


async def test_versions_that_this_python_cannot_have_are_replaced_unless_the_operator_chose_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requirements", lambda _: b"tabulate\n")
    monkeypatch.setattr(environment, "constraints", lambda _: b"tabulate==0.0.0\n")
    with pytest.raises(SetUpFailed, match="ResolutionImpossible"):
        await ensure_environment(replace(SETTINGS, constraints="mine.txt"), tmp_path, print)
    python = await ensure_environment(SETTINGS, tmp_path, print)
    assert await asyncio.to_thread(subprocess.call, [python, "-I", "-c", "import tabulate"]) == 0


async def test_what_cannot_be_installed_is_told_in_pips_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requirements", lambda _: b"--no-index\ncellblock-no-such-package\n")
    with pytest.raises(SetUpFailed, match="cellblock-no-such-package"):
        await ensure_environment(SETTINGS, tmp_path, print)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - an iterator would be blocking
