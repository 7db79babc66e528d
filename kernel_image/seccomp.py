"""Reading the seccomp filters of another process, and installing them: what Linux offers, through ctypes.

See ptrace(2), PTRACE_SECCOMP_GET_FILTER, and seccomp(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal

_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_DETACH = 17
_PTRACE_SECCOMP_GET_FILTER = 0x420C
_WALL = 0x40000000
_INSTRUCTION_BYTES = 8
_SET_MODE_FILTER = 1
_ALLOW_SPECULATION = 1 << 2
_SECCOMP = {"x86_64": 317, "aarch64": 277}

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long


class _Program(ctypes.Structure):
    """`struct sock_fprog`: the number of instructions, and where they are."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def checked(result: int, what: str) -> int:
    """The result of a call of libc's. Raises OSError, which names the call, for -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def is_supported() -> bool:
    """Whether the numbers of this machine's system calls are known here."""
    return platform.machine() in _SECCOMP


def filters_of(pid: int, count: int) -> list[bytes]:
    """The `count` filters of a process, the oldest first; it is stopped for as long as it takes to read them.

    The caller needs CAP_SYS_ADMIN, and may be under no filter itself. Raises OSError.
    """
    checked(libc.ptrace(_PTRACE_SEIZE, pid, None, None), "PTRACE_SEIZE")
    caught = 0
    try:
        checked(libc.ptrace(_PTRACE_INTERRUPT, pid, None, None), "PTRACE_INTERRUPT")
        _, status = os.waitpid(pid, _WALL)
        # It may have been about to get a signal, and would not get it otherwise: but no SIGSTOP, which PID 1 ignores.
        if status >> 16 == 0 and os.WSTOPSIG(status) != signal.SIGSTOP:
            caught = os.WSTOPSIG(status)
        return [_filter_of(pid, index) for index in reversed(range(count))]
    finally:
        libc.ptrace(_PTRACE_DETACH, pid, None, caught)


def _filter_of(pid: int, index: int) -> bytes:
    """One filter; 0 is the one that was installed last."""
    length = checked(libc.ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index, None), "PTRACE_SECCOMP_GET_FILTER")
    buffer = ctypes.create_string_buffer(length * _INSTRUCTION_BYTES)
    checked(libc.ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index, buffer), "PTRACE_SECCOMP_GET_FILTER")
    return buffer.raw


def install(instructions: bytes, *, allows_speculation: bool) -> None:
    """Put the calling thread under one more filter. It cannot gain privileges any more by then. Raises OSError.

    A filter switches speculative execution off, on some processors, unless it `allows_speculation`.
    """
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // _INSTRUCTION_BYTES, ctypes.addressof(buffer))
    flags = _ALLOW_SPECULATION if allows_speculation else 0
    number = _SECCOMP[platform.machine()]
    result = libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(program))
    checked(result, "seccomp")
