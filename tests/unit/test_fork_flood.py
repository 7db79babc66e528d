"""A supervisor that wants more forks than a kernel can need, and forks that are under way when the gateway stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from doubles import MemoryEngine, until

from gateway.host.clock import SystemClock
from kernel_image import protocol
from sessions.environment import Environment
from sessions.kernels.kernel import Kernel
from sessions.kernels.sandboxes import Sandboxes
from sessions.model import GatewayId, KernelId
from sessions.ports import ForkedKernel
from sessions.settings import Limits, Timeouts
from sessions.testing.memory_store import MemoryStore


class SlowEngine(MemoryEngine):
    """Forks when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.goes_on = asyncio.Event()

    async def fork(self, kernel_id: KernelId, number: int) -> ForkedKernel:
        del kernel_id
        self.asked.append(number)
        await self.goes_on.wait()
        return ForkedKernel(7, {})


@pytest.fixture
def engine() -> SlowEngine:
    return SlowEngine()


@pytest.fixture
def sandboxes(engine: SlowEngine, timeouts: Timeouts) -> Sandboxes:
    environment = Environment(
        provisioner=engine,
        switchboard=engine,
        store=MemoryStore(),
        gateway_id=GatewayId("g"),
        limits=Limits(),
        preload=(),
        credential_of=lambda kernel_id: f"secret of {kernel_id}",
        clock=SystemClock(),
        timeouts=timeouts,
    )
    return Sandboxes(environment)


def answers(engine: SlowEngine, kernel: Kernel) -> list[dict[str, Any]]:
    return [control for control in engine.dialled[kernel.kernel_id][1].controls if control["op"] == protocol.FORKED]


async def test_forks_for_one_sandbox_come_one_at_a_time(engine: SlowEngine, sandboxes: Sandboxes) -> None:
    kernel, other = sandboxes.make_kernel("python3"), sandboxes.make_kernel("python3")
    await sandboxes.bring_up(kernel)
    await sandboxes.bring_up(other)
    assert kernel.on_fork_wanted is not None
    assert other.on_fork_wanted is not None
    for number in range(1, 101):
        kernel.on_fork_wanted(number)
    other.on_fork_wanted(1)
    await until(lambda: engine.asked == [1, 1])
    assert [answer["number"] for answer in answers(engine, kernel)] == [*range(2, 101)]
    assert all("why" in answer for answer in answers(engine, kernel))
    engine.goes_on.set()
    await until(lambda: answers(engine, kernel)[-1].get("pid") == 7)
    await until(lambda: not sandboxes._forking)
    kernel.on_fork_wanted(101)
    await until(lambda: engine.asked == [1, 1, 101])
    await sandboxes.stop()


async def test_one_fork_after_the_other_is_no_way_to_have_many(engine: SlowEngine, sandboxes: Sandboxes) -> None:
    kernel = sandboxes.make_kernel("python3")
    await sandboxes.bring_up(kernel)
    assert kernel.on_fork_wanted is not None
    engine.goes_on.set()
    begun_s = asyncio.get_running_loop().time()
    for number in range(1, 17):
        kernel.on_fork_wanted(number)
        await until(lambda: not sandboxes._forking)
    assert engine.asked == [*range(1, 17)]
    assert asyncio.get_running_loop().time() - begun_s >= 0.5
    await sandboxes.stop()


async def test_a_fork_ends_with_the_gateway(engine: SlowEngine, sandboxes: Sandboxes) -> None:
    kernel = sandboxes.make_kernel("python3")
    await sandboxes.bring_up(kernel)
    assert kernel.on_fork_wanted is not None
    kernel.on_fork_wanted(1)
    await until(lambda: engine.asked == [1])
    sandboxes.discard(kernel)
    await sandboxes.stop()
    assert not len(sandboxes._tasks)
