"""`kill -9` around each commit, each launch and each end of a sandbox: nothing is lost, nothing runs twice."""

from __future__ import annotations

import pytest
from failpoint_rig import Crash
from failpoints import ENGINE, STORE

REACHED = [*(f"store.{name}" for name in STORE), *(f"engine.{name}" for name in ENGINE)]


@pytest.mark.timeout(240)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("step", REACHED)
async def test_a_gateway_killed_before_and_after_it_loses_nothing_and_repeats_nothing(crash: Crash, step: str) -> None:
    await crash.survive(step)
