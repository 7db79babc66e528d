"""A wheel is complete: installed into an environment outside the checkout, it serves, and builds the same image."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from docker.api.client import APIClient
from engine_fixtures import BUILD

from sessions.provisioners.image.build import image_content, kernel_image_tag

REPOSITORY = Path(__file__).parents[2]

IMAGE_TAG = """
import os, gateway, sessions.provisioners.image.build as build
from gateway.config.loader import load
print(os.path.dirname(gateway.__file__))
settings = load(None, os.environ).build
print(build.kernel_image_tag(build.image_content(settings), settings.base))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, and with what this environment has beside Cellblock."""
    directory = tmp_path_factory.mktemp("wheel")
    # A copy: a build leaves its work in the tree.
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", REPOSITORY, directory / "source"], check=True)
    for path in ("gateway", "sessions", "kernel_image", "pyproject.toml", "Dockerfile.kernel"):
        subprocess.run(["rm", "-rf", directory / "source" / path], check=True)
        subprocess.run(["cp", "-a", REPOSITORY / path, directory / "source" / path], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", directory, directory / "source"], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True)
    python = directory / "venv" / "bin" / "python"
    (packages,) = (directory / "venv").glob("lib/python*/site-packages")
    (wheel,) = directory.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", packages, wheel], check=True)
    others = [path for path in (*site.getsitepackages(), *sys.path) if path and Path(path) != REPOSITORY]
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return python


@pytest.fixture(scope="module")
def installed(python: Path) -> Run:
    """Runs the interpreter to its end."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments],
            cwd=python.parents[2],
            env=environment(**variables),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=170,
        )

    return run


def test_an_installed_wheel_asks_for_the_image_of_the_checkout(installed: Run) -> None:
    where, tag = installed("-c", IMAGE_TAG).stdout.split()
    assert REPOSITORY not in Path(where).parents
    assert tag == kernel_image_tag(image_content(BUILD), BUILD.base)


def test_an_installed_wheel_serves_from_an_empty_directory(python: Path, short_dir: Path) -> None:
    data_dir, empty = short_dir / "data", short_dir / "empty"
    empty.mkdir()
    variables = environment(
        CELLBLOCK_SERVER_PORT="0",
        CELLBLOCK_SERVER_DATA_DIR=str(data_dir),
        CELLBLOCK_ENGINE_NAME="process",
        CELLBLOCK_BUILD_DEPENDENCIES="[]",
        CELLBLOCK_BUILD_PRELOAD="[]",
        CELLBLOCK_POOL_SIZE="1",
    )
    command = [python, "-m", "gateway", "serve"]
    with subprocess.Popen(command, cwd=empty, env=variables, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout is not None
            urls = (re.search(r"http://[\d.:]+", line) for line in gateway.stdout)
            url = next(found[0] for found in urls if found)
            answer = httpx.post(f"{url}/runcode", json={"code": "print('Hello')"}, timeout=60).json()
            assert httpx.get(f"{url}/status/status.js").status_code == 200
        finally:
            gateway.terminate()
            gateway.communicate(timeout=60)
    assert (answer["status"], answer["output"], gateway.returncode) == ("ok", "Hello\n", 0)


@pytest.mark.docker
def test_an_installed_wheel_builds_the_image(installed: Run, docker_client: APIClient, kernel_image: str) -> None:
    """Another image than the one that all tests use, of the same first layers."""
    tag = installed("-m", "gateway", "build", CELLBLOCK_BUILD_PRELOAD="[json]").stdout.strip()
    try:
        assert tag != kernel_image
        assert docker_client.inspect_image(tag)["Config"]["Entrypoint"][-1] == "kernel_image"
    finally:
        docker_client.remove_image(tag, force=True)
