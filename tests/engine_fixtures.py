"""Fixtures with real engines: Docker with the built kernel image, plain processes, and sockets for supervisors.

A pytest plugin. Without a Docker engine the tests that need one are skipped, loudly; where CI is set they fail.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from docker.api.client import APIClient

from gateway.supervisors import SupervisorSwitchboard
from sessions.model import GatewayId
from sessions.provisioners.docker.engine import SILENCE, open_client
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.provisioners.image.build import ensure_kernel_image
from sessions.provisioners.process.provisioner import ProcessProvisioner
from sessions.settings import BuildSettings, EngineSettings

BUILD = BuildSettings()

ZYGOTE_VARIABLE = "CELLBLOCK_ENGINE_ZYGOTE"
"""Set to `off`, all of the tests' sandboxes fork their own kernels."""

FORK_SERVERS = 1 if os.environ.get(ZYGOTE_VARIABLE) == "off" else 0
"""How many a sandbox has of its own."""


def docker_settings(kernel_image: str, **fields: Any) -> EngineSettings:
    """The tests' own, by way of Docker."""
    zygote = os.environ.get(ZYGOTE_VARIABLE, "auto")
    return EngineSettings(name="docker", kernel_image=kernel_image, zygote=zygote, **fields)


def no_engine(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"CI is set, and there is no Docker engine to test with: {reason}")
    pytest.skip(f"NO DOCKER ENGINE, container tests are skipped: {reason}")


@pytest.fixture(scope="session")
def docker_client() -> Iterator[APIClient]:
    """A client of the tests' own, for looking at what the code under test has done."""
    try:
        client = open_client(60)
    except SILENCE as error:
        no_engine(str(error))
    yield client
    client.close()


@pytest.fixture(scope="session")
def kernel_image(docker_client: APIClient) -> str:
    """The tag of the kernel image; built by the first test process that asks."""
    assert docker_client.ping()
    with Path(tempfile.gettempdir(), "cellblock-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(1) as thread:  # a loop may be running in this one
            return thread.submit(lambda: asyncio.run(ensure_kernel_image(BUILD, print))).result()


@pytest.fixture
def gateway_id() -> GatewayId:
    return GatewayId(uuid.uuid4().hex)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a unix socket's name, which pytest's own do not."""
    path = Path(tempfile.mkdtemp(prefix="cb-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def switchboard(short_dir: Path) -> AsyncIterator[SupervisorSwitchboard]:
    """Where supervisors of this test dial in."""
    switchboard = SupervisorSwitchboard(short_dir / "s")
    yield switchboard
    links = [link for port in switchboard._ports.values() for link in port.links]
    for kernel_id in list(switchboard._ports):
        switchboard.close(kernel_id)
    async with asyncio.timeout(10):
        while any(link.ws_connection is not None for link in links):
            await asyncio.sleep(0.01)


@pytest.fixture
async def docker_provisioner(
    kernel_image: str, gateway_id: GatewayId, short_dir: Path
) -> AsyncIterator[DockerProvisioner]:
    provisioner = DockerProvisioner(gateway_id, docker_settings(kernel_image), zygote_dir=short_dir / "z")
    yield provisioner
    for kernel_id in await provisioner.list():
        await provisioner.kill(kernel_id)
    await provisioner.close()


@pytest.fixture
async def process_provisioner(short_dir: Path, gateway_id: GatewayId) -> AsyncIterator[ProcessProvisioner]:
    provisioner = ProcessProvisioner(gateway_id, short_dir / "p")
    yield provisioner
    for kernel_id in await provisioner.list():
        await provisioner.kill(kernel_id)
    await provisioner.close()
