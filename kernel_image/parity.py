"""Whether a process that was forked into this sandbox from outside is no more than what the sandbox has itself.

The supervisor takes note of itself before it hardens itself, and compares each kernel before that gets to see anything
of a client's. Whatever cannot be read counts as a difference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kernel_image.protocol import SETTINGS_VARIABLE

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts", "time", "time_for_children")
_STATUS = (
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed",
    "Mems_allowed",
)
_FILES = ("cgroup", "limits", "mountinfo", "attr/current")


class Likeness(NamedTuple):
    """What is compared of a process, by name; and its environment when it was executed."""

    traits: Mapping[str, object]
    environment: Mapping[str, str]


def likeness(pid: str, environment: Mapping[str, str] | None = None) -> Likeness:
    """Read a process in /proc, which the caller may trace; its `environment` too, unless that is given. Raises OSError.

    `pid` may be `self`.
    """
    proc = Path("/proc", pid)
    traits: dict[str, object] = {f"namespace {name}": _namespace(proc / "ns" / name) for name in _NAMESPACES}
    status = dict(line.split(":", 1) for line in _text(proc / "status").splitlines() if ":" in line)
    traits.update({f"status {name}": status.get(name, "").strip() for name in _STATUS})
    traits.update({name: _text(proc / name) for name in _FILES})
    root = (proc / "root").stat()
    traits["root"] = (root.st_dev, root.st_ino)
    if environment is None:
        pairs = _text(proc / "environ").split("\0")
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if not environment.get(SETTINGS_VARIABLE, "").strip("x"):  # overwritten, see hardening.pop_secret
            environment.pop(SETTINGS_VARIABLE, None)
    return Likeness(traits, environment)


def _namespace(link: Path) -> str:
    """The namespace's name; empty where Linux has no namespaces of this kind."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


def _text(path: Path) -> str:
    """A file's text; empty where no security module answers for `attr/current`."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        if path.parent.name == "attr":
            return ""
        raise


def differences(pid: int, own: Likeness, *, oom_score_adjustment: int) -> list[str]:
    """In what a new kernel process differs from the supervisor, whose `own` likeness it should have; empty if equal.

    Beside that it has one thread, no file but the null device, default signals, and is this process's child.
    """
    try:
        proc = Path("/proc", str(pid))
        kernel = likeness(str(pid))
        found = [name for name, value in own.traits.items() if kernel.traits[name] != value]
        if kernel.environment != own.environment:
            found.append("environment")
        status = dict(line.split(":", 1) for line in _text(proc / "status").splitlines() if ":" in line)
        expected = {
            "parent": (status["PPid"].strip(), str(os.getpid())),
            "threads": (status["Threads"].strip(), "1"),
            "blocked signals": (int(status["SigBlk"], 16), 0),
            "files": (_open_files(proc), {0, 1, 2}),
            "oom_score_adj": (_text(proc / "oom_score_adj").strip(), str(oom_score_adjustment)),
        }
        found.extend(name for name, (seen, wanted) in expected.items() if seen != wanted)
    except (OSError, ValueError, KeyError) as error:
        return [f"what could not be read: {type(error).__name__}: {error}"]
    return found


def _open_files(proc: Path) -> set[int]:
    """The numbers of open descriptors; -1 stands for one that is not the null device."""
    null = Path(os.devnull).stat().st_rdev
    descriptors = list((proc / "fd").iterdir())
    return {int(one.name) if one.stat().st_rdev == null else -1 for one in descriptors}
