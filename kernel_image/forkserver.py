"""The fork server: a pristine process with everything imported, from which kernels are forked in milliseconds.

A sandbox has its own where there is no zygote outside (zygote.py), whose kernels cost less. It runs no user code and
starts no thread. For each kernel it reads one JSON line from the socket on its standard input and answers with the
kernel's process id. The kernel is forked twice, so that it becomes a child of the supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import site
import socket
import sys
import sysconfig
import time
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from kernel_image import hardening, kernel_program


def _become_child_of(supervisor: int, between: int) -> None:
    """Wait until the process in between has ended and the supervisor is the parent; then end with it.

    A kernel whose supervisor has ended meanwhile is adopted by another process, and exits.
    """
    while os.getppid() == between:
        time.sleep(0.0005)
    hardening.die_with_parent()
    if os.getppid() != supervisor:
        os._exit(1)


def _prepare(request: dict[str, Any], supervisor: int, between: int) -> None:
    """Replace the fork server's signals, files and limits by the kernel's, in the forked process."""
    os.setsid()
    hardening.allow_tracing()
    hardening.offer_to_oom_killer()
    kernel_program.close_standard_streams()
    _become_child_of(supervisor, between)
    kernel_program.settle(request["work_dir"], request["ring"])


def _fork_kernel(request: dict[str, Any], supervisor: int) -> int:
    """Fork a kernel; returns its process id. Does not return in the kernel."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        _fork_again(request, supervisor, writer)
    os.close(writer)
    os.waitpid(between, 0)
    with os.fdopen(reader, "rb") as file:
        return int(file.read() or b"0")


def _fork_again(request: dict[str, Any], supervisor: int, writer: int) -> NoReturn:
    """Fork the kernel itself, report its process id, and end; the supervisor adopts the kernel then."""
    status = 1
    between = os.getpid()
    try:
        kernel = os.fork()
        if kernel:
            os.write(writer, str(kernel).encode())
            status = 0
        else:
            os.close(writer)
            _prepare(request, supervisor, between)
            kernel_program.run_kernel(request["connection_file"])
            sys.stdout.flush()
            sys.stderr.flush()
            status = 0
            sys.exit(0)
    finally:
        os._exit(status)


def serve_when_asked(channel: socket.socket, supervisor: int) -> None:
    """Be the fork server in a fork of a process that has made the imports, until the supervisor closes the socket.

    Its first line is the request for it: {"environment", "preload"}.
    """
    os.setsid()
    os.dup2(channel.fileno(), 0)
    channel.close()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    os.chdir("/")
    hardening.forbid_tracing()
    lines = socket.socket(fileno=0).makefile("rw", encoding="utf-8", newline="\n")
    if line := lines.readline():
        request = json.loads(line)
        os.environ.clear()
        os.environ.update(request["environment"])
        _forget_home()
        _serve(lines, supervisor, request["preload"])


def _forget_home() -> None:
    """Have libraries look for the user's directory again: it was another one when they were imported."""
    site.USER_BASE = site.USER_SITE = None
    sysconfig.get_config_vars()["userbase"] = site.getuserbase()


def _serve(lines: TextIO, supervisor: int, preload: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    failed = kernel_program.import_all([*preload])
    print(json.dumps({"ready": True, "failed": failed}), file=lines, flush=True)
    for line in lines:
        print(json.dumps({"pid": _fork_kernel(json.loads(line), supervisor)}), file=lines, flush=True)


def main() -> None:
    """Serve until the supervisor closes the socket."""
    hardening.forbid_tracing()
    _serve(socket.socket(fileno=0).makefile("rw", encoding="utf-8", newline="\n"), os.getppid(), sys.argv[1:])


if __name__ == "__main__":
    main()
