"""Exceptions in a run's messages: checked, without ANSI codes, and bounded like all output. Pure.

The mutable state is how many bytes are left to the run, and how many were dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sessions.model import ExceptionInfo
from sessions.sanitize import cut_utf8, strip_ansi, well_formed

_MAX_FRAMES = 200
_MAX_ALTERNATING = 8
_SHOWN_ALIKE = 3
"""So often the same frames are shown one after the other before they are counted."""
_MAX_NAME_BYTES = 256


_CUT = "\n[... some of it left out ...]\n"


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
        frames = _without_the_middle(_counted([line for line in lines if isinstance(line, str)]))
        text = "\n".join(strip_ansi(well_formed(frame)) for frame in frames)
        if not text.strip():
            text = strip_ansi(well_formed(f"{name}: {value}"))
        traceback = tuple(self._charge(self._fitted(text)).split("\n"))
        return ExceptionInfo(
            name=cut_utf8(strip_ansi(well_formed(name)), _MAX_NAME_BYTES),
            value=self._charge(strip_ansi(well_formed(value))),
            traceback=traceback,
            line=failing_line(traceback, execution_count),
        )

    def _fitted(self, text: str) -> str:
        """Beginning and end of a text that is too long: what went wrong is at the end."""
        data = text.encode()
        if len(data) <= self.left_bytes:
            return text
        half = self.left_bytes // 2 - len(_CUT.encode())
        if half <= 0:
            return text
        self.dropped_bytes += len(data) - 2 * half
        return cut_utf8(text, half) + _CUT + data[-half:].decode(errors="ignore")

    def _charge(self, text: str) -> str:
        kept = cut_utf8(text, self.left_bytes)
        kept_bytes = len(kept.encode())
        self.left_bytes -= kept_bytes
        self.dropped_bytes += len(text.encode()) - kept_bytes
        return kept


def failing_line(traceback: Sequence[str], execution_count: int | None) -> int | None:
    """The deepest line of the run's own code in a traceback, which names it `Cell In[<count>], line <n>`.

    IPython has it last; JavaScript first, in lines that begin with `at`.
    """
    text, place = "\n".join(traceback), rf"Cell In\[{execution_count}\], line (\d{{1,7}})"
    if (first := re.search(rf"^\s+at .*{place}", text, re.MULTILINE)) is not None:
        return int(first[1])
    lines = re.findall(place, text)
    return int(lines[-1]) if lines else None


def _counted(frames: list[str]) -> list[str]:
    """The frames of a traceback, those of a recursion shown once and counted. Several functions may call each other."""
    kept: list[str] = []
    index = 0
    while index < len(frames):
        if not frames[index].strip():  # counting what repeats from here on would start again at the next one
            kept.append(frames[index])
            index += 1
            continue
        for length in range(1, _MAX_ALTERNATING + 1):
            block = frames[index : index + length]
            end = index + length
            while frames[end : end + length] == block:
                end += length
            times = (end - index) // length
            if times > _SHOWN_ALIKE:
                what = "frame above is" if length == 1 else f"{length} frames above are"
                kept += [*block, f"[... the {what} repeated {times - 1} more times ...]\n"]
                index = end
                break
        else:
            kept.append(frames[index])
            index += 1
    return kept


def _without_the_middle(frames: list[str]) -> list[str]:
    """As many frames as are shown, half of them from the beginning and half from the end."""
    if len(frames) <= _MAX_FRAMES:
        return frames
    half = _MAX_FRAMES // 2
    return [*frames[:half], f"[... {len(frames) - 2 * half} frames left out ...]\n", *frames[-half:]]
