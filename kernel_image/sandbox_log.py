"""The sandbox's own log: one JSON line on standard error for each thing that happens to the supervisor.

It tells of links, kernel processes and failures, never code, output or secrets. Docker keeps it where
`engine.sandbox_log` says so; elsewhere the supervisor writes none, since each line wakes two processes of Docker's. The
process engine keeps it always. Kernels have another standard error from the start; in the process engine, which
isolates nothing, they could open the file.
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_STDERR = 2
_MAX_ERROR_CHARACTERS = 1000
_MAX_TRACEBACK_CHARACTERS = 8000


_is_read = True


def log_event(event: str, error: BaseException | None = None, *, with_traceback: bool = True, **fields: Any) -> None:
    """Write one line. `error` adds its type and message, and the traceback unless it is an expected one."""
    if not _is_read:
        return
    line = {"timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
    if error is not None:
        line["error"] = describe(error)
        if with_traceback:
            line["exception"] = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK_CHARACTERS:]
    with suppress(OSError):  # nobody reads it
        os.write(_STDERR, json.dumps(line).encode() + b"\n")


def write_nothing() -> None:
    """Write no line from now on: nobody reads them."""
    global _is_read  # noqa: PLW0603 - one process has one standard error
    _is_read = False


def never_wait() -> None:
    """Drop lines that nobody reads: while dockerd is down, its containers run on, and their log is a full pipe."""
    os.set_blocking(_STDERR, False)


def describe(error: BaseException) -> str:
    """The exception's type and message."""
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS]


def log_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler: what a callback raised, or a task that nobody awaits."""
    del loop
    log_event("exception_in_callback", context.get("exception"), message=str(context.get("message")))
