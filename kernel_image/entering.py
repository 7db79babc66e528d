"""How a process gets into a container that runs already, and becomes no more than the container's own processes.

Linux, through ctypes and /proc. What has been read of a container comes from its first process, which has not run any
code of a client's; whether the result is right is checked from inside, in parity.py.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernel_image import seccomp
from kernel_image.seccomp import checked, libc

_NAMESPACES = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
"""<linux/sched.h>, CLONE_NEW*. Not the user namespace: whoever enters one is no longer root outside."""

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_FIRST_OPEN_FILE = 3
_PROGRAM_TIMEOUT_S = 5.0
_POLL_S = 0.001
_MOST_OPEN_FILES = 1 << 30
_LIMITS = {
    "Max cpu time": resource.RLIMIT_CPU,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max data size": resource.RLIMIT_DATA,
    "Max stack size": resource.RLIMIT_STACK,
    "Max core file size": resource.RLIMIT_CORE,
    "Max resident set": resource.RLIMIT_RSS,
    "Max processes": resource.RLIMIT_NPROC,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max locked memory": resource.RLIMIT_MEMLOCK,
    "Max address space": resource.RLIMIT_AS,
    "Max file locks": 10,
    "Max pending signals": resource.RLIMIT_SIGPENDING,
    "Max msgqueue size": resource.RLIMIT_MSGQUEUE,
    "Max nice priority": resource.RLIMIT_NICE,
    "Max realtime priority": resource.RLIMIT_RTPRIO,
    "Max realtime timeout": resource.RLIMIT_RTTIME,
}


class CannotEnter(Exception):
    """A process cannot get into this container, or cannot become what the container's own processes are."""


@dataclass(frozen=True, slots=True)
class Container:
    """A running container, as its first process shows it. The process cannot be mistaken: `pidfd` is open."""

    pidfd: int
    cgroups: tuple[Path, ...]
    status: Mapping[str, str]
    limits: Mapping[int, tuple[int, int]]
    security_label: str
    filters: tuple[bytes, ...]


def look_at(container_id: str, pid: int, cgroup_root: Path) -> Container:
    """Read what the first process of a container is bound by. `cgroup_root` is where the host's cgroups are mounted.

    Raises CannotEnter when this process is none of that container's, and OSError when it has ended.
    """
    pidfd = os.pidfd_open(pid)
    proc = Path("/proc", str(pid))
    memberships = [line.split(":", 2) for line in (proc / "cgroup").read_text("ascii").splitlines()]
    if not any(_names(path, container_id) for _, _, path in memberships):
        raise CannotEnter("the process is not in the container's cgroup")
    if not any(_names(path, container_id) and controllers in ("memory", "") for _, controllers, path in memberships):
        raise CannotEnter("the container has no cgroup of its own")
    if Path("/proc/self/ns/user").readlink() != (proc / "ns" / "user").readlink():
        raise CannotEnter("the container is in a user namespace of its own")
    _wait_for_program(pidfd, proc)
    status = read_status(proc)
    container = Container(
        pidfd=pidfd,
        cgroups=tuple(_cgroup_dir(cgroup_root, names, path) for _, names, path in memberships if path != "/"),
        status=status,
        limits=_read_limits((proc / "limits").read_text("ascii")),
        security_label=read_label(proc),
        filters=tuple(seccomp.filters_of(pid, int(status.get("Seccomp_filters", "0")))),
    )
    _check_alive(pidfd)  # or what was read may be another's
    return container


def _check_alive(pidfd: int, wait_s: float = 0.0) -> None:
    if select.select([pidfd], [], [], wait_s)[0]:
        raise CannotEnter("the container has ended")


def _wait_for_program(pidfd: int, proc: Path) -> None:
    """Wait until the first process runs Python, as this one does. Until then it is the engine's, and not yet confined.

    Linux shows no command line from the moment that a program is replaced until the next one's rights are settled.
    """
    own = _program_of(Path("/proc/self"))
    deadline = time.monotonic() + _PROGRAM_TIMEOUT_S
    while _program_of(proc) != own:
        if time.monotonic() > deadline:
            raise CannotEnter("the container's first process is no supervisor")
        _check_alive(pidfd, _POLL_S)


def _program_of(proc: Path) -> bytes:
    """The first word of the command line."""
    return (proc / "cmdline").read_bytes().partition(b"\0")[0]


