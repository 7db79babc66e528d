"""What the container has used, read from its own cgroup (version 1 or 2), or from /proc where it has none.

It decides nothing. A run's memory peak is exact when it is a new record of the container, which the cgroup keeps;
otherwise it is the largest of the samples taken during the run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_CGROUP = Path("/sys/fs/cgroup")
_CLOCK_TICKS_HZ = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Reading(NamedTuple):
    """Counters at one moment: monotonic time, CPU time used, memory now and at its highest, number of OOM kills.

    `own_cpu_s` is the part of `cpu_s` that this process has used itself.
    """

    at_s: float
    cpu_s: float
    memory_bytes: int
    memory_record_bytes: int
    oom_kills: int
    own_cpu_s: float = 0.0

    @property
    def code_cpu_s(self) -> float:
        """The CPU time of everything but this process."""
        return self.cpu_s - self.own_cpu_s


class _Counter:
    """A small cgroup file, kept open because it is read around every run."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def text(self) -> str:
        return os.pread(self._descriptor, 4096, 0).decode("ascii", "replace")

    def number(self) -> int:
        return int(self.text())

    def field(self, name: str) -> int:
        """The value of a line `name value`; 0 when there is no such line."""
        for line in self.text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
        return 0


class CgroupV2:
    """The unified hierarchy, as a container with a cgroup namespace of its own sees it."""

    def __init__(self, root: Path = _CGROUP) -> None:
        self._cpu = _Counter(root / "cpu.stat")
        self._memory = _Counter(root / "memory.current")
        self._record = _Counter(root / "memory.peak") if (root / "memory.peak").exists() else self._memory
        self._events = _Counter(root / "memory.events")

    def read(self) -> Reading:
        """Read all counters."""
        return Reading(
            at_s=time.monotonic(),
            cpu_s=self._cpu.field("usage_usec") / 1e6,
            memory_bytes=self._memory.number(),
            memory_record_bytes=self._record.number(),
            oom_kills=self._events.field("oom_kill"),
            own_cpu_s=time.process_time(),
        )


class CgroupV1:
    """The old hierarchies. Docker mounts them with the container's own group as their root."""

    def __init__(self, root: Path = _CGROUP) -> None:
        self._cpu = _Counter(root / "cpuacct" / "cpuacct.usage")
        self._memory = _Counter(root / "memory" / "memory.usage_in_bytes")
        self._record = _Counter(root / "memory" / "memory.max_usage_in_bytes")
        self._oom = _Counter(root / "memory" / "memory.oom_control")

    def read(self) -> Reading:
        """Read all counters."""
        return Reading(
            at_s=time.monotonic(),
            cpu_s=self._cpu.number() / 1e9,
            memory_bytes=self._memory.number(),
            memory_record_bytes=self._record.number(),
            oom_kills=self._oom.field("oom_kill"),
            own_cpu_s=time.process_time(),
        )


class ProcessTree:
    """The descendants of this process, from /proc: for the `process` engine, and for runtimes without a cgroup file.

    The CPU time of ended processes counts once this process has waited for them. No memory record, no OOM kills.
    """

    def read(self) -> Reading:
        """Read all counters."""
        own = os.times()
        cpu_s = own.children_user + own.children_system
        memory_bytes = 0
        for pid in descendants(os.getpid()):
            try:
                fields = stat_fields(pid)
            except OSError:
                continue
            cpu_s += sum(map(int, fields[11:15])) / _CLOCK_TICKS_HZ
            memory_bytes += int(fields[21]) * _PAGE_BYTES
        return Reading(time.monotonic(), cpu_s, memory_bytes, memory_bytes, 0)


Meter = CgroupV2 | CgroupV1 | ProcessTree


def find_meter(*, own_container: bool) -> Meter:
    """The most exact meter that works here. Only in a container of its own is a process's cgroup its own."""
    if own_container:
        for meter in (CgroupV2, CgroupV1):
            try:
                found = meter()
                found.read()
            except (OSError, ValueError):
                continue
            return found
    return ProcessTree()


class Meterage:
    """Measures usage from a first reading on: `sample` in between, `finish` at the end. Its state is the peak."""

    def __init__(self, first: Reading) -> None:
        self._first = first
        self._peak_bytes = first.memory_bytes

    def sample(self, reading: Reading) -> None:
        """Note a reading in between."""
        self._peak_bytes = max(self._peak_bytes, reading.memory_bytes)

    def finish(self, last: Reading) -> dict[str, float | int]:
        """The `usage` object of a `done` message."""
        self.sample(last)
        first = self._first
        new_record = last.memory_record_bytes > first.memory_record_bytes
        return {
            "wall_ms": round((last.at_s - first.at_s) * 1e3, 3),
            "cpu_ms": round(max(0.0, last.cpu_s - first.cpu_s) * 1e3, 3),
            "memory_peak_bytes": max(last.memory_record_bytes, self._peak_bytes) if new_record else self._peak_bytes,
            "oom_kills": last.oom_kills - first.oom_kills,
        }


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/pid/stat behind the program's name, from `state` on; see proc(5). Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()


def descendants(root: int) -> list[int]:
    """The process ids of all live descendants of `root`, parents before children.

    It looks at the parent of every process: not every Linux has /proc/pid/task/tid/children.
    """
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                parent = int(stat_fields(int(entry.name))[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [root]
    while queue:
        pids = children.get(queue.pop(), [])
        found += pids
        queue += pids
    return found


def applied_limits(root: Path = _CGROUP) -> dict[str, int | None]:
    """The limits of the container's cgroup: memory_bytes, pids, cpu_us per 100,000; None where it has none.

    The gateway compares this with what it asked for: an engine may accept a limit that the machine does not apply.
    """
    return {
        "memory_bytes": _limit(root / "memory.max", root / "memory" / "memory.limit_in_bytes"),
        "pids": _limit(root / "pids.max", root / "pids" / "pids.max"),
        "cpu_us": _limit(root / "cpu.max", root / "cpu" / "cpu.cfs_quota_us"),
    }


def _limit(*paths: Path) -> int | None:
    for path in paths:
        try:
            return int(path.read_text("ascii").split()[0])
        except (OSError, ValueError, IndexError):
            continue
    return None
