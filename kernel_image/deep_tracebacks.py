"""Tracebacks of endless recursions: what repeats is shown once and counted before it is made into text.

IPython makes text of every frame. That takes a second for a thousand of them, and for ever where the code has raised
the recursion limit. It keeps no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from types import CodeType, TracebackType
from typing import Any

_DEEP_FRAMES = 100
"""Tracebacks up to this are left to IPython; of deeper ones this much is shown."""

_MAX_ALTERNATING = 8
"""So many functions may call each other in turn."""

_SHOWN_ALIKE = 3


def shorten(formatter: Any) -> None:
    """Have an IPython formatter of tracebacks count what repeats."""
    format_whole: Callable[..., list[list[str]]] = formatter.format_exception_as_a_whole

    def format_exception_as_a_whole(etype: Any, evalue: Any, etb: Any, context: int, tb_offset: Any) -> list[list[str]]:
        frames = list(_frames(etb))
        if len(frames) <= _DEEP_FRAMES:
            return format_whole(etype, evalue, etb, context, tb_offset)
        ending = len(formatter.format_exception(etype, evalue))
        lines: list[str] = []
        places = [(frame.tb_frame.f_code, frame.tb_lineno) for frame in frames]
        for is_note, group in groupby(_without_the_middle(_counted(places)), lambda entry: isinstance(entry, str)):
            if is_note:
                lines[-ending:-ending] = [entry for entry in group if isinstance(entry, str)]
                continue
            offset = 0 if lines else tb_offset
            part = _linked([frames[entry] for entry in group if isinstance(entry, int)])
            ((heading, *following),) = format_whole(etype, evalue, part, context, offset)
            lines[-ending:] = following if lines else [heading, *following]
        return [lines]

    formatter.format_exception_as_a_whole = format_exception_as_a_whole


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _linked(frames: list[TracebackType]) -> TracebackType | None:
    following = None
    for frame in reversed(frames):
        following = TracebackType(following, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return following


def _counted(places: list[tuple[CodeType, int]]) -> list[int | str]:
    """The numbers of the frames to show, and notes about those that repeat."""
    entries: list[int | str] = []
    index = 0
    while index < len(places):
        for length in range(1, _MAX_ALTERNATING + 1):
            end = index + length
            while end < len(places) and places[end] == places[end - length]:
                end += 1
            times = (end - index) // length
            if times > _SHOWN_ALIKE:
                which = "frame above is" if length == 1 else f"{length} frames above are"
                note = f"[... the {which} repeated {times - 1} more times ...]\n"
                entries += [*range(index, index + length), note]
                index += length * times
                break
        else:
            entries.append(index)
            index += 1
    return entries


def _without_the_middle(entries: list[int | str]) -> list[int | str]:
    if len(entries) <= _DEEP_FRAMES:
        return entries
    half = _DEEP_FRAMES // 2
    note = f"[... {len(entries) - 2 * half} frames left out ...]\n"
    return [*entries[:half], note, *entries[-half:]]
