"""What is known of the kernels of each language: how variables are set there, and what they are called elsewhere. Pure.

Which languages a gateway has is its configuration's business; it maps their names to the kernelspecs in this table. A
kernelspec that is not in it runs code, and takes neither `variables` nor `env`.
"""

from __future__ import annotations

import json
import keyword
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PYTHON_KERNEL = "python3"
BASH_KERNEL = "bash"
DENO_KERNEL = "deno"

DEFAULT_LANGUAGES: Mapping[str, str] = {
    "python": PYTHON_KERNEL,
    "bash": BASH_KERNEL,
    "javascript": DENO_KERNEL,
    "typescript": DENO_KERNEL,
}
"""What a gateway has unless its configuration says otherwise."""

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHELLS_OWN = frozenset(
    {"BASHOPTS", "BASHPID", "BASH_ARGC", "BASH_ARGV", "BASH_COMMAND", "BASH_LINENO", "BASH_SOURCE", "BASH_SUBSHELL"}
    | {"BASH_VERSINFO", "DIRSTACK", "EPOCHREALTIME", "EPOCHSECONDS", "EUID", "FUNCNAME", "GROUPS", "HISTCMD", "PPID"}
    | {"PWD", "RANDOM", "SHELLOPTS", "SRANDOM", "UID"}
)
"""Bash does not let them be set, or does not keep what they are set to."""
_MAX_STRING_BYTES = 131_071
"""MAX_ARG_STRLEN of execve(2), less a NUL: with a longer NAME=VALUE in the environment, no program starts."""
_MAX_ENVIRONMENT_BYTES = 1 << 20
"""execve(2) takes a quarter of the stack's limit, arguments included: 2 MiB where that is 8 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """How variables are set in kernels of one kernelspec.

    `name` gives the name as the language reads it, and None for what cannot be one there. `request` gives the code of a
    silent request that sets them, and what that has in its metadata as `cellblock.variables`. `source` is the same as a
    reader of a notebook may have it. `fault` says what is wrong with them all together, in words that follow
    "`variables`"; None where nothing is.
    """

    name: Callable[[str], str | None]
    request: Callable[[Mapping[str, Any]], tuple[str, Mapping[str, Any]]]
    source: Callable[[str, Any], str]
    fault: Callable[[Mapping[str, Any]], str | None] = field(default=lambda _: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTraits:
    """What the gateway knows of the kernels of one kernelspec.

    `title` is the language's name in a sentence; `display_name`, `argv` and `language_info` are Jupyter's. `sets_env`
    says that kernels take environment variables for one request out of its metadata.
    """

    title: str
    display_name: str
    language_info: Mapping[str, Any]
    argv: tuple[str, ...] = ()
    variables: Variables | None = None
    sets_env: bool = False


def traits_of(kernel_name: str) -> KernelTraits:
    """Those of a kernelspec; of one that is not known, they are empty."""
    known = _TRAITS.get(kernel_name)
    return known or KernelTraits(title=kernel_name, display_name=kernel_name, language_info={})


# --- Python -----------------------------------------------------------------------------------------------------------

_PUSH = 'get_ipython().push(get_ipython().kernel.get_parent("shell")["metadata"]["cellblock"]["variables"])'


def _python_name(given: str) -> str | None:
    """The name as Python reads it in source: NFKC, https://docs.python.org/3/reference/lexical_analysis.html."""
    name = unicodedata.normalize("NFKC", given)
    return name if name.isidentifier() and not keyword.iskeyword(name) else None


def python_literal(value: Any) -> str:
    """A JSON value as Python source: ASCII escapes for what UTF-8 cannot say, and no bare `inf`."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{str(key)!r}: {python_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(python_literal(item) for item in value) + "]"
    return repr(value)


_BEYOND_FLOATS = 10**309


def _in_json(value: Any) -> Any:
    """The value, with infinities (`1e999` is one) as numbers that JSON can say: `Infinity` is none of its words."""
    if isinstance(value, float) and math.isinf(value):
        return _BEYOND_FLOATS if value > 0 else -_BEYOND_FLOATS
    if isinstance(value, Mapping):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(item) for item in value]
    return value


# --- Bash -------------------------------------------------------------------------------------------------------------


def _shell_name(given: str) -> str | None:
    return given if _SHELL_NAME.fullmatch(given) and given not in _SHELLS_OWN else None


def shell_text(value: Any) -> str:
    """A JSON value as an environment variable has it: a string as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(_in_json(value), ensure_ascii=False)


