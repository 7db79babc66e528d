"""When free memory is returned: once after each growth, when it is over."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Iterable

import pytest

from gateway.host import memory
from gateway.host.memory import Growth, resident_bytes, return_free_memory, return_large_blocks

MIB = 1 << 20


def over_at(sizes_mib: Iterable[int]) -> list[int]:
    """The looks at which a growth from 100 MiB was over."""
    growth = Growth(100 * MIB)
    return [number for number, size in enumerate(sizes_mib) if growth.is_over(size * MIB)]


@pytest.mark.parametrize(
    ("sizes_mib", "over"),
    [
        ([100, 101, 100, 110, 110], []),
        ([300, 200, 150, 150], [3]),
        ([300, 120, 110, 110], [3]),
        ([90, 107, 107], [2]),
        ([200 + 10 * number for number in range(60)], [59]),
    ],
)
def test_it_is_over_when_the_process_is_quiet_again_or_after_a_minute(sizes_mib: list[int], over: list[int]) -> None:
    assert over_at(sizes_mib) == over


async def test_free_memory_is_returned_after_a_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100 * MIB, 300 * MIB, 200 * MIB, 200 * MIB, *[120 * MIB] * 100])
    trimmed = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(sizes, 120 * MIB))
    monkeypatch.setattr(memory, "_function", lambda _: lambda _pad: loop.call_soon_threadsafe(trimmed.set))
    task = asyncio.create_task(return_free_memory(0.001))
    await asyncio.wait_for(trimmed.wait(), 30)
    task.cancel()


async def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    return_large_blocks()
    await asyncio.wait_for(return_free_memory(), 30)


def test_a_process_has_memory() -> None:
    assert 5 * MIB < resident_bytes() < 10_000 * MIB
