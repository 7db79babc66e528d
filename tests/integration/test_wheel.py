"""A wheel is complete: installed into an environment outside the checkout, it builds the same kernel image."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the interpreter of an environment with the wheel, and with what this environment has beside Cellblock."""
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

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
        return subprocess.run(
            [python, *arguments],
            cwd=directory,
            env=environment,
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


@pytest.mark.docker
def test_an_installed_wheel_builds_the_image(installed: Run, docker_client: APIClient, kernel_image: str) -> None:
    """Another image than the one that all tests use, of the same first layers."""
    tag = installed("-m", "gateway", "build", CELLBLOCK_BUILD_PRELOAD="[json]").stdout.strip()
    try:
        assert tag != kernel_image
        assert docker_client.inspect_image(tag)["Config"]["Entrypoint"][-1] == "kernel_image.supervisor"
    finally:
        docker_client.remove_image(tag, force=True)
