"""What the zygote's container looks like, for Docker's create call. docs/security.md argues for its rights. Pure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kernel_image.protocol import SETTINGS_VARIABLE, SOCKET_NAME, ZygoteSettings
from sessions.ports import LaunchSpec
from sessions.provisioners.docker.container import HOME_DIR, HOST_NAME, IPC_DIR, KEPT_LOG, USER, WORK_DIR, ulimits
from sessions.settings import EngineSettings

ZYGOTE_LABEL = "cellblock.zygote"
"""The id of the gateway whose zygote it is."""

ZYGOTE_DIR = "/run/zygote"
_CGROUPS_DIR = "/run/cgroups"
_PYTHON = "/opt/cellblock/venv/bin/python"
_PIDS = 256

_CAPABILITIES = (
    "SYS_ADMIN",  # setns(2), and reading seccomp filters
    "SYS_PTRACE",  # another process's namespaces and filters
    "SYS_CHROOT",  # setns(2) into a mount namespace
    "SETUID",
    "SETGID",
    "SETPCAP",  # dropping capabilities from the bounding set
    "DAC_OVERRIDE",  # the gateway's own directory, whose owner need not be root
    "CHOWN",  # its socket, likewise
)


def zygote_config(spec: LaunchSpec, settings: EngineSettings, directory: Path, *, uid: int) -> dict[str, Any]:
    """The body of `POST /containers/create` for the zygote that forks kernels into sandboxes such as that of `spec`.

    `directory` is where its socket will be, as the engine calls it; `uid` is the gateway's own. docs/security.md argues
    for these rights.
    """
    zygote = ZygoteSettings(
        socket=f"{ZYGOTE_DIR}/{SOCKET_NAME}",
        uid=uid,
        cgroup_root=_CGROUPS_DIR,
        work_dir=WORK_DIR,
        ipc_dir=IPC_DIR,
        home_dir=HOME_DIR,
        preload=spec.preload,
        threads=math.ceil(spec.limits.cpus),
        orphan_timeout_s=spec.orphan_timeout_s,
    )
    return {
        "Image": settings.kernel_image,
        "Entrypoint": [_PYTHON, "-I", "-m", "kernel_image.zygote"],
        "User": "0:0",
        "Hostname": HOST_NAME,
        "WorkingDir": "/",
        "StopSignal": "SIGKILL",
        "Env": [f"{name}={value}" for name, value in {**USER, SETTINGS_VARIABLE: zygote.to_json()}.items()],
        "Labels": {ZYGOTE_LABEL: spec.gateway_id},
        "NetworkDisabled": True,
        "HostConfig": {
            "ReadonlyRootfs": True,
            "NetworkMode": "none",
            "PidMode": "host",
            "IpcMode": "none",
            "CgroupnsMode": "host",
            "CapDrop": ["ALL"],
            "CapAdd": list(_CAPABILITIES),
            "SecurityOpt": ["no-new-privileges", "seccomp=unconfined", "apparmor=unconfined"],
            "Privileged": False,
            "Init": False,
            "Ulimits": ulimits(spec.limits),
            "PidsLimit": _PIDS,
            "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,mode=0700,size=64m"},  # noqa: S108 - the container's
            "Mounts": [
                {"Type": "bind", "Source": "/sys/fs/cgroup", "Target": _CGROUPS_DIR, "ReadOnly": False},
                {"Type": "bind", "Source": str(directory), "Target": ZYGOTE_DIR, "ReadOnly": False},
            ],
            "AutoRemove": True,
            "LogConfig": KEPT_LOG,
        },
    }
