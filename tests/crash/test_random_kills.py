"""Random `kill -9` of a gateway with live sessions in real containers. `make crash-test ROUNDS=…` for more."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from crash_rig import CrashableGateway
from random_kills import crash_again_and_again

ROUNDS = 15


@pytest.mark.docker
@pytest.mark.timeout(900)
async def test_random_kills_lose_no_session_no_run_and_no_line(kernel_image: str) -> None:
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    gateway = CrashableGateway(directory, "docker", CELLBLOCK_ENGINE_KERNEL_IMAGE=kernel_image, CELLBLOCK_POOL_MAX="8")
    seed = random.SystemRandom().randrange(1 << 32)
    try:
        report = await crash_again_and_again(gateway, ROUNDS, seed)
    finally:
        gateway.stop()
    assert report.is_clean(), "\n".join([f"seed {seed}", str(report), *report.complaints])
    assert report.rounds == ROUNDS
    assert report.answers >= ROUNDS // 5, "the agents had their turns"
    assert report.resumed_streams > 0, "some streams were cut and went on"
    shutil.rmtree(directory)
