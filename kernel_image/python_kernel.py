"""The Python kernel: ipykernel's, made to behave like a script where scripts and notebooks differ.

Whatever the code does to its surroundings, each request is answered, and the next one finds them as they were.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.jsonutil import json_clean
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.autocall import ZMQExitAutocall
from IPython.core.error import StdinNotImplementedError as IPythonStdinNotImplementedError
from IPython.utils.text import LSString, SList
from traitlets import Type

from kernel_image import child_environment, deep_tracebacks, figures, run_environment, shell_commands
from kernel_image.kernel_streams import RING_VARIABLE
from kernel_image.run_environment import RunEnvironment
from kernel_image.standard_streams import StandardStreams, open_copy_of_standard
from kernel_image.unclosed_files import FileId, flush_unclosed_files

_FALLBACK_FRAMES = 100
_SUCCESS_TEXTS = ("", "0", "None")
"""What a SystemExit that means success says."""


def name_of(error: BaseException) -> str:
    """The name of an exception's class, whatever its metaclass says."""
    return str(type.__dict__["__name__"].__get__(type(error)))


def text_of(error: BaseException) -> str:
    """What an exception says, whatever its `__str__` does. A SystemExit of 0 says so, and no other does."""
    try:
        if isinstance(error, SystemExit):
            return _exit_text(error.code)
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - `__str__` is the user's
        return f"<unprintable {name_of(error)} object>"


def _exit_text(code: object) -> str:
    if code is None:
        return ""
    if isinstance(code, int):
        return str(int(code))
    text = str(code)
    return repr(text) if text in _SUCCESS_TEXTS else text


def _exit_status(error: BaseException | None) -> int:
    """The exit status of a process that ends with this exception, as the interpreter has it."""
    code = error.code if isinstance(error, SystemExit) else error
    return code & 0xFF if isinstance(code, int) else int(code is not None)


class _Exit(ZMQExitAutocall):  # type: ignore[misc]
    """`exit` and `quit`: they end the run as `sys.exit` does."""

    def __call__(self, code: object = None, keep_kernel: object = None) -> None:  # noqa: ARG002 - Jupyter's argument
        raise SystemExit(code)

    def __repr__(self) -> str:
        return "Use exit() or quit() to end the run."


class StdinNotImplementedError(IPythonStdinNotImplementedError, EOFError):  # type: ignore[misc]
    """Nobody can be asked for input. Scripts know this as the end of standard input."""


