"""What a kernel process runs, whoever has forked it: the imports made beforehand, its own random numbers, ipykernel.

The fork server forks kernels inside their sandbox; the zygote forks them into it from outside.
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
import subprocess
import sys
import tempfile
import uuid
import warnings
from typing import Any

from kernel_image import event_loop, import_hooks, kernel_streams, shell_commands

KERNEL_MODULES = (
    "faulthandler",
    "ipykernel.debugger",
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.core.completer",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.debugger_backport",
    "IPython.core.interactiveshell",
    "IPython.core.magics.execution",
    "IPython.core.oinspect",
    "IPython.core.pylabtools",
    "IPython.extensions.storemagic",
    "kernel_image.bash_kernel",
    "kernel_image.json_packer",
    "kernel_image.kernel_streams",
    "kernel_image.python_kernel",
    "resource",
    "sqlite3",
    "tornado.platform.asyncio",
    "unicodedata",
    "uuid",
)
"""What every kernel imports anyway. A test says what a new version of IPython imports too."""

KERNEL_CLASSES = {"python3": "kernel_image.python_kernel.PythonKernel", "bash": "kernel_image.bash_kernel.BashKernel"}
"""By the name of the kernelspec that they stand for, which is in the connection file."""

_SCRIPT_NAME = "main.py"
"""What `sys.argv` says: parsers of arguments show it, and scripts look for files beside it."""

SEND_QUEUE_MESSAGES = 8
"""How much the kernel may publish before it waits; some messages have 16 MB. See ZMQ_SNDHWM in zmq_setsockopt(3)."""


def import_all(preloads: list[str]) -> dict[str, str]:
    """Import what every kernel needs, and `preloads`; returns why those failed that could not be imported.

    Kernels do not look for garbage in any of it.
    """
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    import_hooks.install()
    _import_kernel_modules()
    failed = _preload(preloads)
    if "matplotlib.pyplot" in sys.modules:
        _prepare_matplotlib()
    gc.collect()
    gc.freeze()
    return failed


def _preload(modules: list[str]) -> dict[str, str]:
    failed = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever an import of the operator's choosing raises
            failed[module] = f"{type(error).__name__}: {error}"
    return failed


def _import_kernel_modules() -> None:
    """Import what every kernel needs, but not debugpy: a fifth of all imports, for one button in JupyterLab.

    Without it `ipykernel.debugger` has no debugger, and kernels do not claim one. Users can still import it themselves.
    """
    # An import statement then behaves as if it were not installed.
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    _preload([*KERNEL_MODULES])  # some of them are optional; without the others the kernel itself fails
    del sys.modules["debugpy"]


def _prepare_matplotlib() -> None:
    """Import the backend that kernels use, and find those that come with packages: it reads the metadata of all."""
    from matplotlib.backends.registry import backend_registry  # noqa: PLC0415

    backend_registry.list_all()
    _preload(["matplotlib_inline.backend_inline"])


def close_standard_streams() -> None:
    """Read nothing and write nowhere: standard error so far is the sandbox's log, which is not for code to write to."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        if number != null:
            os.dup2(null, number)
    if null > 2:  # noqa: PLR2004 - standard error
        os.close(null)


def settle(work_dir: str, ring: str) -> None:
    """Make a forked process a kernel's: its signals, working directory, user packages and random numbers."""
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(work_dir)
    os.environ[kernel_streams.RING_VARIABLE] = ring
    with contextlib.suppress(OSError):
        if os.path.isdir(user_site := site.getusersitepackages()):  # noqa: PTH112 - the fork server runs isolated
            site.addsitedir(user_site)
    _reseed()


def _reseed() -> None:
    """Give the kernel random numbers and names of its own: not everything is made anew after a fork."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()
    tempfile._name_sequence = None  # type: ignore[attr-defined] # noqa: SLF001
    uuid._node = uuid._last_timestamp = None  # type: ignore[attr-defined] # noqa: SLF001


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


def _kernel_class(connection_file: str) -> str:
    with open(connection_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib need not stay imported in kernels
        return KERNEL_CLASSES[json.load(file).get("kernel_name") or "python3"]


def run_kernel(connection_file: str) -> None:
    """Run ipykernel until it ends, as `python -m ipykernel_launcher -f <connection_file>` would."""
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - imported before the fork, by preload
    from traitlets.config import Config  # noqa: PLC0415

    sys.argv = [_SCRIPT_NAME]
    event_loop.install()
    os.system = shell_commands.system
    _prepare_multiprocessing()
    config = Config()
    config.IPKernelApp.connection_file = connection_file
    config.IPKernelApp.kernel_class = _kernel_class(connection_file)
    config.IPKernelApp.outstream_class = "kernel_image.kernel_streams.KernelStream"
    config.Session.packer = "kernel_image.json_packer.pack"
    # The history database would be written on the way to every answer, and nobody can read it afterwards.
    config.HistoryManager.hist_file = ":memory:"

    class KernelApp(IPKernelApp):  # type: ignore[misc]
        """Bounds the iopub queue before the socket listens: accepted connections keep the bound of that moment."""

        def init_iopub(self, context: Any) -> None:
            context.sndhwm = SEND_QUEUE_MESSAGES
            super().init_iopub(context)

        def parse_command_line(self, argv: Any = None) -> None:
            """Parse nothing: there is no command line, and to make a parser of all options is a tenth of the start."""

    app = KernelApp.instance(config=config)
    app.initialize([])
    if app.shell is not None:
        app.shell.history_manager.outputs = _Unkept()
        _put_working_directory_on_path()
    os.environ.pop(kernel_streams.RING_VARIABLE, None)
    # Wait, rather than drop messages, when the supervisor reads more slowly than the kernel writes (zmq_setsockopt(3)).
    import zmq  # noqa: PLC0415

    app.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
    if app.shell is not None and "matplotlib.pyplot" in sys.modules:
        # It looked for a shell to show figures in when it was imported, and there was none yet.
        app.shell.enable_matplotlib("inline")
    # IPython's advice on `sys.exit()`, which only makes sense at a prompt.
    warnings.filterwarnings("ignore", message="To exit: use", category=UserWarning)
    app.start()
