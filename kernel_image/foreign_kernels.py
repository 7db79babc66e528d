"""Kernels that are not ours: their kernelspecs, and the start of their processes. What they say is not known here.

Kernelspecs that come with us are in `kernelspecs/`; others are looked for where Jupyter looks. Beside Jupyter's own
fields, `metadata.cellblock` may have

- `transport`: `tcp` for a kernel that cannot listen on unix sockets;
- `set_up`: a file beside the kernelspec, with code that a new kernel runs silently before it is ready. It publishes
  through pipes: kernel_pipes.py;
- `functions`: an expression for what that code leaves: prepared_kernel.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kernel_image import hardening
from kernel_image.endpoints import Endpoints, tcp_endpoints, unix_endpoints
from kernel_image.kernel_pipes import MESSAGES_VARIABLE, KernelPipes

_OWN = Path(__file__).resolve().parent / "kernelspecs"


class Kernelspec(NamedTuple):
    """What is needed of a kernelspec. `set_up` and `functions` are code, empty where there is none."""

    argv: Sequence[str]
    env: Mapping[str, str]
    resource_dir: str
    interrupts_by_message: bool
    is_tcp: bool
    set_up: str
    functions: str

    def endpoints(self, prefix: Path) -> Endpoints:
        """Where its next kernel is to listen; unix sockets begin with `prefix`."""
        return tcp_endpoints() if self.is_tcp else unix_endpoints(prefix)


def find_kernelspec(name: str) -> Kernelspec:
    """Raises `jupyter_client.kernelspec.NoSuchKernel`."""
    directory = _OWN / name
    if not (directory / "kernel.json").is_file():
        # Imported here, since it takes as long as everything else in the supervisor together.
        from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415

        directory = Path(KernelSpecManager().get_kernel_spec(name).resource_dir)
    content = json.loads((directory / "kernel.json").read_text(encoding="utf-8"))
    ours = content.get("metadata", {}).get("cellblock", {})
    return Kernelspec(
        argv=content["argv"],
        env=content.get("env", {}),
        resource_dir=str(directory),
        interrupts_by_message=content.get("interrupt_mode") == "message",
        is_tcp=ours.get("transport") == "tcp",
        set_up=(directory / ours["set_up"]).read_text(encoding="utf-8") if "set_up" in ours else "",
        functions=ours.get("functions", ""),
    )


def spawn_kernel(
    spec: Kernelspec,
    connection_file: Path,
    environment: Mapping[str, str],
    work_dir: str,
    pipes: KernelPipes | None = None,
) -> int:
    """Start a kernel; returns its process id.

    Raises OSError when its program cannot be started, which says what to do if there is none.
    """
    values = {"{connection_file}": str(connection_file), "{resource_dir}": spec.resource_dir}
    beside_us = Path(sys.executable).parent / spec.argv[0]
    argv = [str(beside_us) if beside_us.is_file() else spec.argv[0], *spec.argv[1:]]
    for placeholder, value in values.items():
        argv = [argument.replace(placeholder, value) for argument in argv]
    # Without pipes it writes nowhere: the sandbox's log is not for code to write to.
    stdout, stderr, messages = (subprocess.DEVNULL, subprocess.DEVNULL, None) if pipes is None else pipes.write_ends
    try:
        process = subprocess.Popen(  # noqa: S603 - the kernelspec is the operator's
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=() if messages is None else (messages,),
            env={**environment, **spec.env, **({} if messages is None else {MESSAGES_VARIABLE: str(messages)})},
            cwd=work_dir,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise OSError(
            f"there is no program `{spec.argv[0]}`: install it where the kernels run, or leave the language out of "
            "`languages`"
        ) from error
    # The reaper collects it; Popen must not try to, and need not warn that it did not.
    process.returncode = 0
    if pipes is not None:
        pipes.close_write_ends()
    hardening.offer_to_oom_killer(process.pid)
    return process.pid
