"""The supervisor's hardening before the first kernel starts: no tracing, no secret in the environment, orphans adopted.

Linux system calls through ctypes; it keeps no state.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

OOM_SCORE_ADJUSTMENT = 1000
"""When memory runs out, the kernel and its children go before the supervisor and the fork server, which have 500.

The largest there is; see proc(5), /proc/pid/oom_score_adj.
"""

# <sys/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def forbid_tracing() -> None:
    """Make this process non-dumpable: the same uid can then neither trace it nor read its memory, environment or fds.

    See prctl(2) PR_SET_DUMPABLE and ptrace(2) "Ptrace access mode checking". Forked children inherit it, an exec of
    a readable program undoes it.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def allow_tracing() -> None:
    """Undo `forbid_tracing`, for a forked kernel: debuggers and /proc/self belong to the user there."""
    _prctl(_PR_SET_DUMPABLE, 1)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends, as PID 1 is by nature."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have Linux kill this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def offer_to_oom_killer(pid: int | None = None) -> None:
    """Have Linux end a process first when memory runs out, this one unless another is meant."""
    with contextlib.suppress(OSError), open(f"/proc/{pid or 'self'}/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(str(OOM_SCORE_ADJUSTMENT))


def write_over(variable: str, value: str) -> None:
    """Change what /proc/<pid>/environ shows of a variable of this program's start. `os.environ` is not told.

    Raises ValueError when it was started with a shorter value, for there is no more room.
    """
    raw, room = os.fsencode(value), len(os.fsencode(os.environ[variable]))
    if len(raw) > room:
        raise ValueError(f"{variable} has room for {room} bytes")
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    ctypes.memmove(libc.getenv(variable.encode()), raw.ljust(room, b"\0"), room)


def pop_secret(variable: str) -> str:
    """Remove a variable from the environment, and overwrite the memory where exec(2) had put it.

    Otherwise /proc/<pid>/environ would always show it. Raises KeyError when it is not set.
    """
    value = os.environ[variable]
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    address = libc.getenv(variable.encode())
    if address:
        ctypes.memset(address, ord("x"), len(os.fsencode(value)))
    del os.environ[variable]
    return value
