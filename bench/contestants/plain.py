"""The plain way: for each run a container of the same image with a new ipykernel in it, and nothing preloaded.

As simple as a program can do it with docker-py and jupyter_client: no hardening, no limits, no database, nobody else's
code watched.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from uuid import uuid4

from jupyter_client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from bench.accounting import LABEL, Cgroup, Engine, pss_bytes
from bench.contestants.bare import execute


class PlainContainers:
    """Containers, each with a kernel that is asked over ipc through a directory that both see."""

    name = "plain container"

    def __init__(self, engine: Engine, image: str) -> None:
        self._engine = engine
        self._image = image

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cbp")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cpu(self) -> dict[str, float]:
        """No process of its own: docker-py and jupyter_client work in this one."""
        return {}

    @contextmanager
    def kernel(self) -> Iterator[tuple[BlockingKernelClient, Cgroup]]:
        """A container and a client of its kernel, which answers."""
        room = self._root / uuid4().hex[:8]
        room.mkdir()
        file, _ = write_connection_file(str(room / "c"), ip=str(room / "k"), transport="ipc")
        docker = self._engine.client
        container = docker.create_container(
            self._image,
            entrypoint=["python", "-m", "ipykernel_launcher", "-f", file],
            user=f"{os.getuid()}:{os.getgid()}",
            environment={"HOME": "/tmp"},  # noqa: S108 - the container's
            labels={LABEL: self.name},
            network_disabled=True,
            host_config=docker.create_host_config(binds=[f"{room}:{room}"], network_mode="none"),
        )
        try:
            docker.start(container)
            client = BlockingKernelClient(connection_file=file)
            client.load_connection_file()
            client.start_channels(hb=False)  # on a busy machine a missed heartbeat would be taken for a death
            try:
                client.wait_for_ready(timeout=60)
                yield client, Cgroup(docker.inspect_container(container)["State"]["Pid"])
            finally:
                client.stop_channels()
                client.context.destroy(linger=0)
        finally:
            docker.remove_container(container, force=True)

    def fresh(self, code: str) -> tuple[str, float]:
        """Run in a container that is started for it; returns the output, and the seconds until its kernel was ready."""
        begin = time.perf_counter()
        with self.kernel() as (client, _):
            ready_s = time.perf_counter() - begin
            heard: list[str] = []
            execute(client, code, heard.append)
        return "".join(heard), ready_s

    @staticmethod
    def memory(cgroups: list[Cgroup]) -> dict[str, int]:
        """Of all these containers."""
        return {"containers": sum(pss_bytes(cgroup.pids()) for cgroup in cgroups)}
