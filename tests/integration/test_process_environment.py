"""The environment of the process engine's kernels: made once, made anew when it should hold something else."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from gateway.supervisors import SupervisorSwitchboard
from sessions.errors import SetUpFailed
from sessions.model import GatewayId, KernelId
from sessions.ports import LaunchSpec
from sessions.provisioners.process import environment
from sessions.provisioners.process.environment import ensure_environment, find_environment, remove_unused
from sessions.provisioners.process.provisioner import ProcessProvisioner
from sessions.provisioners.process.template import Template
from sessions.settings import BuildSettings, Limits

SETTINGS = BuildSettings(dependencies=("tabulate",), preload=())


@pytest.fixture(scope="module")
def empty_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with nothing but pip in it."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    return venv


@pytest.fixture
def copied_venvs(empty_venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Venvs are copies of one: making one takes seconds. The first test makes its own."""
    run_program = environment.run_program

    async def run(command: list[str], progress: environment.Progress, **options: Any) -> None:
        if command[1:3] == ["-m", "venv"]:
            await asyncio.to_thread(shutil.copytree, empty_venv, command[3], symlinks=True)
        else:
            await run_program(command, progress, **options)

    monkeypatch.setattr(environment, "run_program", run)


async def test_the_environment_holds_the_packages_and_the_supervisor_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requirements", lambda _: b"tabulate\n")  # ipykernel's twenty packages take long
    assert find_environment(SETTINGS, tmp_path) is None
    python = await ensure_environment(SETTINGS, tmp_path, print)
    modules = "import tabulate, kernel_image.protocol; print(tabulate.__file__)"
    where = await asyncio.to_thread(subprocess.check_output, [python, "-I", "-c", modules], text=True)
    assert tmp_path in Path(where).parents
    lines: list[str] = []
    assert await ensure_environment(SETTINGS, tmp_path, lines.append) == python
    assert lines == []
    assert find_environment(replace(SETTINGS, constraints="none"), tmp_path) is None


@pytest.mark.usefixtures("copied_venvs")
async def test_versions_that_this_python_cannot_have_are_replaced_unless_the_operator_chose_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requirements", lambda _: b"tabulate\n")
    monkeypatch.setattr(environment, "constraints", lambda _: b"tabulate==0.0.0\n")
    with pytest.raises(SetUpFailed, match="ResolutionImpossible"):
        await ensure_environment(replace(SETTINGS, constraints="mine.txt"), tmp_path, print)
    python = await ensure_environment(SETTINGS, tmp_path, print)
    assert await asyncio.to_thread(subprocess.call, [python, "-I", "-c", "import tabulate"]) == 0


@pytest.mark.usefixtures("copied_venvs")
async def test_what_cannot_be_installed_is_told_in_pips_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requirements", lambda _: b"--no-index\ncellblock-no-such-package\n")
    with pytest.raises(SetUpFailed, match="cellblock-no-such-package"):
        await ensure_environment(SETTINGS, tmp_path, print)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - an iterator would be blocking


class Index(SimpleHTTPRequestHandler):
    """A package index with two versions of one package. `missing` are paths that it does not find this time."""

    missing: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = self.path.rstrip("/").rpartition("/")[2]
        if name in self.missing:
            self.missing.remove(name)
            self.send_error(404)
            return
        if name.endswith(".whl"):
            body, kind = wheel(name), "application/octet-stream"
        else:
            wheels = [f"cellblock_demo-{version}-py3-none-any.whl" for version in ("1.0", "2.0")]
            body, kind = "".join(f'<a href="/{name}">{name}</a>' for name in wheels).encode(), "text/html"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        del args


def wheel(name: str) -> bytes:
    project, version = name.split("-")[:2]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        folder = f"{project}-{version}.dist-info"
        archive.writestr(f"{project}.py", f"version = {version!r}")
        archive.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    return buffer.getvalue()


