"""`kill -9` around each message between gateway and supervisor: nothing is lost, nothing runs twice."""

from __future__ import annotations

import pytest
from failpoint_rig import Crash
from failpoints import SENT, TAKEN

WARM = 0
REACHED = [
    *(f"send.{name}.{when}" for name in SENT if name != "input_reply" for when in ("before", "after")),
    *(
        f"take.{name}.{when}"
        for name in TAKEN
        if name not in ("rejected", "input_request")
        for when in ("before", "after")
    ),
]


@pytest.mark.timeout(240)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("failpoint", REACHED)
async def test_a_gateway_killed_there_loses_nothing_and_repeats_nothing(crash: Crash, failpoint: str) -> None:
    await crash.survive(failpoint)
