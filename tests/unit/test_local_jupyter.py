"""The parts of the local bridge by themselves: envelopes, workspaces, kernelspecs, and the command for them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from doubles import RecordingLink, hello, message_frame
from kernel_line import RecordingListener

from gateway.cli import kernelspec as kernelspec_command
from gateway.config.loader import Config
from gateway.local_jupyter import bridge, envelopes, kernelspec, workspace
from gateway.local_jupyter.bridge_engine import choose_engine, load_config
from gateway.local_jupyter.connection import read_connection
from gateway.local_jupyter.workspace import Workspace
from kernel_image import protocol
from sessions.errors import Misconfigured, SetUpFailed
from sessions.kernels.kernel import KernelState
from sessions.kernels.link.handshake import Handshake
from sessions.provisioners.process import environment

REPOSITORY = Path(__file__).parents[2]
HEADER = json.dumps({"msg_id": "1", "msg_type": "stream"}).encode()
PARENT = json.dumps({"msg_id": "0"}).encode()


@pytest.fixture
def temporary(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(short_dir))
    return short_dir


def test_an_envelope_has_the_type_and_what_is_answered() -> None:
    envelope = envelopes.of_kernel([HEADER, PARENT, b"{}", b'{"name": "stdout"}'])
    assert envelope is not None
    assert (envelope.msg_id, envelope.msg_type, envelope.parent_id) == ("1", "stream", "0")


@pytest.mark.parametrize(
    "parts",
    [
        [b"[]", PARENT, b"{}", b"{}"],
        [b'{"msg_id": 1, "msg_type": "stream"}', PARENT, b"{}", b"{}"],
        [b'{"msg_id": "1"}', PARENT, b"{}", b"{}"],
        [HEADER, b"7", b"{}", b"{}"],
        [HEADER, b'{"msg_id": []}', b"{}", b"{}"],
        [HEADER, PARENT, b"", b"{}"],
        [HEADER, PARENT, b"{}", b"null"],
        [HEADER, PARENT, b"{}", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}"],
        [HEADER, PARENT, b"{}", b"[" * 100_000],
        [HEADER, PARENT, b"{}", b'{"a": [' + b"[]," * 400_001 + b"0]}"],
        [HEADER, PARENT, b"{}", b'{"a": ' + b"9" * 5000 + b"}"],
        [json.dumps({"msg_id": "x" * 257, "msg_type": "stream"}).encode(), PARENT, b"{}", b"{}"],
    ],
)
def test_what_a_client_could_not_decode_has_no_envelope(parts: list[bytes]) -> None:
    assert envelopes.of_kernel(parts) is None


def test_a_plot_of_a_million_numbers_passes() -> None:
    content = json.dumps({"data": {"application/json": list(range(1_000_000))}}).encode()
    assert envelopes.of_kernel([HEADER, PARENT, b"{}", content]) is not None


def test_a_workspace_is_nobodys_while_its_bridge_lives_and_can_be_taken_over_afterwards(temporary: Path) -> None:
    own = Workspace.make()
    assert own.path.parent == temporary
    assert own.path.stat().st_mode & 0o777 == 0o700
    assert list(workspace.take_over_abandoned()) == []
    own.release()
    (taken,) = workspace.take_over_abandoned()
    assert (taken.path, taken.gateway_id) == (own.path, own.gateway_id)
    taken.remove()
    assert list(temporary.iterdir()) == []


def test_a_workspace_of_another_user_a_link_and_a_strange_name_are_left_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "elsewhere").mkdir()
    (temporary / "cellblock-k-0123456789ab").symlink_to(temporary / "elsewhere")
    (temporary / "cellblock-k-notes").mkdir()
    assert list(workspace.take_over_abandoned()) == []
    (temporary / "cellblock-k-ba9876543210").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert list(workspace.take_over_abandoned()) == []


def test_a_workspace_is_elsewhere_when_temporary_files_leave_no_room_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    own = Workspace.make()
    try:
        assert own.path.parent == Path("/tmp")
    finally:
        own.remove()


def test_a_connection_file_says_where_to_listen(tmp_path: Path) -> None:
    ports = {f"{name}_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"transport": "tcp", "ip": "127.0.0.1", "key": "k", **ports}))
    assert read_connection(file).addresses["iopub"] == "tcp://127.0.0.1:2"
    file.write_text(json.dumps({"transport": "ipc", "ip": "/x/k", "key": "k", **ports}))
    assert read_connection(file).addresses["shell"] == "ipc:///x/k-1"
    for wrong in ("", "[]", '{"transport": "tcp"}'):
        file.write_text(wrong)
        with pytest.raises(SetUpFailed, match="no connection file"):
            read_connection(file)


def test_a_kernelspec_of_another_program_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    foreign = tmp_path / "share" / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text('{"argv": [], "display_name": "", "language": ""}')
    content = kernelspec.kernelspec_content("python", "Python", None)
    with pytest.raises(Misconfigured, match="another program's"):
        kernelspec.install("python3", content, user=False, prefix=str(tmp_path))
    assert cellblock("uninstall", "python3", "--prefix", str(tmp_path)).returncode == 1
    assert foreign.exists()


def test_the_command_installs_lists_and_removes_a_kernelspec(tmp_path: Path) -> None:
    jupyter = {"JUPYTER_PATH": str(tmp_path / "share" / "jupyter")}
    done = cellblock("install", "--prefix", str(tmp_path), "--name", "mine", "--display-name", "My Python")
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads((tmp_path / "share" / "jupyter" / "kernels" / "mine" / "kernel.json").read_text())
    assert (content["display_name"], content["language"]) == ("My Python", "python")
    assert content["metadata"]["kernel_provisioner"]["provisioner_name"] == "cellblock"
    assert "mine  python  " in cellblock("list", **jupyter).stdout
    assert cellblock("uninstall", "mine", **jupyter).returncode == 0
    assert "mine" not in cellblock("list", **jupyter).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["install", "--name", "../evil"], "kernelspec's name"),
        (["install", "--user", "--sys-prefix"], "exclude one another"),
        (["install", "--config", "/nonexistent"], "cannot be read"),
        (["install", "--nonsense"], "No such option"),
        (["uninstall"], "Missing argument"),
        (["install", "--language", "klingon"], "has no klingon"),
    ],
)
def test_a_command_that_makes_no_sense_is_bad_usage(arguments: list[str], says: str) -> None:
    done = cellblock(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def cellblock(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "kernelspec", *arguments],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "TERM": "dumb", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


IMPORTED = """
import json, runpy, sys
sys.argv = ["bridge", "--help"]
try:
    runpy.run_module("gateway.local_jupyter.bridge", run_name="__main__", alter_sys=True)
