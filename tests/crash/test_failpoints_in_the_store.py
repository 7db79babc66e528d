"""`kill -9` around each commit, each launch and each end of a sandbox: nothing is lost, nothing runs twice."""

from __future__ import annotations

import pytest
from failpoint_rig import Crash
from failpoints import ENGINE, STORE

WARM = 1
REACHED = [
    *(f"store.{name}.{when}" for name in STORE for when in ("before", "after")),
    *(f"engine.{name}.{when}" for name in ENGINE for when in ("before", "after")),
]


@pytest.mark.timeout(240)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("failpoint", REACHED)
async def test_a_gateway_killed_there_loses_nothing_and_repeats_nothing(crash: Crash, failpoint: str) -> None:
    await crash.survive(failpoint)
