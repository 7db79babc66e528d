"""The Bash kernel: ipykernel's protocol around one bash process, which lives as long as the kernel.

When the shell ends, so does the kernel: whoever was its client is told that the variables are gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextvars import copy_context
from pathlib import Path
from typing import Any

from ipykernel.kernelbase import Kernel

from kernel_image import child_environment, run_environment
from kernel_image.bash_shell import BashShell, End, find_bash

_NO_BASH = "There is no bash here: install it where the kernels run, or leave the language out of `languages`."
_LOST = "The shell's own files could not be written, so the code was not run and the shell has ended"
_ENDS = {"payload": [{"source": "ask_exit", "keepkernel": False}]}
"""The part of a reply that tells the supervisor of the kernel's end."""
_LEAVE_S = 0.1
"""For a thread of ipykernel's to send the answer before the kernel ends."""
_CHECK_TIMEOUT_S = 5.0
_UNFINISHED = ("unexpected end of file", "unexpected EOF", "delimited by end-of-file")
_WORD = re.compile(r"[^\s;|&<>()'\"`]*$")
_BEFORE_COMMAND = re.compile(r"(?:^|[;|&(`{]|\b(?:if|then|else|elif|do|while|until|time)\s)\s*$")
_MEANINGS = {126: "the command cannot be executed", 127: "a command was not found"}
_SIGNAL_BASE = 128


