"""That the engine finds the gateway's directory is tried before anything depends on it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.api.client import APIClient
from engine_fixtures import docker_settings

from gateway.doctor.engine import look_at_engine
from gateway.doctor.findings import Level
from sessions.errors import SetUpFailed
from sessions.provisioners.docker import host_paths
from sessions.provisioners.docker.container import GATEWAY_LABEL
from sessions.provisioners.docker.engine import DockerEngine
from sessions.provisioners.docker.host_paths import HostPaths, find_host_paths
from sessions.settings import BuildSettings, Limits

pytestmark = pytest.mark.docker


@pytest.fixture
async def engine() -> AsyncIterator[DockerEngine]:
    engine = DockerEngine(threads=1)
    yield engine
    await engine.close()


def left_of(client: APIClient, gateway_id: str) -> list[Any]:
    return client.containers(all=True, filters={"label": f"{GATEWAY_LABEL}={gateway_id}"})


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.fixture
def hidden(
    docker_client: APIClient, kernel_image: str, short_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A data directory of a gateway which takes itself for a container that has another directory in that place."""
    (tmp_path / "other").mkdir()
    mount = {"Type": "bind", "Source": str(tmp_path / "other"), "Target": str(short_dir)}
    config = {"Image": kernel_image, "HostConfig": {"Mounts": [mount], "NetworkMode": "none"}}
    container_id = docker_client.create_container_from_config(config)["Id"]
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"820 812 254:1 /containers/{container_id}/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n")
    monkeypatch.setattr(host_paths, "_MOUNTS_FILE", mounts)
    yield short_dir
    docker_client.remove_container(container_id, force=True)


async def test_a_directory_that_both_see_is_found_and_nothing_is_left_of_the_trial(
    engine: DockerEngine, docker_client: APIClient, kernel_image: str, short_dir: Path, gateway_id: str
) -> None:
    assert await find_host_paths(engine, short_dir, kernel_image, gateway_id) == HostPaths(short_dir, short_dir)
    assert names_in(short_dir) == left_of(docker_client, gateway_id) == []


async def test_another_directory_in_its_place_is_not_taken_for_it(
    engine: DockerEngine, docker_client: APIClient, kernel_image: str, hidden: Path, gateway_id: str
) -> None:
    wrong = re.escape(f"data directory {hidden} at ") + r"\S+/other on its own machine"
    with pytest.raises(SetUpFailed, match=f"{wrong}.*-v cellblock:{hidden}"):
        await find_host_paths(engine, hidden, kernel_image, gateway_id)
    assert names_in(hidden) == left_of(docker_client, gateway_id) == []


async def test_the_doctor_says_so_too(kernel_image: str, hidden: Path) -> None:
    findings = await look_at_engine(docker_settings(kernel_image), BuildSettings(), Limits(), data_dir=hidden)
    (finding,) = [finding for finding in findings if finding.level is Level.FAIL]
    assert finding.name == "data directory"
    assert finding.what_to_do.startswith("Give the gateway's container a volume")


async def test_an_engine_that_cannot_tell_keeps_no_gateway_from_starting(
    engine: DockerEngine, docker_client: APIClient, short_dir: Path, gateway_id: str
) -> None:
    assert docker_client.ping()
    assert await find_host_paths(engine, short_dir, "cellblock-kernel:missing", gateway_id) == HostPaths(
        short_dir, short_dir
    )
