"""Jupyter tools of this machine that find Cellblock's kernels: kernelspecs in a place of the test's own, and clients.

A pytest plugin. `process_jupyter` has kernels that are plain processes, `docker_jupyter` has them in containers.
`lasting_jupyter` has one of the former, for all tests of a module that neither end it nor need a fresh one.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import shared_template
import yaml
from docker.api.client import APIClient
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop

from gateway.cli import kernelspec as kernelspec_command
from gateway.local_jupyter import bridge_process
from gateway.local_jupyter.workspace import Workspace
from sessions.provisioners.docker.container import GATEWAY_LABEL

HERE = Path(__file__).parent
KERNEL = "cellblock-python"
PATIENCE_S = 60.0
_PROGRAMS = {"gateway.local_jupyter.bridge", "bridge_program"}
Content = dict[str, Any]


@dataclass
class Jupyter:
    """`environment` is what a Jupyter tool must have to find the kernels; `temporary` is where their bridges live."""

    environment: Mapping[str, str]
    temporary: Path

    @contextmanager
    def kernel(self, **options: Any) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
        """A kernel that answers."""
        manager = KernelManager(**{"kernel_name": KERNEL, **options})
        manager.start_kernel()
        try:
            with self.client(manager) as client:
                yield manager, client
        finally:
            manager.shutdown_kernel(now=True)

    @contextmanager
    def client(self, manager: KernelManager) -> Iterator[BlockingKernelClient]:
        """A client of its own, which has the connection file and no more; `manager.client()` shares its identity."""
        client = BlockingKernelClient(connection_file=manager.connection_file)
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=PATIENCE_S)
            yield client
        finally:
            client.stop_channels()

    def places(self) -> list[Path]:
        """The directories of the bridges that there are."""
        return list(self.temporary.glob("cellblock-k-*"))

    def gateway_id(self) -> str:
        """What the containers of the only bridge carry."""
        (path,) = self.places()
        return Workspace(path, -1).gateway_id

    def bridges(self) -> list[psutil.Process]:
        """The bridges of this test's kernels."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TMPDIR") == str(self.temporary) and _PROGRAMS & {*process.cmdline()}:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def run(client: BlockingKernelClient, code: str, **options: Any) -> tuple[Content, str]:
    """Execute code; the reply's content, and the text that it printed to either stream."""
    text: list[str] = []

    def hear(message: Mapping[str, Any]) -> None:
        if message["msg_type"] == "stream":
            text.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=PATIENCE_S, **options)
    return reply["content"], "".join(text)


def until(condition: Callable[[], Any], patience_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline_s, "it has not come true in time"
        time.sleep(0.02)


def containers(docker_client: APIClient, gateway_id: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = docker_client.containers(
        all=True, filters={"label": f"{GATEWAY_LABEL}={gateway_id}"}
    )
    return found


def install(prefix: Path, config: Mapping[str, Any], **options: str) -> None:
    """Install a kernelspec for this configuration, as `cellblock kernelspec install` does."""
    file = prefix / "cellblock.yaml"
    file.write_text(yaml.safe_dump(dict(config)))
    kernelspec_command.install(prefix=prefix, config=file, **options)


@contextmanager
def jupyter_with(
    config: Mapping[str, Any], prefix: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Jupyter]:
    for name in [name for name in os.environ if name.startswith("CELLBLOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(temporary / "runtime"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    install(prefix, config)
    jupyter = Jupyter(dict(os.environ), temporary)
    yield jupyter
    ensure_event_loop().close()  # in which jupyter_client's blocking calls have run, and which nobody else closes
    until(lambda: not jupyter.bridges())
    assert jupyter.places() == []


_PROCESS_CONFIG = {
    "engine": {"name": "process"},
    "build": {"dependencies": [], "preload": []},  # kernels run in the tests' own environment
    "languages": {"python": "python3", "bash": "bash"},
}


def share_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bridges that this process starts fork their supervisors of its template, rather than each make its own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv(shared_template.VARIABLE, shared_template.address())
    monkeypatch.setattr(bridge_process, "_MODULE", "bridge_program")


@pytest.fixture
def process_jupyter(tmp_path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jupyter]:
    share_template(monkeypatch)
    with jupyter_with(_PROCESS_CONFIG, tmp_path, short_dir, monkeypatch) as jupyter:
        yield jupyter


class LastingJupyter(Jupyter):
    """Its only kernel is the module's; each test has a client of its own."""

    manager: KernelManager

    @contextmanager
    def kernel(self, **options: Any) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
        """The kernel. Afterwards it must work, behind the same bridge; its variables are forgotten."""
        assert options == {}
        bridges = self.bridges()
        with self.client(self.manager) as client:
            yield self.manager, client
        with self.client(self.manager) as client:
            assert run(client, "%reset -f\nprint('on')")[1] == "on\n"
        assert self.bridges() == bridges


@pytest.fixture(scope="module")
def lasting_jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastingJupyter]:
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory(prefix="cb-") as short_dir:
        share_template(monkeypatch)
        yield from _lasting(tmp_path_factory.mktemp("lasting"), Path(short_dir), monkeypatch)


def _lasting(prefix: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LastingJupyter]:
    with jupyter_with(_PROCESS_CONFIG, prefix, temporary, monkeypatch) as jupyter, jupyter.kernel() as (manager, _):
        lasting = LastingJupyter(jupyter.environment, jupyter.temporary)
        lasting.manager = manager
        yield lasting


def _docker_config(kernel_image: str) -> dict[str, Any]:
    return {
        "engine": {"name": "docker", "kernel_image": kernel_image},
        "build": {"dependencies": [], "preload": []},  # kernels run in the tests' own environment
        "limits": {"memory": "512M", "disk": "64M"},
    }


@pytest.fixture
def docker_jupyter(
    kernel_image: str, tmp_path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Jupyter]:
    with jupyter_with(_docker_config(kernel_image), tmp_path, short_dir, monkeypatch) as jupyter:
        yield jupyter


@pytest.fixture(scope="class")
def docker_kernel_of_class(
    kernel_image: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[None]:
    """For a class that `begin`s and `end`s with one kernel."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        tempfile.TemporaryDirectory(prefix="cb-") as short_dir,
        jupyter_with(_docker_config(kernel_image), tmp_path_factory.mktemp("class"), Path(short_dir), monkeypatch),
    ):
        request.cls.begin()
        yield
        request.cls.end()
