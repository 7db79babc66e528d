"""The cache of what jedi parses: the image's is looked into first, and the user's is what it would be without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jedi
import parso
import parso.cache
import pytest

from kernel_image import completion


@pytest.fixture
def parso_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """parso with a cache in memory that is empty, adapted to an image's cache in files, which is empty, too."""
    monkeypatch.setattr(completion, "CACHE", tmp_path / "image")
    monkeypatch.setattr(parso.cache, "parser_cache", {})
    monkeypatch.setattr(parso.cache, "_load_from_file_system", parso.cache._load_from_file_system)  # type: ignore[attr-defined]
    completion.CACHE.mkdir()
    completion.adapt(parso.cache)
    return parso.cache


def parse(path: Path, cache: Path) -> None:
    parso.load_grammar().parse(path=path, cache=True, cache_path=cache)


def pickles(directory: Path) -> int:
    return len(list(directory.rglob("*.pkl")))


def test_what_the_image_has_is_not_parsed_again(tmp_path: Path, parso_cache: ModuleType) -> None:
    source = tmp_path / "source.py"
    source.write_text("x = 1\n")
    parse(source, completion.CACHE)
    parso_cache.parser_cache.clear()
    parse(source, tmp_path / "user")
    assert (pickles(completion.CACHE), pickles(tmp_path / "user")) == (1, 0)


def test_what_is_newer_than_the_image_or_not_in_it_goes_to_the_users_cache(
    tmp_path: Path, parso_cache: ModuleType
) -> None:
    source, other = tmp_path / "source.py", tmp_path / "other.py"
    source.write_text("x = 1\n")
    parse(source, completion.CACHE)
    parso_cache.parser_cache.clear()
    later = source.stat().st_mtime + 100
    source.write_text("y = 1\n")
    other.write_text("z = 1\n")
    os.utime(source, (later, later))
    parse(source, tmp_path / "user")
    parse(other, tmp_path / "user")
    assert (pickles(completion.CACHE), pickles(tmp_path / "user")) == (1, 2)


def test_without_a_cache_in_the_image_parso_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "CACHE", tmp_path / "none")
    before = parso.cache._load_from_file_system  # type: ignore[attr-defined]
    completion.adapt(parso.cache)
    assert parso.cache._load_from_file_system is before  # type: ignore[attr-defined]


def test_a_cache_that_cannot_be_read_is_no_error(tmp_path: Path, parso_cache: ModuleType) -> None:
    del parso_cache
    source = tmp_path / "source.py"
    source.write_text("x = 1\n")
    completion.CACHE.rmdir()
    completion.CACHE.touch()
    parse(source, tmp_path / "user")
    assert pickles(tmp_path / "user") == 1


def test_the_warm_up_leaves_what_completions_need_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parso.cache, "parser_cache", {})
    monkeypatch.setattr(jedi.settings, "cache_directory", str(tmp_path))
    assert [*completion.warm_up()]
    parsed = {Path(path).name for modules in parso.cache.parser_cache.values() for path in modules if path}
    assert {"builtins.pyi", "os.py"} <= parsed


def test_the_warm_up_asks_for_what_ipython_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Found:
        def __init__(self, source: str) -> None:
            self.source = source

        @property
        def type(self) -> str:
            asked.append(self.source)
            return "function"

    def interpreter(source: str, _: object) -> SimpleNamespace:
        return SimpleNamespace(complete=lambda: [Found(source)])

    monkeypatch.setattr(jedi, "Interpreter", interpreter)
    assert [*completion.warm_up()]
    assert asked[: len(completion._COMPLETED[""])] == [*completion._COMPLETED[""]]


LEFT = """
import os, sys
from kernel_image import completion
def open_now():
    files = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) != listing]
    return sorted(files), len(os.listdir("/proc/self/task"))
import jedi
listing = os.open("/", os.O_RDONLY)
os.close(listing)
before = open_now()
assert [*completion.warm_up()]
assert open_now() == before, (before, open_now())
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nothing is left")
"""


def test_the_warm_up_leaves_no_thread_process_or_file_which_forks_would_inherit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEFT]
    done = subprocess.run(
        command, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("nothing is left\n", 0), done.stderr


def test_where_there_is_no_jedi_nothing_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jedi", None)
    assert [*completion.warm_up()] == []
