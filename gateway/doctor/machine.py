"""Of this machine: open files, room on the disk, the clock."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from gateway.doctor.findings import Finding, Level
from gateway.host.descriptors import FEWEST_CONNECTIONS, MOST_CONNECTIONS, connections_within, descriptors_for

_LEAST_BYTES = 500_000_000
_USUAL_BYTES = 3_000_000_000
_LEAST_INODES = 1_000
_USUAL_INODES = 20_000
_BUILT = datetime(2025, 11, 1, tzinfo=UTC)
_LARGEST_SKEW_S = 5.0


def descriptor_finding(limit: int, sandboxes: int) -> Finding:
    """Whether a gateway with so many sandboxes may open files enough. Pure."""
    connections = connections_within(limit, sandboxes)
    if connections == MOST_CONNECTIONS:
        return Finding("open files", Level.OK, f"a process may have {limit} open")
    least = descriptors_for(FEWEST_CONNECTIONS, sandboxes)
    return Finding(
        "open files",
        Level.WARN if limit >= least else Level.FAIL,
        f"A process may have {limit} files open, which does for {connections} connections, not for {MOST_CONNECTIONS}"
        if limit >= least
        else f"A process may have {limit} files open; {sandboxes} sandboxes and the gateway need {least}",
        f"Raise the limit to {descriptors_for(MOST_CONNECTIONS, sandboxes)}: `ulimit -n`, or LimitNOFILE in the "
        "gateway's systemd unit.",
    )


def look_at_disk(name: str, path: Path) -> Finding:
    """How much room there is where `path` is, or would be made."""
    there = next(place for place in (path, *path.parents) if _is_seen(place))
    room = os.statvfs(there)
    # Some file systems have no fixed number of files, and say 0.
    inodes = room.f_favail if room.f_files else None
    return disk_finding(name, path, room.f_bavail * room.f_frsize, inodes)


def _is_seen(path: Path) -> bool:
    """Whether it is there, and in a directory that this user may look into."""
    try:
        return path.exists()
    except OSError:
        return False


def disk_finding(name: str, path: Path, free_bytes: int, free_inodes: int | None) -> Finding:
    """Whether there is room enough for a database that grows, or for images. Pure."""
    room = f"{free_bytes / 1e9:.1f} GB are free for {path}"
    what_to_do = f"Free some room there{', or set `server.data_dir` to another place' if name == 'data disk' else ''}."
    if free_bytes < _LEAST_BYTES:
        return Finding(name, Level.FAIL, f"Only {room}: databases and builds fail when a disk is full", what_to_do)
    if free_inodes is not None and free_inodes < _LEAST_INODES:
        return Finding(name, Level.FAIL, f"The disk of {path} takes only {free_inodes} more files", what_to_do)
    if free_bytes < _USUAL_BYTES:
        return Finding(name, Level.WARN, f"Only {room}: the kernel image alone takes 1.3 GB", what_to_do)
    if free_inodes is not None and free_inodes < _USUAL_INODES:
        return Finding(name, Level.WARN, f"The disk of {path} takes only {free_inodes} more files", what_to_do)
    return Finding(name, Level.OK, room)


def clock_finding(now: datetime, database_now: datetime | None) -> Finding:
    """Whether this machine's clock can be right, and agrees with the database's. Pure."""
    what_to_do = "Set the clock, and keep it right by NTP (on Debian: `apt install systemd-timesyncd`)."
    if now < _BUILT:
        return Finding(
            "clock",
            Level.FAIL,
            f"It is {now:%Y-%m-%d %H:%M} UTC here, which is too early: downloads fail, and runs are removed too soon",
            what_to_do,
        )
    if database_now is None:
        return Finding("clock", Level.OK, f"{now:%Y-%m-%d %H:%M} UTC")
    skew_s = (now - database_now).total_seconds()
    if abs(skew_s) > _LARGEST_SKEW_S:
        return Finding(
            "clock",
            Level.WARN,
            f"The clocks of this machine and the database are {abs(skew_s):.0f} s apart",
            f"{what_to_do} Do so on both machines.",
        )
    return Finding("clock", Level.OK, f"{now:%Y-%m-%d %H:%M} UTC, as in the database")
