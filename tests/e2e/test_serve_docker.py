"""`cellblock serve` with the docker engine: the README's examples, and whose containers go at the end."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

import httpx
import pytest
from docker.api.client import APIClient
from serve_rig import start

from sessions.provisioners.docker.container import GATEWAY_LABEL
from sessions.settings import BuildSettings

pytestmark = pytest.mark.docker

TRIANGLE = """
import matplotlib.pyplot as plt
plt.plot([0, 1, 0.5, 0], [0, 0, 1, 0])
plt.savefig('triangle.png'); plt.close()
"""


def containers(client: APIClient, gateway_id: str) -> list[str]:
    return [c["Id"] for c in client.containers(all=True, filters={"label": f"{GATEWAY_LABEL}={gateway_id}"})]


def test_hello_world_and_a_triangle_from_containers_that_are_gone_afterwards(
    short_dir: Path, docker_client: APIClient, kernel_image: str
) -> None:
    other_gateway = uuid.uuid4().hex
    foreign = docker_client.create_container(kernel_image, labels={GATEWAY_LABEL: other_gateway})["Id"]
    gateway = start(
        short_dir / "data",
        CELLBLOCK_ENGINE_NAME="docker",
        CELLBLOCK_ENGINE_KERNEL_IMAGE=kernel_image,
        CELLBLOCK_BUILD_PRELOAD=",".join(BuildSettings().preload),
    )
    try:
        gateway_id = (gateway.data_dir / "gateway_id").read_text().strip()
        fields = {"languageType": "python", "variables": {}, "code": "print('Hello, World!')"}
        hello = httpx.post(f"{gateway.url}/runcode", json=fields, timeout=60)
        assert hello.json()["output"] == "Hello, World!\n"
        assert containers(docker_client, gateway_id)

        drawn = httpx.post(f"{gateway.url}/runcode", json={"code": TRIANGLE}, timeout=60).json()
        picture = httpx.get(drawn["images"]["triangle.png"])
        assert picture.headers["Content-Type"] == "image/png"
        assert picture.content.startswith(b"\x89PNG\r\n\x1a\n")
    finally:
        ended = gateway.stop(signal.SIGTERM)
        left, spared = containers(docker_client, gateway_id), containers(docker_client, other_gateway)
        docker_client.remove_container(foreign, force=True)
    assert ended == 0
    assert left == []
    assert spared == [foreign]
