"""Who used how much processor time and memory: processes by /proc, containers by their cgroups and labels, the engine.

It knows nothing of how a contestant works inside. Containers are found by label; those that carry one of Cellblock's
but belong to no kernel are what its sandboxes share.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import docker

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LABEL = "cellblock.bench"
GATEWAY_LABEL = "cellblock.gateway"
KERNEL_LABEL = "cellblock.kernel"


def cpu_s(pid: int, *, reaped: bool = True) -> float:
    """Processor time of a process and, with `reaped`, of its children that have ended; 0 once it is gone."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11 : 15 if reaped else 13])) / TICKS_PER_S


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of processes; what several share is divided among them. Those that have ended count nothing."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def tree(pid: int) -> list[int]:
    """A process and all that descends from it."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in (PROC / str(parent) / "task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def machine_cpu_s() -> float:
    """Processor time of everything on this machine, waiting and time that the host took left out."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, (PROC / "stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS_PER_S


class Cgroup:
    """The cgroup of one container, of version 1 or 2."""

    def __init__(self, pid: int) -> None:
        """`pid` is that of the container's first process."""
        self.first_pid = pid
        self._dir = CGROUPS
        for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
            _number, controllers, path = line.split(":", 2)
            if "cpuacct" in controllers.split(","):
                self._dir = next(d for d in (CGROUPS / "cpuacct", CGROUPS / controllers) if d.is_dir()) / path[1:]
                break
            if not controllers:
                self._dir = CGROUPS / path[1:]

    @property
    def parent(self) -> Path:
        """That of all containers, with what those that are gone have used."""
        return self._dir.parent

    def cpu_s(self) -> float:
        """Processor time of all that ever ran in it."""
        return cgroup_cpu_s(self._dir)

    def memory_bytes(self) -> int:
        """What `docker stats` shows: pages that it was the first to use, but for those that a file can replace."""
        if not (self._dir / "cpuacct.usage").exists():
            return _memory_bytes(self._dir, "memory.current", "inactive_file")
        lines = (PROC / str(self.first_pid) / "cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] == "memory")
        return _memory_bytes(CGROUPS / "memory" / path[1:], "memory.usage_in_bytes", "total_inactive_file")

    def pids(self) -> list[int]:
        """Its processes."""
        return [int(pid) for pid in (self._dir / "cgroup.procs").read_text().split()]


def _memory_bytes(path: Path, used: str, replaceable: str) -> int:
    counts = dict(line.split() for line in (path / "memory.stat").read_text().splitlines())
    return int((path / used).read_text()) - int(counts[replaceable])


def cgroup_cpu_s(path: Path) -> float:
    """Processor time of a cgroup and all below it, also of those that were removed."""
    if (path / "cpuacct.usage").exists():
        return int((path / "cpuacct.usage").read_text()) / 1e9
    return int((path / "cpu.stat").read_text().split()[1]) / 1e6


class Engine:
    """The Docker engine's containers by label, and the processor time of the machine that is not a contestant's own."""

    def __init__(self, image: str) -> None:
        """Containers that run now are strangers', and so are those of other images."""
        self.client = docker.APIClient(timeout=120)
        self._image = image
        self._containers: Path | None = None
        self.strangers: set[str] = set()

    def __enter__(self) -> Self:
        self.strangers = {str(found["Id"]) for found in self.client.containers()}
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def containers(self, *labels: str) -> list[dict[str, Any]]:
        """Those that run and have all these labels."""
        found = self.client.containers(filters={"label": [*labels], "ancestor": self._image, "status": "running"})
        return [one for one in found if one["Id"] not in self.strangers]

    def cgroup(self, container: dict[str, Any]) -> Cgroup:
        """Of one of them."""
        return Cgroup(self.client.inspect_container(container["Id"])["State"]["Pid"])

    def sandboxes(self, gateway_id: str) -> list[Cgroup]:
        """Of one gateway's kernels."""
        return [self.cgroup(found) for found in self.containers(f"{GATEWAY_LABEL}={gateway_id}", KERNEL_LABEL)]

    def shared_bytes(self) -> int:
        """Memory of Cellblock's containers that are no kernel's."""
        own = [found for found in self.containers() if any(label.startswith("cellblock.") for label in found["Labels"])]
        own = [found for found in own if KERNEL_LABEL not in found["Labels"] and LABEL not in found["Labels"]]
        return sum(pss_bytes(self.cgroup(found).pids()) for found in own)

    def cpu(self, own: Mapping[str, float]) -> dict[str, float]:
        """So far, by part. `own` has the contestant's processes and this one; what no part has used is the engine's.

        The engine's helpers live for milliseconds, and what they start is reaped by them: nothing but the rest of the
        machine's time has all of it. So nothing else may run on the machine.
        """
        for found in self.containers() if self._containers is None else ():
            with suppress(OSError, docker.errors.NotFound):
                self._containers = self.cgroup(found).parent
        containers = cgroup_cpu_s(self._containers) if self._containers else 0.0
        if self._containers is not None and self._containers.name.endswith(".slice"):
            containers = sum(cgroup_cpu_s(path) for path in self._containers.glob("docker-*.scope"))
        return {**own, "containers": containers, "engine": machine_cpu_s() - containers - sum(own.values())}
