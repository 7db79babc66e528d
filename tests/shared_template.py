"""The process engine's template, made once for all gateways and supervisors of a test process.

Its imports are most of what the start of a kernel costs. A gateway has a template of its own; that of a
test's gateway is forked of a process that has made the imports. test_provisioners.py has templates as they are.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from sessions.provisioners.process import provisioner
from sessions.provisioners.process.template import Template, weigh_less

VARIABLE = "TEST_TEMPLATE"
"""Tells a forked gateway the address."""

_HOME_BYTES = 1000
_PROGRAM = """
import os, select, signal, socket, sys
from kernel_image import kernel_program, template

listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listening.bind("\\0" + sys.argv[1])
listening.listen()
kernel_program.import_all([])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while listening in select.select([0, listening], [], [])[0]:
    channel, _ = listening.accept()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listening.close()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        template.serve(channel)
        os._exit(0)
    channel.close()
"""


@functools.cache
def address() -> str:
    """The abstract socket address (unix(7)) where templates are forked, by a process that ends with this one."""
    name = f"cellblock-template-{uuid4().hex}"
    passed = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TZ")}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**passed, "HOME": "/".ljust(_HOME_BYTES, "0"), "USER": "sandbox"},
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()

    atexit.register(end)
    return name


class SharedTemplate(Template):
    """A template that is forked at `where`, unless it is of another Python than the tests'."""

    where = ""
    weighs_less = True

    def _start(self, log: int) -> tuple[socket.socket, int]:
        if self._python != Path(sys.executable):
            return super()._start(log)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.connect(f"\0{self.where}")
        pid = int(json.loads(channel.recv(100, socket.MSG_PEEK))["pid"])
        if self.weighs_less:
            weigh_less(pid)
        return channel, pid


def use(where: str) -> None:
    """Have this process's provisioner use it."""
    SharedTemplate.where = where
    provisioner.Template = SharedTemplate  # type: ignore[misc]


@functools.cache
def own_template() -> SharedTemplate:
    """That of the supervisors which tests start without a gateway."""
    template = SharedTemplate(Path(sys.executable), {}, _HOME_BYTES)
    template.where, template.weighs_less = address(), False
    atexit.register(template.close)
    return template


class ForkedSupervisor:
    """A supervisor, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, environment: Mapping[str, str], settings: str, log: Path) -> None:
        self.pid = own_template().launch(environment, settings, log)
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        if self._exit_code is None and (status := own_template().wait(self.pid)) is not None:
            self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code

    def wait(self) -> int:
        while (exit_code := self.poll()) is None:
            time.sleep(0.01)
        return exit_code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