def shell_quoted(text: str) -> str:
    """A text as one word of a shell command."""
    return "'" + text.replace("'", "'\\''") + "'"


def _shell_fault(variables: Mapping[str, Any]) -> str | None:
    total_bytes = 0
    for name, value in variables.items():
        text = shell_text(value)
        if "\0" in text:
            return f"has a NUL in the value of {name}, which an environment variable cannot hold"
        string_bytes = len(name) + 1 + len(text.encode("utf-8", "replace"))
        if string_bytes > _MAX_STRING_BYTES:
            return f"has over {_MAX_STRING_BYTES} bytes in {name}, more than an environment variable holds: use `files`"
        total_bytes += string_bytes
    if total_bytes > _MAX_ENVIRONMENT_BYTES:
        return f"has over {_MAX_ENVIRONMENT_BYTES} bytes, more than fit into an environment: use `files`"
    return None


# --- JavaScript and TypeScript ----------------------------------------------------------------------------------------

_SCRIPT_NAME = re.compile(r"[^\W\d][\w$]*|[$][\w$]*")
_SCRIPT_WORDS = re.compile(
    "arguments|await|break|case|catch|class|const|continue|debugger|default|delete|do|else|enum|eval|export|extends|false"
    "|finally|for|function|if|implements|import|in|instanceof|interface|let|new|null|package|private|protected|public"
    "|return|static|super|switch|this|throw|true|try|typeof|var|void|while|with|yield"
    "|Infinity|NaN|undefined|globalThis|Deno|__proto__"
)
"""What means something else, cannot be assigned to, or should be by nobody."""


def _script_name(given: str) -> str | None:
    """https://tc39.es/ecma262/#prod-IdentifierName, and no word that means something else."""
    return given if _SCRIPT_NAME.fullmatch(given) and not _SCRIPT_WORDS.fullmatch(given) else None


def _set_script_variables(variables: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Code for the function that kernel_image/kernelspecs/deno/set_up.js leaves; it parses JSON, and runs no code."""
    return f'globalThis[Symbol.for("cellblock")].setVariables({json.dumps(json.dumps(_in_json(variables)))})', {}


_TRAITS: Mapping[str, KernelTraits] = {
    PYTHON_KERNEL: KernelTraits(
        title="Python",
        display_name="Python 3 (ipykernel)",
        language_info={"name": "python"},
        argv=("python", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        variables=Variables(
            name=_python_name,
            request=lambda variables: (_PUSH, variables),
            source=lambda name, value: f"{name} = {python_literal(value)}",
        ),
        sets_env=True,
    ),
    BASH_KERNEL: KernelTraits(
        title="Bash",
        display_name="Bash",
        language_info={
            "name": "bash",
            "mimetype": "text/x-sh",
            "file_extension": ".sh",
            "codemirror_mode": "shell",
            "pygments_lexer": "bash",
        },
        variables=Variables(
            name=_shell_name,
            request=lambda variables: ("", {name: shell_text(value) for name, value in variables.items()}),
            source=lambda name, value: f"export {name}={shell_quoted(shell_text(value))}",
            fault=_shell_fault,
        ),
        sets_env=True,
    ),
    DENO_KERNEL: KernelTraits(
        title="JavaScript",
        display_name="JavaScript and TypeScript (Deno)",
        language_info={
            "name": "typescript",
            "mimetype": "text/x.typescript",
            "file_extension": ".ts",
            "codemirror_mode": "typescript",
            "pygments_lexer": "typescript",
        },
        argv=("deno", "jupyter", "--kernel", "--conn", "{connection_file}"),
        variables=Variables(
            name=_script_name,
            request=_set_script_variables,
            source=lambda name, value: f"globalThis.{name} = {json.dumps(value, ensure_ascii=False)};",
        ),
        sets_env=True,
    ),
}
"""By kernelspec."""
