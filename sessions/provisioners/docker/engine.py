"""One connection to the Docker engine: its client, the threads its blocking calls run in, and what its silence means.

Knows nothing of sandboxes or images; provisioner.py and build.py say what is asked of the engine.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import docker.errors
import docker.utils
import requests
import urllib3.exceptions
from docker.api.client import APIClient

from sessions.errors import EngineUnavailable
from sessions.provisioners.docker.container import MAPPED_UIDS, WIDE_UIDS

T = TypeVar("T")

SILENCE = (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
"""What docker-py raises when nobody answers. APIError is one of them too, but means an answer: catch it first."""

_NO_ANSWER = "The Docker engine does not answer: start it, or set DOCKER_HOST to where it listens."
NOT_ALLOWED = (
    "The Docker engine's socket is there, but this user may not open it: add the user to the socket's group, usually "
    "docker, or a container by `--group-add $(stat -c %g /var/run/docker.sock)`."
)
_LIMIT_FIELDS: Mapping[str, str] = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "PidsLimit": "number of processes",
    "CpuCfsQuota": "CPU time",
}


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine says of itself. `unapplied_limits` are the limits it accepts but cannot enforce here.

    `runc_build` is the build's own name for itself, which tells a distribution's patched version apart.
    `shares_host` is false where containers cannot see this machine's files and sockets.
    """

    version: str
    api_version: str
    runc_version: str
    runc_build: str
    cgroup_version: str
    runtimes: tuple[str, ...]
    unapplied_limits: tuple[str, ...]
    seccomp: bool
    maps_users: bool
    shares_host: bool
    cpus: int
    memory_bytes: int
    root_dir: str = ""
    """Where it keeps images and containers, on its own machine."""

    @property
    def uids(self) -> range:
        """The user ids that containers may have."""
        return MAPPED_UIDS if self.maps_users else WIDE_UIDS


class DockerEngine:
    """Owns the docker-py client and its threads. Nothing is opened before the first call; `close` ends all of it."""

    def __init__(self, *, threads: int = 8, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._lock = threading.Lock()
        self._client: APIClient | None = None

    def client(self) -> APIClient:
        """The client, opened by the first caller. Blocks for one round trip then. Raises what `SILENCE` lists."""
        with self._lock:
            if self._client is None:
                self._client = open_client(self._timeout_s, max_pool_size=self._threads + 2)
            return self._client

    async def call(self, function: Callable[[APIClient], T], *, refused: str = "") -> T:
        """Run a blocking `function` in a thread of this engine's.

        Raises EngineUnavailable when nobody answers, and with the sentence `refused` when the answer is an error;
        without one, docker's APIError passes.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._answered, function, refused)

    async def facts(self) -> EngineFacts:
        """Ask the engine about itself. Raises EngineUnavailable."""
        info, version = await self.call(lambda client: (client.info(), client.version()))
        return facts_from(info, version, shares_host=_is_local(os.environ.get("DOCKER_HOST", "")))

    async def close(self) -> None:
        """End the threads, after the calls that are running, and close the connections."""
        await asyncio.to_thread(self._executor.shutdown)
        if self._client is not None:
            self._client.close()

    def _answered(self, function: Callable[[APIClient], T], refused: str) -> T:
        try:
            return function(self.client())
        except docker.errors.APIError as error:
            if not refused:
                raise
            raise EngineUnavailable(refused) from error
        except SILENCE as error:
            # docker-py keeps the reason as text alone.
            denied = os.strerror(errno.EACCES) in str(error)
            raise EngineUnavailable(NOT_ALLOWED if denied else _NO_ANSWER) from error


def open_client(timeout_s: float, *, max_pool_size: int = 4) -> APIClient:
    """A client for the engine that DOCKER_HOST names, or the local one; the API version is the engine's own."""
    return APIClient(
        version="auto", timeout=int(timeout_s), max_pool_size=max_pool_size, **docker.utils.kwargs_from_env()
    )


def image_exists(client: APIClient, tag: str) -> bool:
    """Whether the engine has this image. Blocks."""
    try:
        client.inspect_image(tag)  # type: ignore[no-untyped-call]
    except docker.errors.ImageNotFound:
        return False
    return True


def facts_from(info: Mapping[str, Any], version: Mapping[str, Any], *, shares_host: bool) -> EngineFacts:
    """Read the answers of `GET /info` and `GET /version`."""
    runc: Mapping[str, Any] = next((part for part in version.get("Components", ()) if part.get("Name") == "runc"), {})
    options = " ".join(info.get("SecurityOptions") or ())
    return EngineFacts(
        version=str(version.get("Version", "")),
        api_version=str(version.get("ApiVersion", "")),
        runc_version=str(runc.get("Version", "")),
        runc_build=str(runc.get("Details", {}).get("GitCommit", "")),
        cgroup_version=str(info.get("CgroupVersion", "1")),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        unapplied_limits=tuple(name for field, name in _LIMIT_FIELDS.items() if not info.get(field, False)),
        seccomp="name=seccomp" in options and "profile=unconfined" not in options,
        maps_users="name=userns" in options or "name=rootless" in options,
        shares_host=shares_host,
        cpus=int(info.get("NCPU", 0)),
        memory_bytes=int(info.get("MemTotal", 0)),
        root_dir=str(info.get("DockerRootDir", "")),
    )


def _is_local(docker_host: str) -> bool:
    return docker_host == "" or docker_host.startswith("unix://")
