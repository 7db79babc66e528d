"""A supervisor that has got a kernel from outside: it alone goes on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernel_image import kernel_process
from kernel_image.supervisor import Supervisor

FORK_SERVER, FORKED = 8, os.getpid()
ASKED = [("reap",), ("forget recent exits",), ("fork", 1)]


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
        self.forked = [FORKED]
        self._reaper = SimpleNamespace(
            reap=lambda: self.steps.append(("reap",)), forget_recent=lambda: self.steps.append(("forget recent exits",))
        )
        self.is_wanted = True
        monkeypatch.setattr(kernel_process, "kill_all_but", lambda *spared: self.steps.append(("kill", *spared)))

    async def fork(self, number: int) -> int:
        self.steps.append(("fork", number))
        if not self.is_forked:
            raise OSError("no kernel was forked")
        return self.forked.pop(0)

    def _connect(self, prefix: Path) -> None:
        self.steps.append(("connect", prefix.name))

    async def fork_outside(self) -> int | None:
        Supervisor._begin_fork(cast("Any", self))
        self._started += 1
        return await Supervisor._take_fork(cast("Any", self))


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


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
    assert await supervisor.fork_outside() == FORKED
    assert supervisor.steps[len(ASKED) :] == [("kill", FORKED, FORK_SERVER), ("connect", f"z{FORKED}")]
    assert supervisor._next_fork is None


async def test_another_is_asked_for_when_it_has_not_waited_for_the_end_of_a_long_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    supervisor = Supervising(tmp_path, monkeypatch, is_forked=True)
    supervisor.forked.insert(0, ended)
    assert await supervisor.fork_outside() == FORKED
    assert supervisor.steps == [*ASKED, ("fork", 1), ("kill", FORKED, FORK_SERVER), ("connect", f"z{FORKED}")]


async def test_none_is_asked_for_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervising(tmp_path, monkeypatch, is_forked=True)
    supervisor.is_wanted = False
    assert await supervisor.fork_outside() is None
    assert supervisor.steps == []


WAITING = """
import os, sys
from types import SimpleNamespace
from kernel_image import zygote
zygote._wait_for(zygote._connection_file(SimpleNamespace(ipc_dir=sys.argv[1])))
os._exit(7)
"""


def test_of_two_that_wait_the_one_that_is_meant_goes_on(tmp_path: Path) -> None:
    """Each waits for a file that has its own process id."""
    meant, other = (subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path)]) for _ in range(2))
    try:
        (tmp_path / f"z{meant.pid}.json").write_text(json.dumps({}))
        assert meant.wait(60) == 7
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


class Bereaved:
    """A supervisor whose kernel has ended. `steps` is what it does; `are_killed`, whether no process is left."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *, are_killed: bool = True) -> None:
        self.steps: list[str] = []
        self.directory = directory
        self._ring_path = directory / "ring"
        self._fork_server = SimpleNamespace(pid=None)
        self._stopping = asyncio.Event()
        self._meter = SimpleNamespace(read=lambda: SimpleNamespace(oom_kills=0))
        self._channels = self
        self._client_ids = SimpleNamespace(clear=lambda: None)
        self._forwarded = SimpleNamespace(kernel_ended=lambda: None)
        self._requests = SimpleNamespace(running=None, put_lost_output=lambda _: None, fail_all=self._fail_all)
        self._kill_cause, self._generation, self._oom_kills_before = "restart", 1, 0
        self._sent_bytes: dict[str, int] = {}

        def kill_all_but(*_: object) -> bool:
            self.steps.append("kill")
            return are_killed

        monkeypatch.setattr(kernel_process, "kill_all_but", kill_all_but)

    async def _fail_all(self, cause: str, **_: object) -> None:
        self.steps.append(f"fail all: {cause}")

    async def _drain(self, _: object) -> None:
        self.steps.append("drain")

    def _begin_fork(self) -> None:
        self.steps.append(f"fork beside {sorted(path.name for path in self.directory.iterdir())}")

    def _stop_accepting(self) -> None:
        """Nothing is sent."""

    _close_channels = _stop_accepting

    async def handle_death(self, *, is_last: bool = False) -> list[str]:
        end = kernel_process.Exit(None, 9)
        await Supervisor._handle_death(cast("Any", self), end, is_last=is_last)
        return self.steps


async def test_the_next_is_asked_for_when_nothing_of_the_code_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ring", "z12.json", "z12-1"):
        (tmp_path / name).touch()
    steps = await Bereaved(tmp_path, monkeypatch).handle_death()
    assert steps == ["kill", "fork beside ['ring']", "drain", "fail all: restart"]


@pytest.mark.parametrize(("are_killed", "is_last"), [(False, False), (True, True)])
async def test_none_is_asked_for_where_processes_are_left_or_none_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, are_killed: bool, is_last: bool
) -> None:
    steps = await Bereaved(tmp_path, monkeypatch, are_killed=are_killed).handle_death(is_last=is_last)
    assert steps == ["kill", "drain", "fail all: restart"]
