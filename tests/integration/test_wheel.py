"""Wheels are complete: installed into an environment outside the checkout, Cellblock serves, and builds the same image.

That of the client is enough for a call, with what it requires and nothing else.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from email import message_from_bytes
from importlib.metadata import Distribution
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest
from docker.api.client import APIClient
from engine_fixtures import BUILD
from packaging.requirements import Requirement

from sessions.provisioners.image.build import image_content, kernel_image_tag

REPOSITORY = Path(__file__).parents[2]

IMAGE_TAG = """
import os, gateway, sessions.provisioners.image.build as build
from gateway.config.loader import load
print(os.path.dirname(gateway.__file__))
settings = load(None, os.environ).build
print(build.kernel_image_tag(build.image_content(settings), settings.base))
"""

CALL = """
import asyncio, importlib.util, sys
from gateway.client import AsyncClient, Client

async def call():
    async with AsyncClient(sys.argv[1]) as client:
        return (await client.run("6 * 7")).text

with Client(sys.argv[1]) as client, client.session() as session:
    print(session.run("6 * 7").text, asyncio.run(call()))
assert not any(map(importlib.util.find_spec, ("tornado", "docker", "sqlalchemy", "sessions", "gateway.app")))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("client-wheel")
    script = REPOSITORY / "scripts" / "client_wheel.sh"
    subprocess.run(["bash", script, directory], env=environment(PYTHON=sys.executable), check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def client_python(client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the client's wheel, what that requires, and nothing else."""
    directory = tmp_path_factory.mktemp("client")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    with ZipFile(client_wheel) as archive:
        archive.extractall(packages)
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    for distribution in closure(required):
        assert distribution.files is not None
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(str(distribution.locate_file(name)))
    return directory / "bin" / "python"


def closure(required: Iterable[str]) -> Iterator[Distribution]:
    """The distributions that meet requirements, as they are installed here, with those that these require."""
    known: set[str] = set()
    left = list(required)
    while left:
        requirement = Requirement(left.pop())
        if requirement.name in known or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        known.add(requirement.name)
        found = Distribution.from_name(requirement.name)
        yield found
        left += found.requires or []


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


def test_an_installed_wheel_serves_from_an_empty_directory_and_the_clients_calls_it(
    python: Path, client_python: Path, short_dir: Path
) -> None:
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
            called = [client_python, "-c", CALL, url]
            text = subprocess.run(called, cwd=empty, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
            page = httpx.get(url, headers={"Accept": "text/html"}, timeout=60).text
            static = [
                httpx.get(f"{url}/{path}", timeout=60) for path in re.findall(r'(?:href|src)="(static/[^"]+)"', page)
            ]
            editor = httpx.get(static[-1].url.join("third_party/codemirror.js"), timeout=60)
        finally:
            gateway.terminate()
            gateway.communicate(timeout=60)
    assert (answer["status"], answer["output"], gateway.returncode) == ("ok", "Hello\n", 0)
    assert [file.status_code for file in (*static, editor)] == [200] * 4
    assert text.stdout == "42 42\n"


def test_the_clients_wheel_goes_with_the_whole_ones(client_wheel: Path, python: Path) -> None:
    """Installed beside it, in whatever order, it changes nothing: it has some of the same files."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    with ZipFile(client_wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert {name: archive.read(name) for name in names} == {name: (packages / name).read_bytes() for name in names}
    assert {name.split("/")[1] for name in names} == {"__init__.py", "addresses.py", "client", "py.typed"}
    whole = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((REPOSITORY / "packaging" / "client" / "pyproject.toml").read_text())["project"]
    assert client["dependencies"] == whole["optional-dependencies"]["client"]
    for key in ("version", "requires-python", "license"):
        assert client[key] == whole[key]


@pytest.mark.docker
def test_an_installed_wheel_builds_the_image(installed: Run, docker_client: APIClient, kernel_image: str) -> None:
    """Another image than the one that all tests use, of the same first layers."""
    tag = installed("-m", "gateway", "build", CELLBLOCK_BUILD_PRELOAD="[json]").stdout.strip()
    try:
        assert tag != kernel_image
        assert docker_client.inspect_image(tag)["Config"]["Entrypoint"][-1] == "kernel_image"
    finally:
        docker_client.remove_image(tag, force=True)
