"""Fixtures of the unit tests: one gateway or several in turn, a kernel with its supervisor, a client router."""

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
    """The time-outs of this test's gateways: very short, except those that its `timeouts` marker sets."""
    return replace(
        HURRIED,
        **{name: value for mark in request.node.iter_markers("timeouts") for name, value in mark.kwargs.items()},
    )


@pytest.fixture
async def benches(timeouts: Timeouts) -> AsyncIterator[Benches]:
    """The gateways of a test, one after another; the last one is stopped at the end."""
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