class BashKernel(Kernel):  # type: ignore[misc]
    """Its state: the shell, once something has been run; the request; whether a client is asked; whether it ends."""

    implementation = "bash"
    implementation_version = "1.0"
    banner = "Bash"
    language_info = {  # noqa: RUF012 - as the base class has it
        "name": "bash",
        "mimetype": "text/x-sh",
        "file_extension": ".sh",
        "codemirror_mode": "shell",
        "pygments_lexer": "bash",
    }

    def __init__(self, **options: Any) -> None:
        self._bash = find_bash()
        self._shell: BashShell | None = None
        self._is_asking = False
        self._context = copy_context()
        self._request: Mapping[str, Any] = {}
        self._is_leaving = False
        super().__init__(**options)
        child_environment.prepare()

    def start(self) -> None:
        """Serve requests; SIGINT is for the shell."""
        super().start()
        signal.signal(signal.SIGINT, lambda *_: self._interrupt())

    def pre_handler_hook(self) -> None:
        """Leave SIGINT as it is."""

    def post_handler_hook(self) -> None:
        """Leave SIGINT as it is."""

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        """Note the request that is handled now, whose output all output is from here on."""
        super().set_parent(ident, parent, channel)
        if channel == "shell":
            streams: list[Any] = [sys.stdout, sys.stderr]
            for stream in streams:
                stream.set_parent(parent)

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Run a request; end the kernel behind the answer, if the shell has ended."""
        self._request = parent
        await super().execute_request(stream, ident, parent)
        if self._is_leaving:
            self.io_loop.call_later(_LEAVE_S, self.io_loop.stop)

    async def do_execute(
        self,
        code: str,
        silent: bool,  # noqa: FBT001 - ipykernel's
        store_history: bool = True,  # noqa: FBT001, FBT002 - likewise
        user_expressions: Any = None,
        allow_stdin: bool = False,  # noqa: FBT001, FBT002 - likewise
        **_: Any,
    ) -> dict[str, Any]:
        """Run code, or set the variables that the request's metadata has."""
        del silent, store_history, user_expressions
        self._allow_stdin = allow_stdin
        self._context = copy_context()
        environment = run_environment.taken_from(self._request)
        variables = _variables_of(self._request)
        if not code.strip() and not variables:
            return self._reply()
        if self._bash is None:
            return self._failure("BashNotFound", _NO_BASH)
        try:
            return await self._run(code, variables, environment)
        except OSError as error:  # the code has filled the disk, or locked our directory
            self._is_leaving = True
            return {**self._failure("ShellLost", f"{_LOST}: {error.strerror}."), **_ENDS}

    async def _run(self, code: str, variables: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Any]:
        assert self._bash is not None  # noqa: S101 - there is one
        if self._shell is None:
            directory = Path(tempfile.mkdtemp(prefix="bash-", dir=Path(self.parent.connection_file).parent))
            work_dir = os.getcwd()  # noqa: PTH109 - a text
            self._shell = BashShell(self._bash, directory, work_dir, on_end=self.io_loop.stop, ask=self._ask)
        if variables:
            self._shell.set_variables(variables)
        if not code.strip():
            return self._reply()
        end = await self._shell.run(code, environment, can_ask=self._allow_stdin)
        return self._ended(end) if end.shell_ended else self._reply_to(end.status)

    def _reply_to(self, status: int) -> dict[str, Any]:
        assert self._shell is not None  # noqa: S101 - it has run the code
        if self._shell.was_interrupted:
            return self._failure("KeyboardInterrupt", "")
        if status == 0:
            return self._reply()
        return self._failure(
            "ExitStatus", str(status), f"The last command ended with exit status {status}{_meaning(status)}."
        )

    def _ended(self, end: End) -> dict[str, Any]:
        """The shell is gone. A signal that has ended it ends the kernel, too, so that the supervisor sees which."""
        assert self._shell is not None  # noqa: S101 - it has run the code
        sys.stdout.flush()
        sys.stderr.flush()
        if end.status < 0 and not self._shell.was_interrupted:
            _die_of(-end.status)
        self._is_leaving = True
        if self._shell.was_interrupted:
            reply = self._failure("KeyboardInterrupt", "")
        elif end.status == 0:
            reply = self._reply()
        else:
            text = f"The shell ended with exit status {end.status}{_meaning(end.status)}."
            reply = self._failure("ExitStatus", str(end.status), text)
        return {**reply, **_ENDS}

    def _reply(self) -> dict[str, Any]:
        return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}

    def _failure(self, name: str, value: str, text: str = "") -> dict[str, Any]:
        """Publish an error behind all output, and return the reply that says so."""
        sys.stdout.flush()
        sys.stderr.flush()
        content = {"ename": name, "evalue": value, "traceback": [f"{name}: {text or value}".rstrip(": ")]}
        self.send_response(self.iopub_socket, "error", content)
        return {**self._reply(), "status": "error", **content}

    async def do_complete(self, code: str, cursor_pos: int) -> dict[str, Any]:
        """Complete the word before the cursor: commands, variables, files."""
        before = code[:cursor_pos]
        found = _WORD.search(before)
        word = found[0] if found else ""
        matches: list[str] = []
        if self._shell is not None and not self._shell.has_ended and word:
            is_command = _BEFORE_COMMAND.search(before[: len(before) - len(word)]) is not None
            matches = await self._shell.complete(word, is_command=is_command)
        return {
            "matches": matches,
            "cursor_start": cursor_pos - len(word),
            "cursor_end": cursor_pos,
            "metadata": {},
            "status": "ok",
        }

    async def do_is_complete(self, code: str) -> dict[str, Any]:
        """Ask a bash of its own whether it would read on."""
        if self._bash is None:
            return {"status": "unknown"}
        try:
            checked = subprocess.run(  # noqa: ASYNC221, S603 - it parses only, in milliseconds
                [self._bash, "--norc", "-O", "extglob", "-n"],
                input=code.encode("utf-8", "replace"),
                capture_output=True,
                timeout=_CHECK_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return {"status": "unknown"}
        said = checked.stderr.decode("utf-8", "replace")
        if code.rstrip(" \t").endswith("\\") or any(words in said for words in _UNFINISHED):
            return {"status": "incomplete", "indent": ""}
        return {"status": "invalid" if checked.returncode else "complete"}

    def do_shutdown(self, restart: bool) -> dict[str, Any]:  # noqa: FBT001 - ipykernel's
        """End the shell."""
        if self._shell is not None:
            self._shell.close()
        return {"status": "ok", "restart": restart}

    def _ask(self, prompt: str, is_secret: bool) -> str:  # noqa: FBT001 - a callback's
        """What the client answers. Nothing else is done meanwhile."""
        self._is_asking = True
        try:
            # The question is the request's at work; what reads the shell's reports has the context of the first.
            return str(self._context.run(self.getpass if is_secret else self.raw_input, prompt))
        finally:
            self._is_asking = False

    def _interrupt(self) -> None:
        if self._shell is not None:
            self._shell.interrupt()
        if self._is_asking:
            raise KeyboardInterrupt


def _variables_of(request: Mapping[str, Any]) -> dict[str, str]:
    options = request.get("metadata", {}).get("cellblock")
    variables = options.get("variables") if isinstance(options, dict) else None
    return {str(name): str(value) for name, value in variables.items()} if isinstance(variables, dict) else {}


def _meaning(status: int) -> str:
    if status in _MEANINGS:
        return f" ({_MEANINGS[status]})"
    try:
        return f" (it was ended by {signal.Signals(status - _SIGNAL_BASE).name})"
    except ValueError:
        return ""


def _die_of(number: int) -> None:
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(_SIGNAL_BASE + number)
