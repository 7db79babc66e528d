"""What a container has used: files as the two cgroup versions write them, and processes as /proc shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_image import accounting
from kernel_image.accounting import CgroupV1, CgroupV2, Meterage, ProcessTree, Reading

MIB = 1 << 20


def reading(at_s: float = 0.0, cpu_s: float = 0.0, memory_bytes: int = 0, record: int = 0) -> Reading:
    return Reading(at_s, cpu_s, memory_bytes, record, 0)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_cgroup_2_is_read_and_read_again(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
        "memory.current": "1000\n",
        "memory.peak": "2000\n",
        "memory.events": "low 0\noom 3\noom_kill 2\n",
    }
    meter = CgroupV2(write(tmp_path, files))
    now = meter.read()
    assert (now.cpu_s, now.memory_bytes, now.memory_record_bytes, now.oom_kills) == (1.5, 1000, 2000, 2)
    write(tmp_path, {"memory.current": "1234\n"})
    assert meter.read().memory_bytes == 1234


def test_an_old_kernel_without_a_memory_record_still_has_the_present(tmp_path: Path) -> None:
    files = {"cpu.stat": "usage_usec 0\n", "memory.current": "77\n", "memory.events": "oom_kill 0\n"}
    assert CgroupV2(write(tmp_path, files)).read().memory_record_bytes == 77


def test_cgroup_1_is_read(tmp_path: Path) -> None:
    files = {
        "cpuacct/cpuacct.usage": "2500000000\n",
        "memory/memory.usage_in_bytes": "10\n",
        "memory/memory.max_usage_in_bytes": "20\n",
        "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    }
    now = CgroupV1(write(tmp_path, files)).read()
    assert (now.cpu_s, now.memory_bytes, now.memory_record_bytes, now.oom_kills) == (2.5, 10, 20, 4)


def test_without_a_container_the_process_tree_is_the_meter() -> None:
    assert isinstance(accounting.find_meter(own_container=False), ProcessTree)


def test_a_new_record_during_the_run_is_the_peak() -> None:
    meterage = Meterage(reading(memory_bytes=5 * MIB, record=10 * MIB))
    meterage.sample(reading(memory_bytes=12 * MIB, record=12 * MIB))
    usage = meterage.finish(reading(at_s=1.5, cpu_s=0.25, memory_bytes=6 * MIB, record=40 * MIB))
    assert usage == {"wall_ms": 1500.0, "cpu_ms": 250.0, "memory_peak_bytes": 40 * MIB, "oom_kills": 0}


def test_without_a_new_record_the_largest_sample_is_the_peak() -> None:
    meterage = Meterage(reading(memory_bytes=5 * MIB, record=100 * MIB))
    meterage.sample(reading(memory_bytes=30 * MIB, record=100 * MIB))
    usage = meterage.finish(reading(memory_bytes=6 * MIB, record=100 * MIB))
    assert usage["memory_peak_bytes"] == 30 * MIB


def test_cpu_time_never_runs_backwards() -> None:
    assert Meterage(reading(cpu_s=5.0)).finish(reading(cpu_s=4.0))["cpu_ms"] == 0.0


def test_a_child_and_its_child_are_descendants_parents_first() -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        found = accounting.descendants(os.getpid())
        assert found.index(child.pid) < found.index(grandchild)
        assert os.getpid() not in found
        assert accounting.descendants(child.pid) == [grandchild]
        os.kill(grandchild, 9)
    assert not {child.pid, grandchild} & set(accounting.descendants(os.getpid()))


def test_the_process_tree_counts_memory_and_time_of_children() -> None:
    code = "x = bytearray(80 << 20)\nfor i in range(3_000_000): pass\nprint(flush=True)\ninput()"
    before = ProcessTree().read()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        during = ProcessTree().read()
        child.communicate(b"\n")
    after = ProcessTree().read()
    assert during.memory_bytes - before.memory_bytes > 80 * MIB
    assert during.cpu_s > before.cpu_s
    assert after.cpu_s >= during.cpu_s
    assert after.memory_bytes < during.memory_bytes


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"memory.max": "1073741824\n", "pids.max": "256\n", "cpu.max": "150000 100000\n"},
            {"memory_bytes": 1 << 30, "pids": 256, "cpu_us": 150_000},
        ),
        (
            {"memory.max": "max\n", "pids.max": "max\n", "cpu.max": "max 100000\n"},
            {"memory_bytes": None, "pids": None, "cpu_us": None},
        ),
        (
            {"memory/memory.limit_in_bytes": "5\n", "pids/pids.max": "6\n", "cpu/cpu.cfs_quota_us": "-1\n"},
            {"memory_bytes": 5, "pids": 6, "cpu_us": -1},
        ),
        ({}, {"memory_bytes": None, "pids": None, "cpu_us": None}),
    ],
)
def test_limits_are_what_the_cgroup_says(
    tmp_path: Path, files: dict[str, str], expected: dict[str, int | None]
) -> None:
    assert accounting.applied_limits(write(tmp_path, files)) == expected
