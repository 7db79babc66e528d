"""What is told of the CPU time that is used between runs, by a meter that the test sets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from doubles import until

from kernel_image import between_runs
from kernel_image.accounting import CgroupV2, Reading
from kernel_image.between_runs import BetweenRuns


class Meter:
    """What the container has used so far, in seconds, and what of it the supervisor has."""

    def __init__(self) -> None:
        self.cpu_s = 10.0
        self.own_cpu_s = 0.0

    def read(self) -> Reading:
        return Reading(0.0, self.cpu_s, 7, 7, 0, self.own_cpu_s)


class Told(list[float]):
    """The milliseconds that were told."""

    def __call__(self, usage: dict[str, Any]) -> None:
        assert (usage["wall_ms"], usage["memory_peak_bytes"]) == (0, 7)
        self.append(usage["cpu_ms"])


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def between(meter: Meter, told: Told, monkeypatch: pytest.MonkeyPatch) -> BetweenRuns:
    monkeypatch.setattr(between_runs, "_FIRST_LOOK_S", 0.01)
    monkeypatch.setattr(between_runs, "_LONGEST_PAUSE_S", 0.02)
    return BetweenRuns(meter, told)  # type: ignore[arg-type]


async def test_what_is_used_between_two_runs_is_told_and_what_runs_use_is_not(
    between: BetweenRuns, meter: Meter, told: Told
) -> None:
    between.begin(meter.read())
    meter.cpu_s += 2.0
    between.end(meter.read())
    meter.cpu_s += 100.0
    between.begin(meter.read())
    meter.cpu_s += 1.0
    between.end(meter.read())
    assert told == [2000.0, 1000.0]


async def test_it_is_told_while_nothing_runs(between: BetweenRuns, meter: Meter, told: Told) -> None:
    between.begin(meter.read())
    for count in (1, 2, 3):
        meter.cpu_s += 0.5
        await until(lambda count=count: len(told) == count)  # type: ignore[misc]
    await asyncio.sleep(0.05)
    between.end(meter.read())
    assert told == [500.0, 500.0, 500.0]


async def test_little_is_kept_until_it_is_worth_telling(between: BetweenRuns, meter: Meter, told: Told) -> None:
    for _ in range(10):
        between.begin(meter.read())
        meter.cpu_s += 0.02
        between.end(meter.read())
        meter.cpu_s += 5.0
    assert told == [60.0, 60.0, 60.0]


async def test_what_the_supervisor_uses_does_not_count(between: BetweenRuns, meter: Meter, told: Told) -> None:
    between.begin(meter.read())
    meter.cpu_s += 3.0
    meter.own_cpu_s += 2.5
    between.end(meter.read())
    assert told == [500.0]


async def test_before_the_first_run_and_after_a_second_end_nothing_begins_anew(
    between: BetweenRuns, meter: Meter, told: Told
) -> None:
    between.end(meter.read())
    meter.cpu_s += 1.0
    between.begin(meter.read())
    meter.cpu_s += 1.0
    between.begin(meter.read())  # a kernel has died while nothing ran
    meter.cpu_s += 1.0
    between.end(meter.read())
    assert told == [2000.0]


def test_a_cgroup_knows_how_much_of_it_is_this_process(tmp_path: Any) -> None:
    files = {"cpu.stat": "usage_usec 900000000\n", "memory.current": "7\n", "memory.events": "oom_kill 0\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    now = CgroupV2(tmp_path).read()
    assert 0 < now.own_cpu_s < 900
    assert now.code_cpu_s == now.cpu_s - now.own_cpu_s
