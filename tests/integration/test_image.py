"""The built kernel image: what an analyst finds in it, and what an attacker does not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from docker.api.client import APIClient
from engine_fixtures import BUILD
from msgspec.structs import replace

from sessions.errors import SetUpFailed
from sessions.provisioners.docker.engine import DockerEngine
from sessions.provisioners.image.base import debian_base_tag
from sessions.provisioners.image.build import ensure_kernel_image, find_kernel_image
from sessions.settings import BuildSettings

pytestmark = pytest.mark.docker

MODULES = {
    "beautifulsoup4": "bs4",
    "fpdf2": "fpdf",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "python-dateutil": "dateutil",
    "python-docx": "docx",
    "python-pptx": "pptx",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}

CHART = """
import json, os, shutil, warnings
warnings.simplefilter("error")
os.environ["MPLCONFIGDIR"] = "/tmp/mpl"
shutil.copytree(os.environ["CELLBLOCK_MPL_CACHE"], "/tmp/mpl")
before = {name: os.stat("/tmp/mpl/" + name).st_mtime_ns for name in os.listdir("/tmp/mpl")}
import matplotlib.pyplot as plt
sizes = {}
for family in FAMILIES:
    plt.rcParams["font.family" if family else "figure.dpi"] = family or 100
    plt.figure()
    plt.title("\\u4e2d\\u6587 \\u6807\\u9898 caf\\xe9")
    plt.plot([-1, 1])
    plt.savefig("/work/chart.png")
    sizes[family] = os.path.getsize("/work/chart.png")
    os.unlink("/work/chart.png")
after = {name: os.stat("/tmp/mpl/" + name).st_mtime_ns for name in os.listdir("/tmp/mpl")}
print(json.dumps({"backend": plt.get_backend(), "cache_rebuilt": before != after, "bytes": sizes}))
"""


def run(client: APIClient, image: str, code: str) -> str:
    """Run Python in a read-only container of this image, as a user id that nobody has; returns what it printed."""
    config = {
        "Image": image,
        "User": "1900000003:1900000003",
        "Entrypoint": ["python", "-c", code],
        "Env": ["HOME=/tmp"],
        "HostConfig": {
            "ReadonlyRootfs": True,
            "NetworkMode": "none",
            "Tmpfs": {"/tmp": "rw", "/work": "rw,mode=1777,uid=1900000003"},
        },
    }
    container = client.create_container_from_config(config)["Id"]
    try:
        client.start(container)
        status = client.wait(container, timeout=120)["StatusCode"]
        output: str = client.logs(container).decode()
    finally:
        client.remove_container(container, force=True)
    assert status == 0, output
    return output.strip()


def test_every_default_package_can_be_imported(docker_client: APIClient, kernel_image: str) -> None:
    names = [MODULES.get(package, package) for package in BuildSettings().dependencies]
    assert run(docker_client, kernel_image, f"import {', '.join(names)}; print('all')").splitlines()[-1] == "all"


def test_the_image_is_no_larger_than_it_may_be(docker_client: APIClient, kernel_image: str) -> None:
    assert docker_client.inspect_image(kernel_image)["Size"] < 1_400_000_000


def test_charts_with_chinese_labels_come_out_right_and_the_font_cache_is_not_made_again(
    docker_client: APIClient, kernel_image: str
) -> None:
    # matplotlib warns of every glyph that no font has, and of every family it does not find; here warnings are errors.
    families = ["", "SimHei", "Microsoft YaHei", "Noto Sans CJK SC", "DejaVu Sans", "serif"]  # the first is the default
    answer = json.loads(run(docker_client, kernel_image, CHART.replace("FAMILIES", repr(families))))
    assert answer["backend"].lower() == "agg"
    assert list(answer["bytes"]) == families
    assert min(answer["bytes"].values()) > 5_000
    assert answer["cache_rebuilt"] is False


def test_a_character_that_no_font_has_would_be_warned_of(docker_client: APIClient, kernel_image: str) -> None:
    with pytest.raises(AssertionError, match="Glyph"):
        run(docker_client, kernel_image, CHART.replace("FAMILIES", "['']").replace("caf\\xe9", "\\U0001f680"))


def test_everything_that_is_imported_is_compiled(docker_client: APIClient, kernel_image: str) -> None:
    code = """