@pytest.fixture
def index(copied_venvs: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Index]]:
    """An index whose package the environments of this test are to hold, in version 1.0."""
    del copied_venvs
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    where = f"--index-url http://127.0.0.1:{server.server_port}/simple\ncellblock-demo\n"
    monkeypatch.setattr(environment, "requirements", lambda _: where.encode())
    monkeypatch.setattr(environment, "constraints", lambda _: b"cellblock-demo==1.0\n")
    Index.missing.clear()
    yield Index
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("index")
async def test_kernels_find_their_own_environment_first(
    tmp_path: Path, switchboard: SupervisorSwitchboard, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = await ensure_environment(SETTINGS, tmp_path, print)
    started: list[Mapping[str, str]] = []
    monkeypatch.setattr(Template, "launch", lambda _template, environment, *_: started.append(environment) or 0)
    gateway_id = GatewayId("g")
    provisioner = ProcessProvisioner(gateway_id, short_dir / "p", python)
    kernel_id = KernelId(str(uuid.uuid4()))
    directory = switchboard.open(kernel_id, lambda _link: pytest.fail("nobody dials"))
    await provisioner.launch(LaunchSpec(kernel_id, gateway_id, "secret", directory, Limits()))
    await provisioner.close()
    (environ,) = started
    venv = python.parent.parent
    assert environ["PATH"].split(":")[0] == str(venv / "bin")
    assert environ["VIRTUAL_ENV"] == str(venv)
    assert "CELLBLOCK_MPL_CACHE" not in environ, "there is no matplotlib in it"


async def version_in(python: Path) -> str:
    code = "import cellblock_demo; print(cellblock_demo.version)"
    return (await asyncio.to_thread(subprocess.check_output, [python, "-I", "-c", code], text=True)).strip()


async def test_an_index_that_does_not_answer_for_a_while_does_not_unpin_the_versions(
    tmp_path: Path, index: type[Index]
) -> None:
    index.missing.append("cellblock-demo")
    assert await version_in(await ensure_environment(SETTINGS, tmp_path, print)) == "1.0"


async def test_a_download_that_fails_is_no_reason_to_take_other_versions(tmp_path: Path, index: type[Index]) -> None:
    index.missing.append("cellblock_demo-1.0-py3-none-any.whl")
    with pytest.raises(SetUpFailed, match="404"):
        await ensure_environment(SETTINGS, tmp_path, print)
    assert await version_in(await ensure_environment(SETTINGS, tmp_path, print)) == "1.0"


async def test_an_environment_is_removed_when_no_process_uses_it_and_a_failure_removes_none(
    tmp_path: Path, index: type[Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await ensure_environment(SETTINGS, tmp_path, print)
    monkeypatch.setattr(environment, "constraints", lambda _: b"cellblock-demo==2.0\n")
    index.missing.append("cellblock_demo-2.0-py3-none-any.whl")
    with pytest.raises(SetUpFailed):
        await ensure_environment(SETTINGS, tmp_path, print)
    assert await version_in(old) == "1.0"
    new = await ensure_environment(SETTINGS, tmp_path, print)
    assert await version_in(old) == "1.0"
    process = await asyncio.create_subprocess_exec(str(old), "-I", "-c", "input()", stdin=asyncio.subprocess.PIPE)
    await remove_unused(tmp_path, new)
    assert await version_in(old) == "1.0"
    await process.communicate(b"\n")
    await remove_unused(tmp_path, new)
    assert not old.parent.exists()
    assert await version_in(new) == "2.0"


async def test_pip_uses_the_proxy_and_the_certificates_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    async def run(command: list[str], _progress: environment.Progress, **_options: object) -> None:
        commands.append(command)

    monkeypatch.setattr(environment, "run_program", run)
    monkeypatch.setattr(environment, "_link_kernel_image", lambda _: None)
    settings = replace(SETTINGS, proxy="http://proxy.example:3128", ca_bundle="~/ca.pem")
    await ensure_environment(settings, tmp_path, print)
    assert {"--proxy=http://proxy.example:3128", f"--cert={Path.home() / 'ca.pem'}"} <= set(commands[1])
    commands.clear()
    await ensure_environment(replace(settings, proxy="", ca_bundle="", constraints="none"), tmp_path, print)
    assert not any(word.startswith(("--proxy", "--cert")) for command in commands for word in command)
