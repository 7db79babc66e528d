"""Killing all that a dead kernel has left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from kernel_image import accounting, kernel_process

SPARED = 7

WITHOUT_MAIN_THREAD = """
import ctypes, os, threading, time
from kernel_image import accounting, hardening, kernel_process
hardening.adopt_orphans()
alive, held = os.pipe()
if os.fork() == 0:
    os.close(alive)
    threading.Thread(target=time.sleep, args=(60,)).start()
    libc = ctypes.CDLL(None)
    libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long)
    libc.syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit(2) of this thread alone
os.close(held)
while not any(accounting.stat_fields(pid)[0] == "Z" for pid in accounting.descendants(os.getpid())):
    time.sleep(0.01)
print(kernel_process.kill_all_but(), os.read(alive, 1))
"""


def test_a_process_whose_main_thread_has_ended_is_killed() -> None:
    """It looks like one that waits to be reaped. Its other threads hold the pipe open as long as they run."""
    command = [sys.executable, "-I", "-c", WITHOUT_MAIN_THREAD]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30)
    assert done.stdout == "True b''\n"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What PID 1 sends, which sees no process in /proc."""
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    monkeypatch.setattr(accounting, "descendants", lambda _root: [])
    return signals


def test_the_first_process_kills_what_it_cannot_see(sent: list[tuple[int, int]]) -> None:
    assert kernel_process.kill_all_but(None)
    assert sent == [(-1, signal.SIGKILL)]


def test_what_is_spared_is_stopped_for_a_moment_only(sent: list[tuple[int, int]]) -> None:
    assert kernel_process.kill_all_but(SPARED, None)
    assert sent == [(-1, signal.SIGSTOP), (-1, signal.SIGCONT)]


def test_other_processes_signal_their_descendants_alone(
    sent: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 2)
    assert kernel_process.kill_all_but()
    assert not sent
