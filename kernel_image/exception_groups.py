"""The traceback of an exception group, members and all, as part of the kernel's `error` message.

IPython prints it to standard error and sends an empty one.
"""

from __future__ import annotations

import re
import traceback
from types import ModuleType
from typing import Any

_PLACE = re.compile(r'File "([^"\n]+)", line (\d+)(?:, in <module>)?')
_OWN_PACKAGES = ("IPython.", "ipykernel.")


def adapt(module: ModuleType) -> None:
    """Adapt `IPython.core.interactiveshell`."""
    shell: Any = module.InteractiveShell
    show = shell.showtraceback

    def showtraceback(self: Any, exc_tuple: Any = None, *args: Any, **options: Any) -> None:
        try:
            type_, value, frames = self._get_exc_info(exc_tuple)
        except ValueError:  # there is no exception to show
            value = None
        if value is not None and _has_group(value) and not options.get("exception_only"):
            self._showtraceback(type_, value, _lines(self, type_, value, frames))
        else:
            show(self, exc_tuple, *args, **options)

    shell.showtraceback = showtraceback


def _has_group(error: BaseException | None) -> bool:
    """Whether this is a group, or was caused by one, or raised while one was handled."""
    waiting, seen = [error], set()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        if isinstance(error, BaseExceptionGroup):
            return True
        seen.add(id(error))
        waiting += [error.__cause__, error.__context__]
    return False


def _lines(shell: Any, type_: Any, value: Any, frames: Any) -> list[str]:
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith(_OWN_PACKAGES):
        frames = frames.tb_next

    def place(match: re.Match[str]) -> str:
        """A cell as other tracebacks name it."""
        cell = shell.compile.format_code_name(match[1])
        return f"{cell[0]} {cell[1]}, line {match[2]}" if cell else match[0]

    text = "".join(traceback.TracebackException(type_, value, frames).format())
    return _PLACE.sub(place, text).rstrip("\n").split("\n")
