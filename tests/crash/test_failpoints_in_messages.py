"""`kill -9` around each message between gateway and supervisor: nothing is lost, nothing runs twice."""

from __future__ import annotations

import pytest
from failpoint_rig import Crash
from failpoints import SENT, TAKEN

REACHED = [
    *(f"send.{name}" for name in SENT if name != "input_reply"),
    *(f"take.{name}" for name in TAKEN if name not in ("rejected", "input_request")),
]


@pytest.mark.timeout(240)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("step", REACHED)
async def test_a_gateway_killed_before_and_after_it_loses_nothing_and_repeats_nothing(crash: Crash, step: str) -> None:
    await crash.survive(step)
