"""Reading another process's filters, which stops it for a moment."""

from __future__ import annotations

import os
import select
import signal
import time

import pytest

from kernel_image import accounting, seccomp


def test_a_signal_that_comes_meanwhile_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    signal.signal(signal.SIGUSR1, lambda *_: os.write(writer, b"!"))
    child = os.fork()
    if child == 0:
        os.write(writer, b"?")
        while True:
            time.sleep(0.01)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    checked = seccomp.checked
    assert os.read(reader, 1) == b"?"

    def interrupted(result: int, what: str) -> int:
        if what == "PTRACE_SEIZE":
            os.kill(child, signal.SIGUSR1)
            while accounting.stat_fields(child)[0] != "t":
                time.sleep(0.001)
        return checked(result, what)

    monkeypatch.setattr(seccomp, "checked", interrupted)
    try:
        assert seccomp.filters_of(child, 0) == []
        assert select.select([reader], [], [], 30)[0]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
