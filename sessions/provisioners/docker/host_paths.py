"""Where the engine finds the gateway's files: it mounts directories into sandboxes by their paths on its own machine.

A gateway in a container of the same engine has other paths than that; the engine knows of which mounts it is made.
Whether the answer is right is tried, not believed: a wrong path could be another directory that is there as well.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.errors
import structlog
from docker.api.client import APIClient

from sessions.errors import EngineUnavailable, SetUpFailed
from sessions.provisioners.docker.container import GATEWAY_LABEL, KERNEL_LABEL
from sessions.provisioners.docker.engine import DockerEngine

# Docker mounts these files of its own into each container, from the directory that has the container's id for a name.
_OWN_ID = re.compile(r"/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf) /etc/")
_MOUNTS_FILE = Path("/proc/self/mountinfo")
_TARGET = "/run/probe"
_BAD_REQUEST = 400
_NO_MOUNTS = "The Docker engine does not say what the gateway's container is made of: see its log."

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HostPaths:
    """What is in the directory `inside` for the gateway is in `outside` for the engine."""

    inside: Path
    outside: Path

    def of(self, path: Path) -> Path:
        """The engine's path of a file or directory of the gateway's."""
        return self.outside / path.relative_to(self.inside) if path.is_relative_to(self.inside) else path


UNCHANGED = HostPaths(Path("/"), Path("/"))
"""Where the gateway and the engine see the same files."""


async def find_host_paths(engine: DockerEngine, directory: Path, kernel_image: str, gateway_id: str) -> HostPaths:
    """The engine's paths of what is in `directory`, which is writable. `kernel_image` is an image that it has.

    Starts nothing: a container is created, and removed. Raises SetUpFailed when the engine does not see the directory,
    and EngineUnavailable, but only in a container, where nothing works without the answer.
    """
    own_id = _own_container_id()
    mounts = await engine.call(lambda client: _mounts_of(client, own_id), refused=_NO_MOUNTS) if own_id else None
    found = HostPaths(directory, outside(directory, mounts or ()))
    try:
        is_seen = await engine.call(lambda client: _sees(client, kernel_image, gateway_id, found))
    except (docker.errors.APIError, EngineUnavailable) as error:
        log.warning("data_directory_not_checked", reason=str(error))
        return found
    if not is_seen:
        raise SetUpFailed(_complaint(found, in_container=mounts is not None))
    return found


def _own_container_id() -> str:
    return own_container_id(_MOUNTS_FILE.read_text("utf-8", "replace"))


def own_container_id(mounts: str) -> str:
    """The id of the container that has these mounts, as /proc/self/mountinfo lists them; empty outside of one. Pure."""
    found = _OWN_ID.search(mounts)
    return found[1] if found else ""


def outside(directory: Path, mounts: Sequence[dict[str, Any]]) -> Path:
    """The same directory outside of a container with these mounts, as the engine describes them."""
    directory = directory.resolve()
    holding = [
        mount for mount in mounts if mount.get("Source") and directory.is_relative_to(str(mount.get("Destination")))
    ]
    if not holding:
        return directory
    innermost = max(holding, key=lambda mount: len(str(mount["Destination"])))
    return Path(innermost["Source"]) / directory.relative_to(innermost["Destination"])


def _mounts_of(client: APIClient, container_id: str) -> list[dict[str, Any]] | None:
    """The mounts of a container, or None where this engine has none of that id. Blocks."""
    try:
        found: list[dict[str, Any]] = client.inspect_container(container_id)["Mounts"]
    except docker.errors.NotFound:
        return None
    return found


def _sees(client: APIClient, image: str, gateway_id: str, paths: HostPaths) -> bool:
    """Whether the engine finds a new file of the directory. Blocks. Raises APIError."""
    probe = paths.inside / f"probe-{uuid.uuid4().hex}"
    labels = {GATEWAY_LABEL: gateway_id, KERNEL_LABEL: probe.name}  # what a crash leaves, recovery removes
    probe.touch()
    try:
        return _can_mount(client, image, labels, paths.of(probe))
    finally:
        probe.unlink(missing_ok=True)


def _can_mount(client: APIClient, image: str, labels: dict[str, str], source: Path) -> bool:
    """Whether the engine creates a container with a mount of this file: it refuses what is not there.

    Blocks. Raises APIError.
    """
    mount = {"Type": "bind", "Source": os.fspath(source), "Target": _TARGET, "ReadOnly": True}
    config = {
        "Image": image,
        "Labels": labels,
        "NetworkDisabled": True,
        "HostConfig": {"Mounts": [mount], "NetworkMode": "none"},
    }
    try:
        container_id = client.create_container_from_config(config)["Id"]  # type: ignore[no-untyped-call]
    except docker.errors.APIError as error:
        if error.status_code == _BAD_REQUEST and source.name in str(error.explanation):
            return False
        raise
    with suppress(docker.errors.NotFound):
        client.remove_container(container_id, force=True)
    return True


def _complaint(paths: HostPaths, *, in_container: bool) -> str:
    what = (
        f"The Docker engine does not find this gateway's data directory {paths.inside} at {paths.outside} on its own "
        "machine, so no sandbox could reach the sockets in it: "
    )
    if in_container:
        return f"{what}give the gateway's container a volume there (`-v cellblock:{paths.inside}`)."
    return (
        f"{what}set `server.data_dir` to a directory that both have under the same path. A systemd unit's PrivateTmp, "
        "a DOCKER_HOST on another machine, or a container around the gateway may be what hides it."
    )
