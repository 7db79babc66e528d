"""How a request ends, as the supervisor reports it: `done` or `died`. Pure.

A sandbox may report anything: values of a wrong type or an absurd size are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sessions.model import Usage


class Cause(StrEnum):
    """Why a kernel died, in the supervisor's words; `gone` when the supervisor died with it.

    `rejected`: there was no kernel, and the supervisor did not take the request. `failed`: it could not handle it; no
    kernel has died.
    """

    OOM = "oom"
    EXITED = "exited"
    SIGNAL = "signal"
    INTERRUPT_IGNORED = "interrupt_ignored"
    RESTART = "restart"
    START = "start"
    GONE = "gone"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Done:
    """A request has ended, and nothing more will come of it."""

    usage: Usage | None
    oom_kills: int
    skipped: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Died:
    """The kernel died before the request ended. `ran` is False when the request had not reached the kernel's turn."""

    cause: Cause
    exit_code: int | None
    signal: int | None
    usage: Usage | None
    skipped: tuple[Mapping[str, Any], ...]
    ran: bool = True


def done_of(fields: Mapping[str, Any]) -> Done:
    """Parse a `done`."""
    usage, oom_kills = _usage(fields.get("usage"))
    return Done(usage, oom_kills, _skipped(fields.get("skipped")))


def died_of(fields: Mapping[str, Any]) -> Died:
    """Parse a `died`, about the request that ran."""
    try:
        cause = Cause(str(fields.get("cause")))
    except ValueError:
        cause = Cause.EXITED
    if cause in (Cause.GONE, Cause.REJECTED, Cause.FAILED):  # a supervisor reports these by other messages
        cause = Cause.EXITED
    usage, _ = _usage(fields.get("usage"))
    exit_code, signal = fields.get("exit_code"), fields.get("signal")
    return Died(
        cause,
        exit_code if type(exit_code) is int else None,
        signal if type(signal) is int else None,
        usage,
        _skipped(fields.get("skipped")),
    )


def usage_of(fields: Mapping[str, Any]) -> Usage | None:
    """Parse a `usage`."""
    return _usage(fields.get("usage"))[0]


def _usage(value: Any) -> tuple[Usage | None, int]:
    """The supervisor's `usage` object, when its numbers are numbers and not absurd; and the OOM kills it counted."""
    fields = value if isinstance(value, dict) else {}
    numbers = [fields.get(name, -1) for name in ("wall_ms", "cpu_ms", "memory_peak_bytes")]
    if not all(type(number) in (int, float) and 0 <= number < 1 << 53 for number in numbers):
        return None, 0
    (wall_ms, cpu_ms, memory_bytes), oom_kills = numbers, fields.get("oom_kills")
    usage = Usage(float(wall_ms), float(cpu_ms), int(memory_bytes))
    return usage, oom_kills if type(oom_kills) is int and oom_kills > 0 else 0


def _skipped(value: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple(item for item in value[:256] if isinstance(item, dict)) if isinstance(value, list) else ()