import os, sys
import ipykernel.kernelapp, numpy, pandas, matplotlib, kernel_image.protocol
modules = [m for m in list(sys.modules.values()) if (getattr(m, "__file__", None) or "").endswith(".py")]
print([m.__name__ for m in modules if getattr(m, '__cached__', None) and not os.path.exists(m.__cached__)])
"""
    assert run(docker_client, kernel_image, code).splitlines()[-1] == "[]"


def test_what_people_complete_first_is_parsed_already(docker_client: APIClient, kernel_image: str) -> None:
    code = """
import pathlib
import jedi.settings, parso.cache, kernel_image.completion
steps = [*kernel_image.completion.warm_up()]
assert steps
parsed = [pathlib.Path(path).name for modules in parso.cache.parser_cache.values() for path in modules if path]
print("builtins.pyi" in parsed, list(pathlib.Path("/tmp/.cache/jedi").rglob("*.pkl")))
"""
    assert run(docker_client, kernel_image, code) == "True []"


def test_the_supervisor_is_what_starts_and_without_a_shell(docker_client: APIClient, kernel_image: str) -> None:
    config = docker_client.inspect_image(kernel_image)["Config"]
    assert config["Entrypoint"] == ["/opt/cellblock/venv/bin/python", "-I", "-m", "kernel_image"]
    assert config["User"] == "65534:65534"
    assert not config["Cmd"]
    assert not [entry for entry in config["Env"] if "proxy" in entry.lower()]


def test_no_certificate_file_of_the_build_is_left(docker_client: APIClient, kernel_image: str) -> None:
    assert run(docker_client, kernel_image, "import os; print(os.path.exists('/opt/cellblock/inputs'))") == "False"


async def test_what_is_there_is_not_built_again(kernel_image: str) -> None:
    assert kernel_image
    first = await ensure_kernel_image(BUILD, print)
    lines: list[str] = []
    assert await ensure_kernel_image(BUILD, lines.append) == first
    assert lines == []


async def test_an_image_that_was_never_built_is_not_found(docker_client: APIClient) -> None:
    assert docker_client.ping()
    engine = DockerEngine(threads=1)
    try:
        assert await find_kernel_image(replace(BUILD, dependencies=("never-built",)), engine) is None
    finally:
        await engine.close()


async def test_a_step_that_fails_is_told_in_dockers_words(docker_client: APIClient, kernel_image: str) -> None:
    """The base of the built image is at hand, so this needs no registry; the wrong package ends the build."""
    base = _base_of(docker_client, kernel_image)
    lines: list[str] = []
    settings = BuildSettings(base=base, dependencies=("--no-index", "cellblock-no-such-package"), preload=())
    with pytest.raises(SetUpFailed, match=r"there is no such package .*cellblock-no-such") as failure:
        await ensure_kernel_image(settings, lines.append)
    assert "non-zero code" in str(failure.value).splitlines()[-1]
    assert any("cellblock-no-such-package" in line for line in lines)


async def test_a_small_image_is_built_from_nothing_but_the_base(docker_client: APIClient, kernel_image: str) -> None:
    settings = BuildSettings(base=_base_of(docker_client, kernel_image), dependencies=("tabulate",), preload=())
    tag = await ensure_kernel_image(settings, print)
    try:
        assert run(docker_client, tag, "import tabulate, ipykernel, kernel_image; print('built')") == "built"
        with pytest.raises(AssertionError, match="No module named 'numpy'"):
            run(docker_client, tag, "import numpy")
    finally:
        docker_client.remove_image(tag, force=True)


def _base_of(client: APIClient, kernel_image: str) -> str:
    assert client.inspect_image(kernel_image)["Id"]
    for name in (debian_base_tag(), BUILD.base):
        if client.images(name):
            return name
    raise AssertionError("the kernel image was built on one of these")


def test_the_docker_engine_script_agrees_that_an_engine_answers(docker_client: APIClient) -> None:
    assert docker_client.ping()
    script = Path(__file__).parents[2] / "scripts" / "docker_engine.py"
    assert subprocess.run(["python3", script, "answers"], check=False).returncode == 0
    assert "answers" in subprocess.run(["python3", script, "start"], check=True, capture_output=True, text=True).stdout
