"""A fork server that does not do its part is replaced: it has the uid of user code, which can stop or kill it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from kernel_image import kernel_process
from kernel_image.kernel_process import ForkServer


@pytest.fixture
async def server(short_dir: Path) -> AsyncIterator[ForkServer]:
    server = ForkServer((), dict(os.environ, HOME=str(short_dir)), str(short_dir))
    yield server
    pid = server.pid
    server.stop()
    if pid is not None:
        reap(pid)


def reap(pid: int) -> int:
    """How it ended: an exit code, or minus the number of the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children()}


async def fork(server: ForkServer, directory: Path) -> int:
    """Fork a kernel, which ends at once. Returns the fork server's process id."""
    forked = await asyncio.wait_for(server.fork(directory / "k.json", directory / "ring"), 60)
    assert forked > 0
    assert server.pid is not None
    return server.pid


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_fork_server_that_does_not_answer_is_started_anew(
    server: ForkServer, short_dir: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    first = await fork(server, short_dir)
    monkeypatch.setattr(kernel_process, "_FORK_TIMEOUT_S", 2.0)
    os.kill(first, number)
    second = await fork(server, short_dir)
    assert second != first
    assert reap(first) == -signal.SIGKILL
    assert await fork(server, short_dir) == second


async def test_a_fork_server_that_never_comes_up_is_given_up_after_the_second_time(
    server: ForkServer, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_process, "_START_TIMEOUT_S", 0.01)
    before = children()
    with pytest.raises(TimeoutError):
        await fork(server, short_dir)
    assert server.pid is None
    assert [reap(pid) for pid in children() - before] == [-signal.SIGKILL] * 2


async def test_a_kernel_that_does_not_come_to_its_supervisor_ends(server: ForkServer, short_dir: Path) -> None:
    """This process is no reaper of orphans, so the kernel falls to another, as when its supervisor has been killed."""
    kernel = await asyncio.wait_for(server.fork(short_dir / "k.json", short_dir / "ring"), 60)
    async with asyncio.timeout(10):
        while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)
