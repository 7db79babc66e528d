"""One bash process, which runs one text after the other and says how each has ended.

Bash reads commands from a pipe; a text is a file that it sources, so that what the text defines, changes and leaves
running stays. Standard output and error are the kernel's pipes. Bash is not interactive: `set -e`, `set -u` and `exit`
end it as they end a script. What becomes of its output and its end is the kernel's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from kernel_image.leftovers import make_usable

_FIRST_DESCRIPTOR = 200
"""Scripts choose their own descriptors from below, bash from 10 on."""
_READ_BYTES = 65_536
_START_UP = frozenset({"BASH_ENV", "ENV", "BASHOPTS", "SHELLOPTS"})
"""Variables by which whoever has started the gateway would have bash begin otherwise."""
_MOST_MATCHES = 500
_MOST_LINES = 10_000
_MOST_ANSWER_BYTES = 60_000
"""What fits into a pipe."""
_MAIN_NAME = "main.sh"
_CODE_NAME = "code.sh"
_NOBODY_NAME = "nobody"
_ENVIRONMENT_NAMES = ("environment.sh", "environment-back.sh")

# With `extdebug`, a DEBUG trap that returns 2 returns from the function or the sourced file that it is called in: so an
# interrupt leaves them all, and the shell goes on. Without an INT trap it would end a shell that is not interactive.
# `main.sh` is found from its own directory and named without it, so that messages are short, and the directory which
# scripts compute of BASH_SOURCE is the one they run in. The code is evaluated in its first line: lines count from 1.
_PROLOGUE = """\
__cellblock_skip() {{ if (( ${{#FUNCNAME[@]}} > 1 )); then return 2; fi; trap - DEBUG; shopt -u extdebug; }}
__cellblock_interrupt() {{ shopt -s extdebug; trap __cellblock_skip DEBUG; }}
__cellblock_back() {{ builtin cd -- "$__cellblock_pwd" || builtin cd -- {work_dir}; OLDPWD=$__cellblock_oldpwd; }}
__cellblock_status() {{ return "$1"; }}
__cellblock_set() {{
    builtin unset -n "$1" || :
    if builtin unset -v "$1"; then
        builtin export "$1=$2"
    else
        __cellblock_notices+="[cellblock] The variable $1 could not be set: the code has made it read-only."$'\n'
    fi
}} 2>/dev/null
read() {{
    if [[ /dev/fd/0 -ef {nobody} ]]; then
        local OPTIND=1 OPTARG OPTERR=0 __cellblock_option __cellblock_prompt= __cellblock_secret=0 __cellblock_asks=1
        while builtin getopts :ersa:d:i:n:N:p:t:u: __cellblock_option; do
            case $__cellblock_option in
            p) __cellblock_prompt=$OPTARG ;;
            s) __cellblock_secret=1 ;;
            u) __cellblock_asks= ;;
            esac
        done
        if [[ $__cellblock_asks ]]; then
            builtin printf 'input %s %s\\n' $__cellblock_secret "${{__cellblock_prompt//$'\\n'/ }}" >&{report}
            builtin read "$@" <&{answers}
            return
        fi
    fi
    builtin read "$@"
}}
"""
"""A variable of ours is first unset, for attributes that the code has given it would change or evaluate its value.

Where a client can be asked, `read` asks it, unless its input is redirected.
"""
_MAIN = """\
IFS= builtin read -r -d '' __cellblock_code <{code} || :; __cellblock_back; \
builtin printf 'begun %s\\n' {number} >&{report}; \
{status}builtin eval "$__cellblock_code"
"""
_RUN = """\
{{ exec >&{stdout} 2>&{stderr}; __cellblock_pwd=$PWD __cellblock_oldpwd=${{OLDPWD-}}; {set_aside}
builtin printf %s "${{__cellblock_notices-}}" >&2; __cellblock_notices=
{trap}builtin cd -P -- {directory} && . ./main.sh <{input}
{{ __cellblock_ended=$?; builtin trap -p INT ERR >&{report}
builtin printf 'ended %s %s %s\\n' {number} "$__cellblock_ended" "$-" >&{report}; builtin set +xv; }} 2>/dev/null
{{ {put_back}
builtin printf 'done %s\\n' {number} >&{report}; }} 2>/dev/null
}}
"""
"""Bash reads it whole before it runs any of it, which `set -v` shows."""
_TRAP = "trap __cellblock_interrupt INT\n"


class End(NamedTuple):
    """How a text has ended: the exit status of its last command, or of the shell if that has ended with it.

    A negative status is the number of the signal that has ended the shell.
    """

    status: int
    shell_ended: bool


class BashShell:
    """Its state: the process, which text is at work, and the flags and the status with which the last one has ended."""

    def __init__(
        self,
        program: str,
        directory: Path,
        work_dir: str,
        *,
        on_end: Callable[[], None],
        ask: Callable[[str, bool], str],
    ) -> None:
        """Start bash; its files are in `directory`, which exists. An event loop must be running. Raises OSError.

        `on_end` is called when it ends while no text is at work; `ask` gets a prompt and whether the answer is secret,
        and may raise KeyboardInterrupt.
        """
        self._ask = ask
        self._directory = directory
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._has_begun = False
        self._has_ended_text = False
        self._interrupt_wanted = False
        self._was_interrupted = False
        self._status = 0
        self._flags = ""
        self._traps: set[str] = set()
        self._lines: list[str] = []
        self._unread = b""
        self._end: asyncio.Future[End] = self._loop.create_future()
        self._end.set_result(End(0, shell_ended=False))
        self._report, theirs = os.pipe()
        self._asked, self._answers = os.pipe()
        theirs_all = (theirs, 1, 2, self._asked)
        self._descriptors = [fcntl.fcntl(number, fcntl.F_DUPFD, _FIRST_DESCRIPTOR) for number in theirs_all]
        os.close(theirs)
        try:
            self._process = subprocess.Popen(
                ["bash", "--noprofile", "--norc", "-s"],  # noqa: S607 - its name; `executable` is where it is
                executable=program,
                stdin=subprocess.PIPE,
                pass_fds=self._descriptors,
                process_group=0,
                bufsize=0,
                env={name: value for name, value in os.environ.items() if name not in _START_UP},
            )
        finally:
            for descriptor in self._descriptors:
                os.close(descriptor)
        os.set_blocking(self._report, False)
        self._loop.add_reader(self._report, self._read_report)
        threading.Thread(target=self._wait, daemon=True).start()
        self._nobody = _quoted(str(directory / _NOBODY_NAME))
        report, _, _, answers = self._descriptors
        prologue = _PROLOGUE.format(work_dir=_quoted(work_dir), nobody=self._nobody, report=report, answers=answers)
        self._write(prologue)

    @property
    def was_interrupted(self) -> bool:
        """Whether the last text was sent an interrupt."""
        return self._was_interrupted

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    def set_variables(self, variables: Mapping[str, str]) -> None:
        """Export variables, from the next text on. The names are a shell's. Raises OSError."""
        settings = "".join(f"__cellblock_set {name} {_quoted(text)}\n" for name, text in variables.items())
        self._write(f"{self._sourced('variables.sh', settings)}\n")

    async def run(self, code: str, environment: Mapping[str, str], *, can_ask: bool) -> End:
        """Run a text, with these variables in the environment until it ends. Raises OSError: files of ours fail."""
        self._number += 1
        self._has_begun = self._has_ended_text = self._interrupt_wanted = self._was_interrupted = False
        self._end = self._loop.create_future()
        report, stdout, stderr, _ = self._descriptors
        again = "".join(f"builtin set -{flag}; " for flag in "vx" if flag in self._flags)
        self._write_file(_CODE_NAME, f"{again}{code}\n")
        main = _MAIN.format(
            code=_quoted(str(self._directory / _CODE_NAME)),
            number=self._number,
            report=report,
            status=self._last_status(),
        )
        self._write_file(_MAIN_NAME, main)
        if can_ask:
            self._forget_answers()
            self._write_file(_NOBODY_NAME, "")
        run = _RUN.format(
            stdout=stdout,
            stderr=stderr,
            report=report,
            directory=_quoted(str(self._directory)),
            number=self._number,
            input=self._nobody if can_ask else os.devnull,
            trap="" if "INT" in self._traps else _TRAP,
            set_aside=self._sourced(_ENVIRONMENT_NAMES[0], _set_aside(environment)),
            put_back=self._sourced(_ENVIRONMENT_NAMES[1], _put_back(environment)),
        )
        self._lines = []
        self._write(run)
        try:
            return await self._end
        finally:
            for name in _ENVIRONMENT_NAMES:  # the next text may not read them
                (self._directory / name).unlink(missing_ok=True)

    def _last_status(self) -> str:
        """Commands that make `$?` what the last text has left, where that fails nothing."""
        if self._status == 0 or "e" in self._flags or "ERR" in self._traps:
            return ""
        return f"__cellblock_status {self._status}; "

    async def complete(self, word: str, *, is_command: bool) -> list[str]:
        """What a word may become. No text may be at work."""
        self._number += 1
        self._lines = []
        self._end = self._loop.create_future()
        kinds = "-abckA function" if is_command and "/" not in word else "-f"
        asked = f"builtin compgen {kinds} -- {_quoted(word)}"
        if word.startswith("$"):
            asked = f"builtin compgen -P '$' -v -- {_quoted(word[1:])}"
        report = self._descriptors[0]
        self._write(f"{{ {asked} >&{report}; builtin printf 'done {self._number}\\n' >&{report}; }} 2>/dev/null\n")
        await self._end
        return sorted(set(self._lines))[:_MOST_MATCHES]

    def interrupt(self) -> None:
        """SIGINT to the shell and to what it waits for; once the text has begun, since the shell would not note it."""
        if self._end.done():
            return
        self._was_interrupted = True
        if self._has_begun:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGINT)
        else:
            self._interrupt_wanted = True

    def close(self) -> None:
        """Kill the process, if it runs."""
        self._loop.remove_reader(self._report)
        if not self.has_ended:
            self._process.kill()

    def _sourced(self, name: str, text: str) -> str:
        """A command that runs this text, which is laid down in a file of this name; empty for none."""
        if not text:
            return ""
        self._write_file(name, text)
        return f". {_quoted(str(self._directory / name))} </dev/null"

    def _write_file(self, name: str, text: str) -> None:
        path = self._directory / name
        make_usable(self._directory)
        path.unlink(missing_ok=True)
        with path.open("x", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)

    def _write(self, commands: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        with contextlib.suppress(BrokenPipeError):  # its end is told
            self._process.stdin.write(commands.encode())

    def _read_report(self) -> None:
        try:
            data = os.read(self._report, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._report)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._handle(line.decode("utf-8", "replace"))

    def _handle(self, line: str) -> None:
        match line.split(" "):
            case ["begun", number] if number == str(self._number):
                self._has_begun = True
                if self._interrupt_wanted:
                    self._interrupt_wanted = False
                    self.interrupt()
            case ["ended", number, status, *flags] if number == str(self._number) and status.isdecimal():
                self._status, self._flags = int(status), "".join(flags)
                self._traps = {name for line in self._lines for name in ("INT", "ERR") if line.endswith(name)}
                self._has_ended_text = True
            case ["input", kind, *words] if not self._end.done():
                self._answer(" ".join(words), is_secret=kind == "1")
            case ["done", number] if number == str(self._number):
                self._tell(End(self._status, shell_ended=False))
            case _:
                self._lines = [*self._lines[-_MOST_LINES:], line]

    def _answer(self, prompt: str, *, is_secret: bool) -> None:
        """Ask, and hand the answer to the `read` that waits for it; after an interrupt an empty one ends that."""
        try:
            answer = "" if self._was_interrupted else self._ask(prompt, is_secret)
        except KeyboardInterrupt:
            answer = ""
        line = answer.partition("\n")[0].encode("utf-8", "replace")[:_MOST_ANSWER_BYTES]
        os.write(self._answers, line + b"\n")

    def _forget_answers(self) -> None:
        """Drop what nobody has read: after an interrupt, perhaps."""
        while select.select([self._asked], [], [], 0)[0]:
            os.read(self._asked, _READ_BYTES)

    def _wait(self) -> None:
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._note_end, status)

    def _note_end(self, status: int) -> None:
        """The process is gone. What it has reported before is read first."""
        self._read_report()
        self._tell(End(self._status if self._has_ended_text else status, shell_ended=True))

    def _tell(self, end: End) -> None:
        if not self._end.done():
            self._end.set_result(end)
        elif end.shell_ended:
            self._on_end()


def find_bash() -> str | None:
    """Where bash is."""
    return shutil.which("bash")


def _set_aside(environment: Mapping[str, str]) -> str:
    """Commands that export variables and keep what they displace."""
    return "".join(
        f"__cellblock_was_{name}=$(builtin declare -p {name} 2>/dev/null) || :; "
        f"__cellblock_as_{name}=; [[ -z ${{{name}+x}} ]] || __cellblock_as_{name}=${{{name}@a}}; "
        f"__cellblock_set {name} {_quoted(text)}\n"
        for name, text in environment.items()
    )


def _put_back(environment: Mapping[str, str]) -> str:
    """Commands that put back what `_set_aside` has displaced. What the text has made read-only ends with the shell."""
    return "".join(
        f"if [[ -n ${{{name}+x}} && ${{{name}@a}} == *r* && ! $__cellblock_as_{name} == *r* ]]; then kill -9 $$; fi; "
        f"builtin unset -n {name} || :; "
        f"if builtin unset -v {name} && [[ $__cellblock_was_{name} ]]; then "
        f'builtin eval "$__cellblock_was_{name}"; fi; '
        f"builtin unset -v __cellblock_was_{name} __cellblock_as_{name}\n"
        for name in environment
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
