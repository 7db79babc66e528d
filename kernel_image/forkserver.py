"""The fork server: a pristine process with everything imported, from which kernels are forked in milliseconds.

It runs no user code and starts no thread. For each kernel it reads one JSON line from the socket on its standard input
and answers with the kernel's process id. The kernel is forked twice, so that it becomes a child of the supervisor.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.util
import os
import random
import signal
import site
import socket
import subprocess
import sys
import time
import warnings
from typing import Any, NoReturn

from kernel_image import event_loop, hardening, import_hooks, kernel_streams, shell_commands

KERNEL_MODULES = (
    "ipykernel.debugger",
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.core.completer",
    "IPython.core.interactiveshell",
    "kernel_image.json_packer",
    "kernel_image.kernel_streams",
    "kernel_image.python_kernel",
    "uuid",
)
"""What every kernel imports anyway."""

OOM_SCORE_ADJUSTMENT = 1000
"""When memory runs out, the kernel and its children go before the supervisor and the fork server, which have 500.

The largest there is; see proc(5), /proc/pid/oom_score_adj.
"""

_SCRIPT_NAME = "main.py"
"""What `sys.argv` says: parsers of arguments show it, and scripts look for files beside it."""

SEND_QUEUE_MESSAGES = 8
"""How much the kernel may publish before it waits; some messages have 16 MB. See ZMQ_SNDHWM in zmq_setsockopt(3)."""


def _preload(modules: list[str]) -> dict[str, str]:
    """Import `modules`; returns why those failed that could not be imported."""
    failed = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever an import of the operator's choosing raises
            failed[module] = f"{type(error).__name__}: {error}"
    return failed


def _preload_kernel() -> None:
    """Import what every kernel needs, but not debugpy: a fifth of all imports, for one button in JupyterLab.

    Without it `ipykernel.debugger` has no debugger, and kernels do not claim one. Users can still import it themselves.
    """
    # An import statement then behaves as if it were not installed.
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    _preload([*KERNEL_MODULES])  # some of them are optional; without the others the kernel itself fails
    del sys.modules["debugpy"]


def _reseed() -> None:
    """Give the kernel random numbers of its own: not every generator reseeds itself after a fork."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()


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
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(str(OOM_SCORE_ADJUSTMENT))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 2)  # standard error so far is the sandbox's log, which is not for code to write to
    os.close(null)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _become_child_of(supervisor, between)
    os.chdir(request["work_dir"])
    os.environ[kernel_streams.RING_VARIABLE] = request["ring"]
    with contextlib.suppress(OSError):
        if os.path.isdir(user_site := site.getusersitepackages()):  # noqa: PTH112 - the fork server runs isolated
            site.addsitedir(user_site)
    _reseed()


def _put_working_directory_on_path() -> None:
    """Let users import modules from the working directory, behind the standard library, as IPython does."""
    if "" not in sys.path:
        places = [index for index, path in enumerate(sys.path) if path.endswith(("site-packages", "dist-packages"))]
        sys.path.insert(places[0] if places else 0, "")


class _Unkept(dict[int, list[Any]]):
    """Replaces the outputs that IPython 9 keeps for `%notebook`: it keeps all, so that printing fills the memory."""

    def __missing__(self, execution_count: int) -> list[Any]:
        return []


def _worker_flags() -> list[str]:
    """The interpreter's flags for multiprocessing's workers, which are not isolated as the fork server is."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001
    return [flag for flag in flags if flag != "-I"]


def _prepare_multiprocessing() -> None:
    """Give the kernel a key and a directory of its own: the module has noted the fork server's."""
    multiprocessing.current_process().authkey = os.urandom(32)
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined] # noqa: PTH109
    multiprocessing.util._args_from_interpreter_flags = _worker_flags  # type: ignore[attr-defined] # noqa: SLF001


def _run_kernel(connection_file: str) -> None:
    """Run ipykernel until it ends, as `python -m ipykernel_launcher -f <connection_file>` would."""
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - imported before the fork, by _preload
    from traitlets.config import Config  # noqa: PLC0415

    sys.argv = [_SCRIPT_NAME]
    event_loop.install()
    os.system = shell_commands.system
    _prepare_multiprocessing()
    config = Config()
    config.IPKernelApp.connection_file = connection_file
    config.IPKernelApp.kernel_class = "kernel_image.python_kernel.PythonKernel"
    config.IPKernelApp.outstream_class = "kernel_image.kernel_streams.KernelStream"
    config.Session.packer = "kernel_image.json_packer.pack"
    # The history database would be written on the way to every answer, and nobody can read it afterwards.
    config.HistoryManager.hist_file = ":memory:"

    class KernelApp(IPKernelApp):  # type: ignore[misc]
        """Bounds the iopub queue before the socket listens: accepted connections keep the bound of that moment."""

        def init_iopub(self, context: Any) -> None:
            context.sndhwm = SEND_QUEUE_MESSAGES
            super().init_iopub(context)

    app = KernelApp.instance(config=config)
    app.initialize([])
    app.shell.history_manager.outputs = _Unkept()
    _put_working_directory_on_path()
    os.environ.pop(kernel_streams.RING_VARIABLE, None)
    # Wait, rather than drop messages, when the supervisor reads more slowly than the kernel writes (zmq_setsockopt(3)).
    import zmq  # noqa: PLC0415

    app.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
    if "matplotlib.pyplot" in sys.modules:
        # It looked for a shell to show figures in when it was imported, and there was none yet.
        app.shell.enable_matplotlib("inline")
    # IPython's advice on `sys.exit()`, which only makes sense at a prompt.
    warnings.filterwarnings("ignore", message="To exit: use", category=UserWarning)
    app.start()


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
            _run_kernel(request["connection_file"])
            sys.stdout.flush()
            sys.stderr.flush()
            status = 0
            sys.exit(0)
    finally:
        os._exit(status)


def main() -> None:
    """Serve until the supervisor closes the socket."""
    hardening.forbid_tracing()
    supervisor = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    channel = socket.socket(fileno=0)
    lines = channel.makefile("rw", encoding="utf-8", newline="\n")
    import_hooks.install()
    _preload_kernel()
    failed = _preload(sys.argv[1:])
    gc.collect()
    gc.freeze()
    print(json.dumps({"ready": True, "failed": failed}), file=lines, flush=True)
    for line in lines:
        print(json.dumps({"pid": _fork_kernel(json.loads(line), supervisor)}), file=lines, flush=True)


if __name__ == "__main__":
    main()
