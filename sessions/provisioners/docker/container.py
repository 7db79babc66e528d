"""What every kernel container looks like: the whole of its hardening in one dictionary, for Docker's create call.

Pure: it decides, provisioner.py acts. docs/security.md says why each line is there. The zygote's container is in
zygote_container.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernel_image.protocol import SETTINGS_VARIABLE, SOCKET_NAME
from sessions.ports import LaunchSpec
from sessions.provisioners.supervisor_settings import USER_NAME, supervisor_settings
from sessions.settings import EngineSettings, Limits

KERNEL_LABEL = "cellblock.kernel"
GATEWAY_LABEL = "cellblock.gateway"
UID_LABEL = "cellblock.uid"

WORK_DIR = "/work"
HOME_DIR = "/tmp/home"  # noqa: S108 - inside the container, on a tmpfs of its own
IPC_DIR = "/run/ipc"
GATEWAY_DIR = "/run/gateway"
HOST_NAME = "sandbox"

WIDE_UIDS = range(1_900_000_000, 2_147_000_000)
"""Nobody hands these out: https://systemd.io/UIDS-GIDS/ lists them as unused."""

MAPPED_UIDS = range(1_000, 60_000)
"""Where Docker maps users (rootless, userns-remap), a container has 65,536 ids and no more."""

_SHM_BYTES = 64 << 20
_SHM_INODES = 4_096
_IPC_BYTES = 1 << 20
_IPC_INODES = 64
_OOM_SCORE = 500
# Of the 1024 that all else has by default; the engine makes a weight of it on cgroup v2.
_CPU_SHARES = 128
_NANO = 1_000_000_000
KEPT_LOG = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}


USER = {"HOME": HOME_DIR, "USER": USER_NAME, "LOGNAME": USER_NAME}
"""There is no passwd entry for the uid, so what programs look up there is said here."""


def container_name(uid: int) -> str:
    """Docker keeps names unique, so the name claims the uid, among all gateways on this engine, in one step."""
    return f"cellblock-{uid}"


def container_config(spec: LaunchSpec, settings: EngineSettings, *, uid: int, zygote: bool = False) -> dict[str, Any]:
    """The body of `POST /containers/create` for one sandbox. With a `zygote`, its kernels are forked by that."""
    return {
        "Image": settings.kernel_image,
        "User": f"{uid}:{uid}",
        "Hostname": HOST_NAME,
        "WorkingDir": WORK_DIR,
        # As PID 1 the supervisor heeds no SIGTERM, which code in there could send too: `docker stop` would wait.
        "StopSignal": "SIGKILL",
        "Env": [f"{name}={value}" for name, value in _environment(spec, settings, zygote=zygote).items()],
        "Labels": {KERNEL_LABEL: spec.kernel_id, GATEWAY_LABEL: spec.gateway_id, UID_LABEL: str(uid)},
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "OpenStdin": False,
        "Tty": False,
        # Halves the time to start, by leaving out a network set-up that `none` has no use for.
        "NetworkDisabled": settings.network == "none",
        "HostConfig": {
            **_isolation(settings),
            **_resources(spec.limits),
            "Tmpfs": _tmpfs(spec.limits, uid),
            # The socket can be connected to, but nothing can be planted beside it. A `Binds` entry would create a
            # missing directory, as root; a mount fails. The engine's own choice of propagation is private, and what
            # it insists on where it is itself the owner: slave, in volumes.
            "Mounts": [{"Type": "bind", "Source": str(spec.socket_dir), "Target": GATEWAY_DIR, "ReadOnly": True}],
            "AutoRemove": True,
            "LogConfig": KEPT_LOG if settings.sandbox_log else {"Type": "none"},
        },
    }


def _environment(spec: LaunchSpec, engine: EngineSettings, *, zygote: bool) -> Mapping[str, str]:
    settings = supervisor_settings(
        spec, gateway=f"unix:{GATEWAY_DIR}/{SOCKET_NAME}", work_dir=WORK_DIR, ipc_dir=IPC_DIR, home_dir=HOME_DIR
    )
    return {**USER, SETTINGS_VARIABLE: settings._replace(zygote=zygote, log=engine.sandbox_log).to_json()}


def _isolation(settings: EngineSettings) -> dict[str, Any]:
    """Docker's seccomp and AppArmor profiles and its masked paths apply by not being named."""
    isolation: dict[str, Any] = {
        "ReadonlyRootfs": True,
        "NetworkMode": settings.network,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        # Our own tmpfs on /dev/shm instead of Docker's, which has no inode limit.
        "IpcMode": "none",
        # On cgroup v1 the default is the host's namespace, which shows the names of everybody's containers.
        "CgroupnsMode": "private",
        "Init": False,
        "ExtraHosts": [f"{HOST_NAME}:127.0.0.1"],
    }
    if settings.runtime:
        isolation["Runtime"] = settings.runtime
    return isolation


def _resources(limits: Limits) -> dict[str, Any]:
    return {
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "NanoCpus": int(limits.cpus * _NANO),
        "CpuShares": _CPU_SHARES,
        "PidsLimit": limits.pids,
        "OomScoreAdj": _OOM_SCORE,
        "Ulimits": ulimits(limits),
    }


def ulimits(limits: Limits) -> list[dict[str, Any]]:
    """The limits of each process, as Docker takes them."""
    values = (("nofile", limits.nofile), ("core", 0), ("fsize", limits.disk_bytes))
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in values]


def _tmpfs(limits: Limits, uid: int) -> Mapping[str, str]:
    """Everything that can be written to. All of it counts towards the memory limit too."""
    owner = f"nosuid,nodev,mode=0700,uid={uid},gid={uid}"
    disk = f"size={limits.disk_bytes},nr_inodes={limits.inodes}"
    return {
        WORK_DIR: f"rw,exec,{owner},{disk}",
        "/tmp": f"rw,exec,{owner},{disk}",  # noqa: S108 - the container's
        IPC_DIR: f"rw,noexec,{owner},size={_IPC_BYTES},nr_inodes={_IPC_INODES}",
        "/dev/shm": f"rw,noexec,{owner},size={_SHM_BYTES},nr_inodes={_SHM_INODES}",  # noqa: S108 - the container's
    }
