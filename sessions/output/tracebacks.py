"""Exceptions in a run's messages: checked, without ANSI codes, and bounded like all output. Pure.

The mutable state is how many bytes are left to the run, and how many were dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sessions.model import ExceptionInfo
from sessions.sanitize import cut_utf8, strip_ansi, well_formed

_MAX_LINES = 200
_MAX_NAME_BYTES = 256


class Tracebacks:
    """All tracebacks and messages of one run together may take `left_bytes`: a run can show many."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes
        self.dropped_bytes = 0

    def parse(self, content: Mapping[str, Any], execution_count: int | None) -> ExceptionInfo | None:
        """The exception of an `error` message or an error reply; None when it is not what it should be."""
        name, value, lines = content.get("ename"), content.get("evalue"), content.get("traceback")
        if not isinstance(name, str) or not isinstance(value, str) or not isinstance(lines, list):
            return None
        text = "\n".join(strip_ansi(well_formed(line)) for line in lines[:_MAX_LINES] if isinstance(line, str))
        if not text.strip():  # IPython writes the traceback of an ExceptionGroup to stderr, and sends an empty one
            text = strip_ansi(well_formed(f"{name}: {value}"))
        traceback = tuple(self._charge(text).split("\n"))
        return ExceptionInfo(
            name=cut_utf8(strip_ansi(well_formed(name)), _MAX_NAME_BYTES),
            value=self._charge(strip_ansi(well_formed(value))),
            traceback=traceback,
            line=failing_line(traceback, execution_count),
        )

    def _charge(self, text: str) -> str:
        kept = cut_utf8(text, self.left_bytes)
        kept_bytes = len(kept.encode())
        self.left_bytes -= kept_bytes
        self.dropped_bytes += len(text.encode()) - kept_bytes
        return kept


def failing_line(traceback: Sequence[str], execution_count: int | None) -> int | None:
    """The deepest line of the run's own code in an IPython traceback, which names it `Cell In[<count>], line <n>`."""
    lines = re.findall(rf"Cell In\[{execution_count}\], line (\d{{1,7}})", "\n".join(traceback))
    return int(lines[-1]) if lines else None
