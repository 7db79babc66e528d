"""What the image does to libraries as they are imported, without the libraries."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kernel_image import fonts, import_hooks, offline_pip


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hooks in this process, and everything as it was afterwards."""
    for name in ("cpu_count", "process_cpu_count", "sched_getaffinity"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, getattr(os, name))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


STOOD_IN_FOR = """
SimHei; simsun; Microsoft YaHei; Microsoft JhengHei; PingFang SC; Heiti TC; STHeiti; STSong;
KaiTi; FangSong; DengXian; Arial Unicode MS; WenQuanYi Zen Hei; Noto Sans CJK SC;
Noto Serif CJK JP; Noto Sans SC; Noto Sans Mono CJK KR; Source Han Sans CN; Hiragino Sans;
MS Gothic; Yu Mincho; Meiryo; IPAexGothic; TakaoPGothic; Malgun Gothic; NanumGothic;
AppleGothic; Apple SD Gothic Neo; Batang; 微软雅黑; 黑体; SimHei.ttf
"""


@pytest.mark.parametrize("name", [name.strip() for name in STOOD_IN_FOR.split(";")])
def test_names_of_fonts_that_ours_stands_in_for(name: str) -> None:
    assert fonts._KNOWN.fullmatch(fonts._FONT_FILE.sub("", name))


@pytest.mark.parametrize(
    "name", ["Arial", "Times New Roman", "Noto Sans", "Century Gothic", "Comic Sans MS", "MS Reference Sans Serif", ""]
)
def test_other_fonts_are_left_to_matplotlib(name: str) -> None:
    assert fonts._KNOWN.fullmatch(name) is None


@pytest.mark.usefixtures("hooks")
def test_the_count_of_processors_is_what_the_sandbox_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(import_hooks.CPU_COUNT_VARIABLE, "3")
    import_hooks.install()
    assert os.cpu_count() == 3
    process = type("Process", (), {"cpu_affinity": lambda _, cpus=None: None if cpus else [7, 5, 6, 4]})
    library: Any = SimpleNamespace(cpu_count=lambda logical=True: 8 if logical else None, Process=process)
    import_hooks.adapt(library)
    assert (library.cpu_count(), library.cpu_count(logical=False)) == (3, None)
    assert (library.Process().cpu_affinity(), library.Process().cpu_affinity([1])) == ([4, 5, 6], None)


@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize(("value", "told"), [("1", {4}), ("2", {4, 9}), ("64", {4, 9, 10})])
def test_the_processors_of_a_process_are_as_many_as_the_sandbox_may_use(
    monkeypatch: pytest.MonkeyPatch, value: str, told: set[int]
) -> None:
    monkeypatch.setenv(import_hooks.CPU_COUNT_VARIABLE, value)
    monkeypatch.setattr(
        os, "cpu_count", lambda: int(value)
    )  # as Python itself reads the variable where it is not isolated
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {10, 9, 4})
    import_hooks.install()
    import_hooks.install()
    assert os.sched_getaffinity(0) == told


@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize("value", ["", "0", "-1", "many", "default"])
def test_a_count_that_is_none_changes_nothing(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(import_hooks.CPU_COUNT_VARIABLE, value)
    before = os.cpu_count()
    import_hooks.install()
    assert os.cpu_count() == before


@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize("content", ["adapted = False", "raise ImportError('broken')"])
def test_a_library_is_adapted_once_it_is_imported_and_works_where_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    def adapt(module: ModuleType) -> None:
        module.adapted = True  # type: ignore[attr-defined]
        raise AttributeError("this version has none")

    adapter = ModuleType("kernel_image.hooked_adapter")
    adapter.adapt = adapt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    monkeypatch.setitem(import_hooks._ADAPTERS, "hooked_library", "hooked_adapter")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hooked_library.py").write_text(content)
    import_hooks.install()
    import_hooks.install()
    assert sum(type(finder) is import_hooks._Finder for finder in sys.meta_path) == 1
    if content.startswith("raise"):
        with pytest.raises(ImportError, match="broken"):
            __import__("hooked_library")
    else:
        assert __import__("hooked_library").adapted is True


def test_pip_asks_the_network_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    assert offline_pip.is_offline()
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    assert not offline_pip.is_offline()