class PythonShell(ZMQInteractiveShell):  # type: ignore[misc]
    """IPython's shell.

    Its own state: the process that it belongs to, the standard streams, what the last cell raised, and what was shown.
    """

    def __init__(self, **options: Any) -> None:
        self._pid = os.getpid()
        self.last_error: BaseException | None = None
        self.last_shown: BaseException | None = None
        self.streams = StandardStreams()
        super().__init__(exiter=_Exit(), **options)
        for name in ("exit", "quit"):
            self.builtin_trap.auto_builtins[name] = self.exiter
            self.register_magic_function(self._exit_magic, "line", name)
        # Among the builtins, the namespace stays without it: multiprocessing would look for such a file.
        self.builtin_trap.auto_builtins["__file__"] = os.path.abspath(sys.argv[0])  # noqa: PTH100 - a text

    def init_traceback_handlers(self, custom_exceptions: Any) -> None:
        """Make what formats tracebacks, which endless recursions do not keep busy."""
        super().init_traceback_handlers(custom_exceptions)
        deep_tracebacks.shorten(self.InteractiveTB)

    def init_environment(self) -> None:
        """Set what child processes inherit."""
        child_environment.prepare()

    def init_user_ns(self) -> None:
        """Fill the user's namespace, with an `open` that may open standard streams."""
        super().init_user_ns()
        self.user_ns["open"] = open_copy_of_standard

    def enable_matplotlib(self, gui: Any = None) -> Any:
        """Choose a backend, as `%matplotlib` does: the inline one where nobody would see figures with the other."""
        return super().enable_matplotlib(gui if figures.is_available(gui) else "inline")

    def _exit_magic(self, line: str) -> None:
        """End the run, with an exit code or a message."""
        text = line.strip()
        raise SystemExit(int(text) if text.isdecimal() else text or None)

    def system_piped(self, cmd: str) -> None:
        """Run a shell command, as `!cmd` does."""
        self._keep_exit_code(shell_commands.run(self.var_expand(cmd, depth=1)), cmd)

    system = system_piped

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:  # noqa: FBT001, FBT002 - IPython's
        """The output of a shell command, as `x = !cmd` asks for it."""
        status, output = shell_commands.capture(self.var_expand(cmd, depth=depth + 1))
        self._keep_exit_code(status, cmd)
        return SList(output.splitlines()) if split else LSString(output)

    def _keep_exit_code(self, status: int, command: str) -> None:
        self.user_ns["_exit_code"] = status
        if self.system_raise_on_error and status != 0:
            raise subprocess.CalledProcessError(status, command)

    def run_cell_magic(self, *arguments: Any, **options: Any) -> Any:
        """Run a cell magic. An interrupt of `%%bash` and its like is one of the code."""
        try:
            return super().run_cell_magic(*arguments, **options)
        except subprocess.CalledProcessError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise

    def run_cell(self, *arguments: Any, **options: Any) -> Any:
        """Run a cell, and keep what it raised."""
        return self._keep_error(super().run_cell(*arguments, **options))

    async def run_cell_async(self, *arguments: Any, **options: Any) -> Any:
        """Run a cell that awaits something at the top level, and keep what it raised."""
        return self._keep_error(await super().run_cell_async(*arguments, **options))

    async def run_code(self, *arguments: Any, **options: Any) -> Any:
        """Run a part of a cell. IPython cannot go on without standard streams."""
        try:
            return await super().run_code(*arguments, **options)
        finally:
            self.streams.put_back_missing()

    def _keep_error(self, result: Any) -> Any:
        self.last_error = result.error_before_exec or result.error_in_exec
        return result

    def _format_exception_for_storage(self, *_: Any) -> dict[str, Any]:
        """Nothing, for a history that nobody reads."""
        return {}

    def showtraceback(self, *arguments: Any, **options: Any) -> None:
        """Send the exception; the plain words when its own methods keep IPython from it."""
        error = sys.exc_info()[1]
        try:
            super().showtraceback(*arguments, **options)
        except BaseException as failure:  # noqa: BLE001 - methods of the user's classes
            shown = error or failure
            text = f"{name_of(shown)}: {text_of(shown)}"
            lines = traceback.format_tb(shown.__traceback__, -_FALLBACK_FRAMES) if shown.__traceback__ else []
            self._showtraceback(type(shown), shown, [*lines, text])

    def _showtraceback(self, _: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        if os.getpid() != self._pid:  # a forked child: what it raises is no concern of the run's
            if not (isinstance(evalue, SystemExit) and isinstance(evalue.code, int | None)):
                traceback.print_exception(evalue)
            return
        self.last_shown = evalue
        readable = _Readable.made_of(evalue)
        with self.streams.own():  # they are flushed first
            super()._showtraceback(type(readable), readable, [str(line) for line in stb])


class _Readable(Exception):
    """Stands for an exception where only its name and its text are asked for."""

    @staticmethod
    def made_of(error: BaseException) -> BaseException:
        kind: type[BaseException] = type(name_of(error), (_Readable,), {})
        return kind(text_of(error))


class PythonKernel(IPythonKernel):  # type: ignore[misc]
    """ipykernel's kernel.

    Its own state: the process that it runs in, which file is its output ring, and the environment of the run at work.
    """

    shell_class = Type(PythonShell)

    def __init__(self, **options: Any) -> None:
        self._pid = os.getpid()
        self._ring = _file_id(os.environ.get(RING_VARIABLE))
        self._run_environment = RunEnvironment()
        super().__init__(**options)

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        """Note the request that is handled now."""
        if channel == "shell" and self.shell is not None:
            self.shell.streams.put_back_missing()
        super().set_parent(ident, parent, channel)

    async def dispatch_shell(self, *arguments: Any, concurrent: bool = False, **options: Any) -> None:
        """Handle a request, and say when it is done; ipykernel does not for a widget's while the code awaits something.

        Front ends wait for that before they send a widget's next change, and the gateway counts what is unanswered.
        """
        await super().dispatch_shell(*arguments, concurrent=concurrent, **options)
        if concurrent:
            sys.stdout.flush()
            sys.stderr.flush()
            self._publish_status("idle", "shell")

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Run a request; it is answered even when an interrupt comes too late for the code, or a task is cancelled."""
        try:
            self._run_environment.put_back()  # an interrupt may have come just before it
            self._run_environment.set(run_environment.taken_from(parent))
            await super().execute_request(stream, ident, parent)
        except BaseException as error:  # noqa: BLE001 - a client waits
            self.shell.streams.put_back()
            self.session.send(stream, "execute_reply", self._reply_of(error), parent, ident=ident)
        finally:
            self._run_environment.put_back()

    async def do_execute(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run code. What it has buffered is written out before its end is told."""
        self.shell.streams.put_back()
        self.shell.last_error = self.shell.last_shown = None
        self.shell._last_traceback_during_displayhook = False  # noqa: SLF001 - ipykernel forgets it where code awaits
        try:
            reply: dict[str, Any] = await super().do_execute(*arguments, **options)
        except BaseException as error:  # noqa: BLE001 - as above
            reply = self._reply_of(self.shell.last_error or error)
        # A result that cannot be shown is an error, too.
        raised = self.shell.last_error or self.shell.last_shown
        if reply["status"] == "error" and raised is not None:
            reply.update(ename=name_of(raised), evalue=text_of(raised))
        if os.getpid() != self._pid:
            self._leave_child()
        self.shell.streams.put_back()
        flush_unclosed_files(self._ring)
        return reply

    async def do_debug_request(self, msg: Mapping[str, Any]) -> dict[str, Any]:
        """Refuse what a debugger is asked, as the Debug Adapter Protocol has it: there is none."""
        asked = {"request_seq": msg.get("seq"), "command": msg.get("command")}
        return {"type": "response", **asked, "success": False, "message": "This kernel has no debugger."}

    def raw_input(self, prompt: object = "") -> str:
        """`input`, where there is somebody to ask."""
        with _as_end_of_input():
            return str(super().raw_input(prompt))

    def getpass(self, *arguments: Any, **options: Any) -> str:
        """`getpass.getpass`, likewise."""
        with _as_end_of_input():
            return str(super().getpass(*arguments, **options))

    @contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        """Interrupt code that awaits something: cancel it while it waits, raise KeyboardInterrupt where it computes."""
        with super()._cancel_on_sigint(future):
            cancel: Any = signal.getsignal(signal.SIGINT)

            def interrupt(number: int, frame: FrameType | None) -> None:
                loop = self.io_loop.asyncio_loop
                running = asyncio.current_task(loop)
                if running is not future:
                    cancel(number, frame)
                    loop.call_soon_threadsafe(lambda: None)  # it may be waiting
                if running is not None:
                    raise KeyboardInterrupt

            signal.signal(signal.SIGINT, interrupt)
            yield

    def _reply_of(self, error: BaseException) -> dict[str, Any]:
        content = {
            "status": "error",
            "ename": name_of(error),
            "evalue": text_of(error),
            "traceback": traceback.format_exception_only(_Readable.made_of(error)),
            "execution_count": self.execution_count - 1,
            "user_expressions": {},
            "payload": [],
        }
        return dict(json_clean(content))

    def _leave_child(self) -> None:
        """End a forked child, which has come to the end of the code: the kernel's sockets are its parent's."""
        flush_unclosed_files(self._ring)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status(self.shell.last_error))


def _file_id(path: str | None) -> FileId | None:
    if path is None:
        return None
    status = Path(path).stat()
    return status.st_dev, status.st_ino


@contextmanager
def _as_end_of_input() -> Iterator[None]:
    try:
        yield
    except IPythonStdinNotImplementedError as error:
        raise StdinNotImplementedError(*error.args) from None
