"""Kernels that the gateway has forked into this sandbox from outside: asking for one, and looking at it before its use.

One that differs in anything from the sandbox's own processes is killed, and no other is asked for. The gateway hears of
it, and has none forked anywhere any more, if no code can be the reason: when it was the sandbox's first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kernel_image import accounting, parity, protocol
from kernel_image.sandbox_log import log_event

RING_NAME = "ring"
_FIRST_KERNEL = 1
"""Later ones may differ by what code has done to this sandbox, lowering PID 1's limits for one; see prlimit(2)."""
_ANSWER_TIMEOUT_S = 10.0
_FLAGS = 6
_PF_EXITING = 0x4
"""<linux/sched.h>; the flags are the seventh of `accounting.stat_fields`."""


def prefix_of(ipc_dir: str, pid: int) -> Path:
    """What the names of a kernel's sockets begin with; with the suffix `.json`, its connection file's.

    `pid` is the kernel's as the sandbox counts: of several that wait, one alone is meant.
    """
    return Path(ipc_dir, f"z{pid}")


class OutsideForks:
    """Its state: whether kernels are asked for outside at all, and the answers that are awaited, by number."""

    def __init__(
        self, put_control: Callable[..., None], own: parity.Likeness, *, is_wanted: bool, oom_score_adjustment: int
    ) -> None:
        self._put_control = put_control
        self._own = own
        self._oom_score_adjustment = oom_score_adjustment
        self._awaited: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self.is_wanted = is_wanted
        self.failed_preloads: dict[str, str] = {}

    async def fork(self, number: int) -> int:
        """Have a kernel forked that waits for its connection file; returns its process id.

        Raises OSError when there is none. The caller then sees to it that none comes later.
        """
        answer = self._awaited[number] = asyncio.get_running_loop().create_future()
        try:
            self._put_control(protocol.FORK_WANTED, number=number)
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):  # TimeoutError is an OSError
                fields = await answer
        finally:
            del self._awaited[number]
        pid = fields.get("pid")
        if type(pid) is not int or pid <= 1:
            raise OSError(f"no kernel was forked: {fields.get('why')}")
        self.failed_preloads = dict(fields.get("failed_preloads") or {})
        differences = parity.differences(pid, self._own, oom_score_adjustment=self._oom_score_adjustment)
        if differences and has_ended(pid):
            raise OSError("what was forked has ended")
        if differences:
            self.is_wanted = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            why = f"it differs in {', '.join(differences)}"
            if number == _FIRST_KERNEL:
                self._put_control(protocol.FORK_REFUSED, why=why)
            raise OSError(f"what was forked was killed: {why}")
        return pid

    def on_forked(self, fields: Mapping[str, Any]) -> None:
        """The gateway's answer."""
        answer = self._awaited.get(fields.get("number", 0))
        if answer is not None and not answer.done():
            answer.set_result(fields)
        else:
            log_event("fork_not_wanted", number=fields.get("number"))


def has_ended(pid: int) -> bool:
    """Whether a process is gone or on its way, and looks like no other: it is the first to go when memory runs out."""
    try:
        return bool(int(accounting.stat_fields(pid)[_FLAGS]) & _PF_EXITING)
    except OSError:
        return True
