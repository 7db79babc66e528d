"""Whether a container really gets what we ask for: what a throw-away container reads, and what supervisors say.

An engine may accept a limit and not apply it (a missing cgroup controller, another runtime): asking is not enough.
"""

from __future__ import annotations

import json
import secrets
import socket
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker.errors
from docker.api.client import APIClient

from kernel_image.protocol import SOCKET_NAME
from sessions.errors import EngineUnavailable
from sessions.model import GatewayId, KernelId
from sessions.ports import LaunchSpec
from sessions.provisioners.docker.container import GATEWAY_DIR, WORK_DIR, container_config, container_name
from sessions.provisioners.docker.engine import DockerEngine
from sessions.provisioners.docker.host_paths import HostPaths, find_host_paths
from sessions.settings import EngineSettings, Limits

_PYTHON = "/opt/cellblock/venv/bin/python"
_TIMEOUT_S = 30
_OWNER = "doctor"
_NO_MEMORY_LIMIT = "the memory limit is not applied"
_NO_PIDS_LIMIT = "the limit on processes is not applied"
_NO_CPU_LIMIT = "the CPU limit is not applied"
_CPU_PERIOD_US = 100_000

# Runs inside; cgroup v2 first, then v1. A file that is not there stays None, which counts as not applied.
_PROBE = f"""
import json, os, resource, socket
def read(*paths):
    for path in paths:
        try:
            return open("/sys/fs/cgroup/" + path).read().split()
        except OSError:
            pass
def works(action):
    try:
        action()
    except OSError:
        return False
    return True
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
work = os.statvfs("{WORK_DIR}")
print(json.dumps({{
    "memory": read("memory.max", "memory/memory.limit_in_bytes"),
    "memory and swap": read("memory/memory.memsw.limit_in_bytes"),
    "swap": read("memory.swap.max"),
    "pids": read("pids.max", "pids/pids.max"),
    "cpu": read("cpu.max") or [*(read("cpu/cpu.cfs_quota_us") or []), *(read("cpu/cpu.cfs_period_us") or [])],
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    "fsize": resource.getrlimit(resource.RLIMIT_FSIZE)[1],
    "disk": work.f_blocks * work.f_frsize,
    "inodes": work.f_files,
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privs": status.get("NoNewPrivs", "").strip(),
    "root_writable": os.access("/", os.W_OK) or works(lambda: open("/opt/cellblock/x", "w")),
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "socket": works(lambda: socket.socket(socket.AF_UNIX).connect("{GATEWAY_DIR}/{SOCKET_NAME}")),
    "socket_dir_writable": works(lambda: open("{GATEWAY_DIR}/x", "w")),
}}))
"""


async def read_back(
    engine: DockerEngine, settings: EngineSettings, limits: Limits, directory: Path | None = None
) -> tuple[str, ...]:
    """What a container of ours does not get on this machine, as plain phrases; empty where all is well.

    Needs the kernel image of `settings`, and a `directory` in which to make one with a socket: by default that for
    temporary files. Takes about half a second. Raises EngineUnavailable, SetUpFailed.
    """
    facts = await engine.facts()
    directory = directory or Path(tempfile.gettempdir())
    paths = await find_host_paths(engine, directory, settings.kernel_image, _OWNER)
    uid = secrets.choice(facts.uids)
    try:
        report = await engine.call(lambda client: _probe(client, settings, limits, uid, paths))
    except docker.errors.APIError as error:
        raise EngineUnavailable(f"The Docker engine cannot run the kernel image: {error.explanation}") from error
    return shortfalls(report, limits, network=settings.network)


def shortfalls(report: Mapping[str, Any], limits: Limits, *, network: str) -> tuple[str, ...]:
    """Compare what the probe read with what was asked for. Pure."""
    memory = [str(limits.memory_bytes)]
    # v1 limits memory and swap together, v2 swap alone.
    swap_applies = report["memory and swap"] == memory or report["swap"] == ["0"]
    quota, period = report["cpu"] if len(report["cpu"]) == 2 else ("max", "1")  # noqa: PLR2004 - quota and period
    cpu_applies = quota.isdigit() and int(quota) <= round(limits.cpus * int(period))
    checks = {
        _NO_MEMORY_LIMIT: report["memory"] == memory,
        "swap is not counted towards the memory limit": swap_applies,
        _NO_PIDS_LIMIT: report["pids"] == [str(limits.pids)],
        _NO_CPU_LIMIT: cpu_applies,
        "the limit on open files is not applied": report["nofile"] == limits.nofile,
        "the limit on file sizes is not applied": report["fsize"] == limits.disk_bytes,
        "the disk limit is not applied": 0 < report["disk"] <= limits.disk_bytes + (1 << 20),
        "the limit on the number of files is not applied": 0 < report["inodes"] <= limits.inodes,
        "capabilities are not dropped": report["capabilities"] == 0,
        "new privileges are not ruled out": report["no_new_privs"] == "1",
        "the root file system can be written to": not report["root_writable"],
        "there is a network": network != "none" or report["interfaces"] in ([], ["lo"]),
        "the gateway's socket cannot be reached (gVisor's runsc needs `--host-uds=open`)": report["socket"],
        "the gateway's socket directory can be written to": not report["socket_dir_writable"],
    }
    return tuple(phrase for phrase, is_met in checks.items() if not is_met)


def missing_limits(seen: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    """Compare the limits that a supervisor says its container has with what was asked for. Pure."""
    most = {
        "memory_bytes": (limits.memory_bytes, _NO_MEMORY_LIMIT),
        "pids": (limits.pids, _NO_PIDS_LIMIT),
        "cpu_us": (round(limits.cpus * _CPU_PERIOD_US), _NO_CPU_LIMIT),
    }
    return tuple(phrase for name, (asked, phrase) in most.items() if not _is_within(seen.get(name), asked))


def _is_within(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def _probe(
    client: APIClient, settings: EngineSettings, limits: Limits, uid: int, paths: HostPaths
) -> Mapping[str, Any]:
    """Run the probe in a container like any other, but for its program and its log. Blocks. Raises APIError."""
    with (
        tempfile.TemporaryDirectory(prefix="cb-", dir=paths.inside) as directory,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        path = Path(directory)
        path.chmod(0o755)
        listening.bind(str(path / SOCKET_NAME))
        (path / SOCKET_NAME).chmod(0o666)
        listening.listen(1)
        spec = LaunchSpec(KernelId(str(uuid.uuid4())), GatewayId(_OWNER), "none", paths.of(path), limits)
        config = container_config(spec, settings, uid=uid)
        config["Entrypoint"] = [_PYTHON, "-I", "-c", _PROBE]
        config["HostConfig"] |= {"AutoRemove": False, "LogConfig": {"Type": "json-file"}}
        container_id = client.create_container_from_config(config, container_name(uid))["Id"]  # type: ignore[no-untyped-call]
        try:
            client.start(container_id)
            client.wait(container_id, timeout=_TIMEOUT_S)
            output = client.logs(container_id, stdout=True, stderr=True)
        finally:
            with suppress(docker.errors.APIError):
                client.remove_container(container_id, force=True, v=True)
    try:
        report: Mapping[str, Any] = json.loads(output)
    except ValueError as error:
        raise EngineUnavailable("The kernel image does not run here: rebuild it with `cellblock build`.") from error
    return report
