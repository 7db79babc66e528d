"""The template: a process of the process engine with everything imported, of which supervisors are forked.

It is for one gateway, which asks over the socket on its standard input: one message, one answer. It ends when that is
closed, and what it has forked goes on. It never reads what supervisors are told, since kernels would have that in their
memory: a supervisor reads it from a pipe of its own, after the fork of its fork server.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from kernel_image import forkserver, hardening, kernel_program, protocol, supervisor
from kernel_image.kernel_process import ForkedServer

_MAX_REQUEST_BYTES = 4096
_FILES = 2


def serve(channel: socket.socket) -> None:
    """Say which process this is, then answer until the gateway closes its end."""
    channel.send(json.dumps({"pid": os.getpid()}).encode())
    while True:
        message, files, _, _ = socket.recv_fds(channel, _MAX_REQUEST_BYTES, _FILES)
        if not message:
            return
        request = json.loads(message)
        try:
            answer = _fork(request, channel, *files) if files else _status_of(request["pid"])
        except OSError as error:
            answer = {"errno": error.errno, "error": error.strerror}
        for file in files:
            os.close(file)
        channel.send(json.dumps(answer).encode())


def _status_of(pid: int) -> dict[str, Any]:
    """What waitpid says of a supervisor; None while it runs. Raises ChildProcessError when it was no child."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return {"status": status if ended else None}


def _fork(request: dict[str, Any], channel: socket.socket, told: int, log: int) -> dict[str, Any]:
    """Fork a supervisor; returns its process id. Does not return in the supervisor."""
    if (pid := os.fork()) == 0:
        try:
            channel.close()
            _become_supervisor(request["home"], told, log)
        except BaseException:  # noqa: BLE001 - as the interpreter would
            traceback.print_exc()
            os._exit(1)
    return {"pid": pid}


def _become_supervisor(home: str, told: int, log: int) -> NoReturn:
    os.setsid()
    os.umask(0o077)
    _weigh_alike()
    null = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((null, log, log)):
        os.dup2(file, number)
    # The engine knows processes whose supervisor has died by their HOME, as /proc shows it.
    hardening.write_over("HOME", home)
    for file in {null, log} - {0, 1, 2}:
        os.close(file)
    fork_server = _fork_fork_server(told)
    with os.fdopen(told, encoding="utf-8") as content:
        text = content.read()
    if not text:  # the gateway has ended, or has had another one forked in place of this
        os._exit(1)
    told_at_launch = json.loads(text)
    # Python has set it at its start where the environment names no locale, and would do so again: PEP 538.
    coerced = {name: os.environ[name] for name in ("LC_CTYPE",) if name in os.environ}
    os.environ.clear()
    os.environ.update({**coerced, **told_at_launch["environment"]})
    supervisor.supervise(protocol.SupervisorSettings.from_json(told_at_launch["settings"]), fork_server)
    sys.stderr.flush()
    os._exit(0)


def _weigh_alike() -> None:
    """Give this process session the template's niceness, which counts where the system groups by session: sched(7)."""
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)), "ascii")


def _fork_fork_server(told: int) -> ForkedServer:
    """Fork this supervisor's fork server, which waits until it is needed."""
    own = os.getpid()
    ours, theirs = socket.socketpair()
    if (pid := os.fork()) == 0:
        os.close(told)
        ours.close()
        forkserver.serve_when_asked(theirs, own)
        os._exit(0)
    theirs.close()
    return ForkedServer(pid, ours)


def _close_inherited() -> None:
    """Close what the gateway was started with; it is not for kernels."""
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - names are all that is wanted
        if number > 2:  # noqa: PLR2004 - standard error
            with suppress(OSError):  # the listing's own is closed by now
                os.close(number)


def main() -> None:
    """Import, and serve."""
    _close_inherited()
    gc.disable()
    kernel_program.import_all([])
    gc.freeze()
    gc.enable()
    serve(socket.socket(fileno=0))


if __name__ == "__main__":
    main()
