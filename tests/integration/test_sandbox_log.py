"""The sandbox's log: it names what a supervisor meets, holds nothing of the code, and is kept only where wanted."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from docker.api.client import APIClient
from docker.errors import APIError
from supervised import Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard
from kernel_image.protocol import REFUSED, SETTINGS_VARIABLE, SupervisorSettings, encode_control
from sessions.model import GatewayId, KernelId
from sessions.ports import LaunchSpec, Link
from sessions.provisioners.docker.container import KERNEL_LABEL, container_config
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.settings import EngineSettings, Limits


def entries(kernel: Supervised, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in kernel._log.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


async def test_a_poison_frame_is_named_with_its_traceback_before_the_supervisor_dials_again(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard) as kernel:
        kernel.send_frame(b"nonsense")
        await kernel.until(lambda: len(kernel.hellos) == 2)
        (broken,) = entries(kernel, "link_broken")
        assert broken["error"].startswith("FrameError: frame ")
        assert "in decode_message" in broken["exception"]
        await kernel.run("pass")
        assert len(entries(kernel, "link_up")) == 2


async def test_a_poison_frame_that_comes_with_every_link_is_dropped_in_the_end_and_the_gateway_is_told(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard) as kernel:
        await kernel.ready()
        for count in (2, 3):
            kernel.send_frame(b"nonsense")
            await kernel.until(lambda count=count: len(kernel.hellos) == count)  # type: ignore[misc]
        kernel.send_frame(b"nonsense")
        await kernel.until(lambda: "failed" in [frame.msg_type for frame in kernel.frames])
        (failed,) = [frame.content for frame in kernel.frames if frame.msg_type == "failed"]
        assert (failed["msg_id"], failed["why"].partition(":")[0]) == (None, "FrameError")
        assert (await kernel.run("print(1)")).text() == "1\n"
        assert len(kernel.hellos) == 3
        (dropped,) = entries(kernel, "frame_dropped")
        assert dropped["failures"] == 3


async def test_a_gateway_that_is_away_is_told_once_per_reason(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard) as kernel:
        switchboard.close(kernel.kernel_id)
        async with asyncio.timeout(10):
            while not entries(kernel, "dial_failed"):
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        (failed,) = entries(kernel, "dial_failed")
        assert failed["error"].startswith("FileNotFoundError")
        assert "exception" not in failed
        assert entries(kernel, "link_closed")


async def test_a_kernels_life_is_told_and_nothing_of_its_code_output_or_credential(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard) as kernel:
        await kernel.run("secret_name = 1\nprint('secret output')\nraise ValueError('secret error')")
        await kernel.run("import os\nos.write(2, b'secret write')\nos.system('echo secret child >&2')")
        accepted, done = entries(kernel, "request_accepted"), entries(kernel, "request_done")
        assert [line["msg_id"] for line in accepted] == [line["msg_id"] for line in done]
        assert len(done) == 2
        links = await kernel.run(
            "import os\n[os.path.realpath(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')]"
        )
        assert "/dev/null" in links.value()
        assert str(kernel._log) not in links.value()
        kernel.control("restart")
        await kernel.ready(generation=2)
        (died,) = entries(kernel, "kernel_died")
        assert (died["cause"], died["signal"], died["msg_id"]) == ("restart", 9, None)
        assert len(entries(kernel, "kernel_started")) == len(entries(kernel, "kernel_ready")) == 2
        log = kernel._log.read_text()
        assert "secret" not in log
        assert "the credential" not in log


async def test_a_supervisor_whose_log_nobody_reads_writes_none(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard, log=False) as kernel:
        kernel.send_frame(b"nonsense")
        await kernel.until(lambda: len(kernel.hellos) == 2)
        assert (await kernel.run("print(1)")).text() == "1\n"
        assert kernel.log() == ""


@pytest.mark.parametrize("sandbox_log", [True, False])
def test_the_supervisor_is_told_whether_docker_keeps_its_log(gateway_id: GatewayId, *, sandbox_log: bool) -> None:
    spec = LaunchSpec(KernelId("k"), gateway_id, "the credential", Path("/s"), Limits())
    config = container_config(spec, EngineSettings(kernel_image="image", sandbox_log=sandbox_log), uid=300_000)
    variables = dict(variable.split("=", 1) for variable in config["Env"])
    assert SupervisorSettings.from_json(variables[SETTINGS_VARIABLE]).log == sandbox_log


@pytest.mark.docker
@pytest.mark.parametrize("sandbox_log", [True, False])
async def test_docker_keeps_the_log_exactly_when_it_is_switched_on(
    switchboard: SupervisorSwitchboard,
    gateway_id: GatewayId,
    kernel_image: str,
    docker_client: APIClient,
    *,
    sandbox_log: bool,
) -> None:
    """A gateway that turns the supervisor away: its log says why it has no link."""
    refusing = Refusing()
    provisioner = DockerProvisioner(
        gateway_id, EngineSettings(name="docker", kernel_image=kernel_image, sandbox_log=sandbox_log)
    )
    kernel_id = KernelId(str(uuid.uuid4()))
    spec = LaunchSpec(kernel_id, gateway_id, "the credential", switchboard.open(kernel_id, refusing.accept), Limits())
    try:
        await provisioner.launch(spec)
        async with asyncio.timeout(30):
            while refusing.closed < 2:
                await asyncio.sleep(0.02)
        (container,) = docker_client.containers(filters={"label": f"{KERNEL_LABEL}={kernel_id}"})
        try:
            log = docker_client.logs(container["Id"]).decode()
        except APIError:  # "configured logging driver does not support reading"
            log = ""
        events = {line["event"]: line for line in map(json.loads, log.splitlines())}
        assert ("link_refused" in events) == sandbox_log, log
        if sandbox_log:
            assert events["link_refused"]["reason"] == "no gateway for you"
            assert events["link_closed"]["reason"] == "go away"
        assert "the credential" not in log
    finally:
        await provisioner.kill(kernel_id)
        await provisioner.close()


class Refusing:
    """A LinkListener that refuses every hello; `closed` counts the connections that have ended."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.closed = 0

    def accept(self, link: Link) -> Refusing:
        self.link = link
        return self

    def on_text(self, text: str) -> None:
        assert self.link is not None, text
        self.link.send_text(encode_control(REFUSED, reason="no gateway for you"))
        self.link.close("go away")

    def on_binary(self, data: bytes) -> None:
        raise AssertionError(data)

    def on_closed(self) -> None:
        self.closed += 1


def test_a_log_that_nobody_reads_holds_nothing_up_and_loses_whole_lines() -> None:
    program = (
        "from kernel_image.sandbox_log import log_event, never_wait\n"
        "never_wait()\n"
        "[log_event('same', number=n, text='x' * 1000) for n in range(500)]\n"
        "print('goes on')"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"goes on\n"
        lines = [json.loads(line) for line in process.stderr]
    assert [line["number"] for line in lines] == list(range(len(lines)))
    assert 0 < len(lines) < 500


async def test_a_supervisor_whose_log_nobody_reads_serves_on(
    short_dir: Path, switchboard: SupervisorSwitchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write_fd, bytes(4096))
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: start(*args, **{**options, "stderr": write_fd}))
    async with supervised(short_dir, switchboard) as kernel:
        assert (await kernel.run("6 * 7")).value() == "42"
    os.close(read_fd)
    os.close(write_fd)
