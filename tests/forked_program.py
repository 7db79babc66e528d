"""Programs of ours, forked from a process that has imported what they need.

Imports are half of what the start of a gateway costs. Tests that are about the start itself run `python -m gateway`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path

import shared_template

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        "gateway.cli.commands",
        "gateway.app",
        "sessions.provisioners.docker.provisioner",
        "psycopg2",
        # Typer imports it when it reads the command line, and with it pydantic, which is here for the clients.
        "typer._adapters",
    ]
)
_LOCK = threading.Lock()
"""Exit codes are read once. `multiprocessing` looks for those of all processes when it starts another one."""


class ForkedProgram:
    """`python -m <module> <arguments>`, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self, module: str, *arguments: str, env: Mapping[str, str], cwd: Path, stdout: Path, stderr: Path
    ) -> None:
        files = (str(stdout), str(stderr))
        env = {**env, shared_template.VARIABLE: shared_template.address()}
        self._process = _FORKING.Process(target=_run, args=(module, arguments, env, str(cwd), files))
        with _LOCK:
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        with _LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        exit_code = self.poll()
        if exit_code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return exit_code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(module: str, arguments: tuple[str, ...], env: Mapping[str, str], cwd: str, files: tuple[str, str]) -> None:
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(cwd)
    # A collection would write to all of what was imported, and so copy it into this process.
    gc.freeze()
    os.environ.clear()
    os.environ.update(env)
    shared_template.use(os.environ.pop(shared_template.VARIABLE))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
