"""Where the engine finds a gateway's files when that runs in a container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sessions.provisioners.docker.host_paths import UNCHANGED, HostPaths, outside, own_container_id

ID = "3f0c" * 16
DOCKER = f"""\
812 700 0:61 / / ro,relatime - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X
815 812 0:64 / /proc rw,nosuid - proc proc rw
820 812 254:1 /var/lib/docker/containers/{ID}/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/vda1 rw
821 812 254:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - ext4 /dev/vda1 rw
823 812 254:1 /var/lib/docker/volumes/cells/_data /var/lib/cellblock rw,relatime - ext4 /dev/vda1 rw
"""
OWN_DISK = f"820 812 254:9 /containers/{ID}/hostname /etc/hostname rw,relatime - xfs /dev/vdb rw\n"
OF_ANOTHER_CONTAINER = f"30 1 254:1 /var/lib/docker/containers/{ID}/hostname /mnt/x rw - ext4 /dev/vda1 rw\n"

VOLUME = {"Type": "volume", "Source": "/var/lib/docker/volumes/cells/_data", "Destination": "/var/lib/cellblock"}
BIND = {"Type": "bind", "Source": "/srv/sockets", "Destination": "/var/lib/cellblock/s"}
MEMORY = {"Type": "tmpfs", "Source": "", "Destination": "/var/lib/cellblock"}
MISLEADING = {"Type": "bind", "Source": "/elsewhere", "Destination": "/var/lib/cell"}


@pytest.mark.parametrize(
    ("mounts", "known"),
    [(DOCKER, ID), (OWN_DISK, ID), (OF_ANOTHER_CONTAINER, ""), ("1 1 8:1 / / rw - ext4 x rw\n", "")],
)
def test_a_container_knows_its_own_id_from_the_files_that_docker_mounts_into_it(mounts: str, known: str) -> None:
    assert own_container_id(mounts) == known


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ([MISLEADING, VOLUME], "/var/lib/docker/volumes/cells/_data/s"),
        ([BIND, VOLUME], "/srv/sockets"),
        ([MISLEADING], "/var/lib/cellblock/s"),
        ([MEMORY], "/var/lib/cellblock/s"),
        ([], "/var/lib/cellblock/s"),
    ],
)
def test_the_innermost_mount_says_where_a_directory_is_outside(mounts: list[dict[str, Any]], found: str) -> None:
    assert outside(Path("/var/lib/cellblock/s"), mounts) == Path(found)


def test_what_is_not_in_the_directory_keeps_its_path() -> None:
    paths = HostPaths(Path("/data"), Path("/volumes/x"))
    assert paths.of(Path("/data/s/k")) == Path("/volumes/x/s/k")
    assert paths.of(Path("/tmp/s")) == UNCHANGED.of(Path("/tmp/s")) == Path("/tmp/s")
