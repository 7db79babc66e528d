"""The gateways that unit tests talk to, alone or one after the other, and the parts that they put on a bench."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from kernel_line import Line
from router_room import Room
from workbench import HURRIED, Bench, Benches

from sessions.settings import Timeouts


@pytest.fixture
def timeouts(request: pytest.FixtureRequest) -> Timeouts:
    """How long a gateway of this test waits: an instant, but for what its `timeouts` marker says."""
    return replace(
        HURRIED,
        **{name: value for mark in request.node.iter_markers("timeouts") for name, value in mark.kwargs.items()},
    )


@pytest.fixture
async def benches(timeouts: Timeouts) -> AsyncIterator[Benches]:
    """The gateways of a test, one after the other; the last one is ended with it."""
    benches = [await Bench(timeouts=timeouts).start()]
    yield benches
    await benches[-1].stop()


@pytest.fixture
async def bench(timeouts: Timeouts) -> AsyncIterator[Bench]:
    """The only gateway of a test."""
    bench = await Bench(timeouts=timeouts).start()
    yield bench
    await bench.stop()


@pytest.fixture
async def line(timeouts: Timeouts) -> Line:
    return Line(timeouts)


@pytest.fixture
def room() -> Room:
    return Room()
