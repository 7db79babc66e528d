"""What waits for minutes in earnest waits for an instant here; and gateways that come one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from kernel_line import Line
from router_room import Room
from workbench import Bench, Benches

_SOON_S = 0.05
_PAUSES = {
    "sessions.runs.executor": {"INTERRUPT_GRACE_S": _SOON_S, "_KILL_GRACE_S": _SOON_S, "_FILES_PATIENCE_S": _SOON_S},
    "sessions.runs.active_runs": {"_COMMIT_PATIENCE_S": _SOON_S, "_ELSEWHERE_POLL_S": 0.01},
    "sessions.admission": {"_RETRY_S": 0.01, "_BETWEEN_WITHDRAWALS_S": 0.01},
    "sessions.runs.attempts": {"_PAUSE_S": 0.01},
    "sessions.session.registry": {"_CULL_PAUSE_S": 0.01, "_END_PATIENCE_S": 1.0},
    "sessions.service": {"_LAST_BEGINNINGS_S": _SOON_S},
    "sessions.kernels.pool_policy": {"_FIRST_BACKOFF_S": 0.01},
    "sessions.runs.recorder": {"_FIRST_RETRY_S": 0.01, "_BATCH_PAUSE_S": 0.01},
    "sessions.runs.stateless_runs": {"_RETRY_S": 0.01},
    "sessions.kernels.kernel_pool": {"_ASK_AFTER_PAUSE_S": 0.01},
}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, pauses in _PAUSES.items():
        for name, value in pauses.items():
            monkeypatch.setattr(f"{module}.{name}", value)


@pytest.fixture
async def benches() -> AsyncIterator[Benches]:
    """The gateways of a test, one after the other; the last one is ended with it."""
    benches = [await Bench().start()]
    yield benches
    await benches[-1].stop()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """The only gateway of a test."""
    bench = await Bench().start()
    yield bench
    await bench.stop()


@pytest.fixture
async def line() -> Line:
    return Line()


@pytest.fixture
def room() -> Room:
    return Room()