def _names(path: str, container_id: str) -> bool:
    """Whether a cgroup's path ends in this container, under the cgroupfs driver or systemd's."""
    return re.fullmatch(rf"(docker-)?{re.escape(container_id)}(\.scope)?", path.rsplit("/", 1)[-1]) is not None


def _cgroup_dir(root: Path, names: str, path: str) -> Path:
    """The directory of a cgroup. `names` are its controllers on version 1, `name=…` of one without, and empty on 2."""
    if not names:
        return (root / "unified" if (root / "unified").is_dir() else root) / path.lstrip("/")
    return root / names.removeprefix("name=") / path.lstrip("/")


def read_status(proc: Path) -> dict[str, str]:
    """The lines of proc(5), /proc/pid/status, by name."""
    lines = (line.partition(":") for line in (proc / "status").read_text("utf-8", "replace").splitlines())
    return {name: value.strip() for name, _, value in lines}


def read_label(proc: Path) -> str:
    """The label of the security module, AppArmor's or another's; empty where there is none."""
    with contextlib.suppress(OSError):
        return (proc / "attr" / "current").read_text("utf-8", "replace").strip("\0\n")
    return ""


def _read_limits(text: str) -> dict[int, tuple[int, int]]:
    """The table of proc(5), /proc/pid/limits: soft and hard by RLIMIT_*."""
    limits = {}
    for line in text.splitlines()[1:]:
        found = re.match(r"(Max [a-z ]+?)\s+(unlimited|\d+)\s+(unlimited|\d+)", line)
        if found is None or found[1] not in _LIMITS:
            raise CannotEnter(f"a limit that is not known here: {line}")
        soft, hard = (resource.RLIM_INFINITY if value == "unlimited" else int(value) for value in found.groups()[1:])
        limits[_LIMITS[found[1]]] = (soft, hard)
    return limits


def enter(container: Container) -> None:
    """Put the calling process into the container's cgroups and namespaces. Its children are in the pid namespace.

    Raises OSError; the process must end then.
    """
    for directory in container.cgroups:
        # "0" is whoever writes it, on both versions.
        (directory / "cgroup.procs").write_text("0", "ascii")
    checked(libc.setns(container.pidfd, sum(_NAMESPACES.values())), "setns")


def become_one_of(container: Container, keep: int) -> None:
    """Make the calling process, which `enter`ed, no more than the container's own processes are: rights, limits, files.

    Descriptor `keep` stays open. The order matters: the filter comes last, since it forbids what the others need.
    """
    status = container.status
    checked(libc.syscall(_KEYCTL[platform.machine()], _KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl")
    _close_files(keep)
    for number, limit in container.limits.items():
        if resource.getrlimit(number) != limit:
            resource.setrlimit(number, limit)
    if container.security_label != read_label(Path("/proc/self")):
        _change_profile(container.security_label)
    checked(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "PR_CAP_AMBIENT")
    bounds = int(status["CapBnd"], 16)
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text("ascii")) + 1):
        if not bounds >> capability & 1:
            checked(libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "PR_CAPBSET_DROP")
    os.setgroups([int(group) for group in status["Groups"].split()])
    os.setresgid(*_ids(status["Gid"]))
    os.setresuid(*_ids(status["Uid"]))  # from root to another user: no capability is left
    if status["NoNewPrivs"] == "1":
        checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    is_mitigated = "force" in status.get("Speculation_Store_Bypass", "")
    for instructions in container.filters:
        seccomp.install(instructions, allows_speculation=not is_mitigated)


def _ids(line: str) -> tuple[int, int, int]:
    """The real, effective and saved id of a line in /proc/pid/status, where the filesystem's is the fourth."""
    real, effective, saved, _ = (int(value) for value in line.split())
    return real, effective, saved


def _close_files(keep: int) -> None:
    """Close all but the standard streams, which go nowhere, and `keep`."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(_FIRST_OPEN_FILE):
        os.dup2(null, number)
    os.closerange(_FIRST_OPEN_FILE, keep)
    os.closerange(keep + 1, _MOST_OPEN_FILES)


def _change_profile(label: str) -> None:
    """Change the AppArmor profile, e.g. to `docker-default (enforce)`."""
    name = label.rsplit(" (", 1)[0]
    with open("/proc/self/attr/current", "w", encoding="ascii") as file:  # noqa: PTH123 - one write
        file.write(f"changeprofile {name}")
