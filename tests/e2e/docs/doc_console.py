"""Blocks of a terminal: commands behind `$ `, and below them the output that they have, where the page shows it.

A command goes on over a backslash, an open quotation mark and a here-document. Output with `…` may have anything there;
ids, times and figures of `usage` are compared by their form, and an indented line goes on with the one before it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PROMPT = "$ "
_END = "\x1e"
_TIMEOUT_S = 150
_FLEXIBLE = {
    "…": r".*?",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}": r"[0-9a-f-]{36}",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z": r"[\dT:.-]{26}Z",
    r'(?<=_ms":)\d[\d.]*': r"\d[\d.]*",
    r'(?<=_bytes":)\d+': r"\d+",
    r"\s*\n[ \t]+": r"\s*",
}


@dataclass
class Command:
    text: str
    expected: str = ""


def commands_of(text: str) -> list[Command]:
    """Raises ValueError for output before the first command."""
    commands: list[Command] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.startswith(_PROMPT):
            if not commands:
                raise ValueError(f"no `$ ` before {line!r}")
            commands[-1].expected += f"{line}\n"
            continue
        command = line.removeprefix(_PROMPT)
        while _goes_on(command) and (more := next(lines, None)) is not None:
            command += f"\n{more}"
        commands.append(Command(command))
    return commands


def run_console(text: str, environment: Mapping[str, str], directory: Path) -> str:
    """Run a block in a shell of its own; what is wrong, or nothing."""
    commands = commands_of(text)
    answers = run_script([command.text for command in commands], environment, directory)
    for command, (output, status) in zip(commands, answers, strict=True):
        if status != "0":
            return f"`{command.text}` ended with status {status}:\n{output}"
        if command.expected and not pattern(command.expected.strip()).fullmatch(output.strip()):
            return f"`{command.text}` says\n{output}\nand not\n{command.expected}"
    return ""


def run_whole(text: str, environment: Mapping[str, str], directory: Path) -> str:
    """Run a script; what is wrong, or nothing."""
    ((output, status),) = run_script([text], environment, directory)
    return "" if status == "0" else f"ended with status {status}:\n{output}"


def run_script(commands: list[str], environment: Mapping[str, str], directory: Path) -> list[tuple[str, str]]:
    """The output and exit status of each, in one shell."""
    script = "exec 2>&1\n" + "".join(f"{command}\nprintf '{_END}%s{_END}' $?\n" for command in commands)
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    parts = done.stdout.split(_END)
    answers = list(zip(parts[::2], parts[1::2], strict=False))
    last = (parts[-1] + done.stderr, str(done.returncode))
    return [*answers, *[last] * (len(commands) - len(answers))]


def pattern(expected: str) -> re.Pattern[str]:
    """What output may be that a page shows like this."""
    finding = re.compile("|".join(f"({form})" for form in _FLEXIBLE))
    written, end = "", 0
    for found in finding.finditer(expected):
        written += re.escape(expected[end : found.start()]) + list(_FLEXIBLE.values())[(found.lastindex or 1) - 1]
        end = found.end()
    return re.compile(written + re.escape(expected[end:]), re.DOTALL)


def _goes_on(command: str) -> bool:
    if found := re.search(r"<<'?(\w+)'?", command):
        return found[1] not in command.splitlines()[1:]
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return command.endswith(("\\", "|", "&&"))