except SystemExit:
    print(json.dumps(sorted(sys.modules)))
"""


def test_a_bridge_imports_no_engine_before_it_is_chosen_and_neither_jupyter_client_nor_rich() -> None:
    """Somebody waits for the kernel meanwhile."""
    program = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    imported = {*json.loads(done.stdout.splitlines()[-1])}
    assert "gateway.local_jupyter.router" in imported
    assert imported & {"docker", "psutil", "jupyter_client", "traitlets", "rich.console", "sqlalchemy"} == set()


async def test_a_bridge_decodes_a_message_once_and_ends_a_kernel_whose_frame_has_a_wrong_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = bridge._make_kernel(Config(), "python")
    monkeypatch.setattr("sessions.kernels.kernel.decode", lambda _: pytest.fail("it is decoded twice"))
    passed = []

    class Tap:
        def on_frame(self, frame: memoryview) -> None:
            passed.append(protocol.decode_message(frame)[0])

        def on_gap(self, msg_id: str | None, dropped_bytes: int) -> None: ...

    kernel.tap = Tap()
    handshake = Handshake(kernel, RecordingLink(), 60.0)
    handshake.on_text(hello(kernel_id=kernel.kernel_id, credential=kernel.credential))
    listener = RecordingListener()
    handshake.on_text(protocol.encode_control("state", seq=1, state="idle"))
    kernel.execute("run", "pass", listener)
    handshake.on_binary(message_frame(2, "stream", "run", {"name": "stdout", "text": "x"}))
    handshake.on_text(protocol.encode_control("done", seq=3, msg_id="run"))
    assert passed == ["iopub"]
    assert len(listener.ends) == 1
    handshake.on_binary(protocol.number_frame(4, b"nonsense"))
    assert kernel.state is KernelState.GONE
    assert kernel.violation is not None


async def test_the_process_engines_environment_is_made_by_install_and_used_by_every_bridge(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file = tmp_path / "config.yaml"
    config_file.write_text(f"engine: {{name: process}}\nserver: {{data_dir: {temporary}}}\n")
    config = load_config(config_file, {})
    own = Workspace(temporary, -1)
    without = await choose_engine(config, own)
    assert without._template._python == Path(sys.executable)  # type: ignore[attr-defined]
    made: list[Path] = []

    async def make(directory: Path, *_: object) -> None:
        (directory / "installed").touch()
        made.append(directory / "venv" / "bin" / "python")

    monkeypatch.setattr(environment, "_make", make)
    for _ in range(2):
        await asyncio.to_thread(kernelspec_command.install, prefix=tmp_path, config=config_file)
    found = await choose_engine(config, own)
    assert [found._template._python] == made  # type: ignore[attr-defined]
    await without.close()
    await found.close()
