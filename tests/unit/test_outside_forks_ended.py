"""A kernel that was forked from outside and ends before the supervisor has looked at it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest

from kernel_image import parity, protocol
from kernel_image.outside_forks import OutsideForks


@pytest.mark.parametrize("is_reaped", [False, True])
async def test_a_kernel_that_has_ended_is_no_difference(*, is_reaped: bool) -> None:
    said: list[str] = []
    ended: list[int] = []
    forks: OutsideForks

    def put_control(op: str, **fields: Any) -> None:
        said.append(op)
        if op == protocol.FORK_WANTED:
            pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], {})
            ended.append(pid)
            os.waitid(os.P_PID, pid, os.WEXITED | (0 if is_reaped else os.WNOWAIT))
            asyncio.get_running_loop().call_soon(lambda: forks.on_forked({"number": fields["number"], "pid": pid}))

    forks = OutsideForks(put_control, parity.likeness("self"), is_wanted=True, oom_score_adjustment=1000)
    with pytest.raises(OSError, match="has ended"):
        await forks.fork(1)
    if not is_reaped:
        os.waitpid(ended[0], os.WNOHANG)  # noqa: ASYNC222 - it has ended
    assert said == [protocol.FORK_WANTED]
    assert forks.is_wanted
