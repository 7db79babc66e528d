"""A supervisor that has got a kernel from outside: it alone goes on."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernel_image import kernel_process, zygote
from kernel_image.supervisor import Supervisor

FORK_SERVER, FORKED = 8, 9
ASKED = [("forget recent exits",), ("fork", 1)]


class Supervising:
    """What of a supervisor is asked for here. `steps` is what it does."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *, is_forked: bool) -> None:
        self.steps: list[tuple[object, ...]] = []
        self.is_forked = is_forked
        self._settings = SimpleNamespace(ipc_dir=str(directory))
        self._outside_forks = self
        self._fork_server = SimpleNamespace(pid=FORK_SERVER)
        self._started = 0
        self._next_fork: asyncio.Task[int] | None = None
        self._reaper = SimpleNamespace(forget_recent=lambda: self.steps.append(("forget recent exits",)))
        self.is_wanted = True
        monkeypatch.setattr(kernel_process, "kill_all_but", lambda *spared: self.steps.append(("kill", *spared)))

    async def fork(self, number: int) -> int:
        self.steps.append(("fork", number))
        if not self.is_forked:
            raise OSError("no kernel was forked")
        return FORKED

    def _connect(self, prefix: Path) -> None:
        self.steps.append(("connect", prefix.name))

    async def fork_outside(self) -> int | None:
        Supervisor._begin_fork(cast("Any", self))
        return await Supervisor._take_fork(cast("Any", self))


async def test_another_that_was_forked_for_it_is_killed_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervising(tmp_path, monkeypatch, is_forked=True)
    assert await supervisor.fork_outside() == FORKED
    assert supervisor.steps == [*ASKED, ("kill", FORKED, FORK_SERVER), ("connect", f"z{FORKED}")]


async def test_one_that_comes_too_late_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervising(tmp_path, monkeypatch, is_forked=False)
    assert await supervisor.fork_outside() is None
    assert supervisor.steps == [*ASKED, ("kill", FORK_SERVER)]


async def test_one_that_was_asked_for_while_its_predecessor_was_cleaned_up_after_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervising(tmp_path, monkeypatch, is_forked=True)
    Supervisor._begin_fork(cast("Any", supervisor))
    await asyncio.sleep(0)
    assert supervisor.steps == ASKED
    supervisor._started += 1
    assert await supervisor.fork_outside() == FORKED
    assert supervisor.steps[len(ASKED) :] == [("kill", FORKED, FORK_SERVER), ("connect", f"z{FORKED}")]
    assert supervisor._next_fork is None


async def test_none_is_asked_for_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervising(tmp_path, monkeypatch, is_forked=True)
    supervisor.is_wanted = False
    assert await supervisor.fork_outside() is None
    assert supervisor.steps == []


def test_of_two_that_wait_the_one_that_is_meant_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for a file that has its own process id."""
    monkeypatch.setattr(zygote, "_START_TIMEOUT_S", 60.0)
    settings = SimpleNamespace(ipc_dir=str(tmp_path))
    waiting = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            zygote._wait_for(zygote._connection_file(cast("Any", settings)))
            os._exit(7)
        waiting.append(pid)
    meant, other = waiting
    try:
        (tmp_path / f"z{meant}.json").write_text(json.dumps({}))
        assert os.waitstatus_to_exitcode(os.waitpid(meant, 0)[1]) == 7
        assert os.waitpid(other, os.WNOHANG) == (0, 0)
    finally:
        os.kill(other, 9)
        os.waitpid(other, 0)
