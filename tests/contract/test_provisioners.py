"""What every engine promises, whichever it is. Real supervisors dial into a real switchboard."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import secrets
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from docker.api.client import APIClient
from engine_fixtures import docker_settings

from gateway.supervisors import SupervisorSwitchboard
from kernel_image import protocol
from sessions.errors import EngineUnavailable, Misconfigured
from sessions.model import GatewayId, KernelId
from sessions.ports import Fate, LaunchSpec, Link, Provisioner
from sessions.provisioners.docker.container import KERNEL_LABEL
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.provisioners.process.provisioner import ProcessProvisioner
from sessions.settings import EngineSettings, Limits

DEADLINE_S = 30


class Caller:
    """A LinkListener that welcomes whoever calls, and keeps its hello."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def accept(self, link: Link) -> Caller:
        self.link = link
        return self

    def on_text(self, text: str) -> Awaitable[None] | None:
        message = json.loads(text)
        if message["op"] == protocol.HELLO and not self.hello.done():
            self.hello.set_result(message)
            assert self.link is not None
            self.link.send_text(protocol.encode_control(protocol.WELCOME, acknowledged=0))
        return None

    def on_binary(self, data: bytes) -> Awaitable[None] | None:
        del data
        return None

    def on_closed(self) -> None:
        self.link = None


@dataclass
class Bench:
    """One engine under test, and a way to see what it left behind without asking it."""

    make: Callable[[GatewayId], Provisioner]
    remains: Callable[[KernelId], list[Any]]
    switchboard: SupervisorSwitchboard
    gateway_id: GatewayId
    made: list[Provisioner]

    def provisioner(self, gateway_id: GatewayId | None = None) -> Provisioner:
        self.made.append(self.make(gateway_id or self.gateway_id))
        return self.made[-1]

    def spec(self, caller: Caller, gateway_id: GatewayId | None = None) -> LaunchSpec:
        kernel_id = KernelId(str(uuid.uuid4()))
        return LaunchSpec(
            kernel_id=kernel_id,
            gateway_id=gateway_id or self.gateway_id,
            credential=secrets.token_hex(16),
            socket_dir=self.switchboard.open(kernel_id, caller.accept),
            limits=Limits(),
        )


def remaining_processes(root: Path, kernel_id: KernelId) -> list[Any]:
    directories = list(root.glob(kernel_id.replace("-", "")[:12]))
    processes = []
    for process in psutil.process_iter():
        try:
            if any(str(root) in value for value in process.environ().values()) and process.status() != "zombie":
                processes.append(process)
        except psutil.Error:
            continue
    return [*directories, *processes]


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def bench(
    request: pytest.FixtureRequest, short_dir: Path, switchboard: SupervisorSwitchboard, gateway_id: GatewayId
) -> AsyncIterator[Bench]:
    if request.param == "docker":
        client: APIClient = request.getfixturevalue("docker_client")
        settings = docker_settings(request.getfixturevalue("kernel_image"))
        bench = Bench(
            make=lambda owner: DockerProvisioner(owner, settings, zygote_dir=short_dir / owner[:8]),
            remains=lambda kernel: client.containers(all=True, filters={"label": f"{KERNEL_LABEL}={kernel}"}),
            switchboard=switchboard,
            gateway_id=gateway_id,
            made=[],
        )
    else:
        bench = Bench(
            make=lambda owner: ProcessProvisioner(owner, short_dir / "p"),
            remains=lambda kernel: remaining_processes(short_dir / "p", kernel),
            switchboard=switchboard,
            gateway_id=gateway_id,
            made=[],
        )
    yield bench
    for provisioner in bench.made:
        for kernel_id in await provisioner.list():
            await provisioner.kill(kernel_id)
        await provisioner.close()


async def until_fate(provisioner: Provisioner, kernel_id: KernelId) -> Fate:
    async with asyncio.timeout(DEADLINE_S):
        while (fate := await provisioner.fate(kernel_id)) is None:
            await asyncio.sleep(0.05)
    return fate


async def test_a_launched_supervisor_dials_in_with_its_credential(bench: Bench) -> None:
    caller = Caller()
    spec = bench.spec(caller)
    await bench.provisioner().launch(spec)
    hello = await asyncio.wait_for(caller.hello, DEADLINE_S)
    assert (hello["kernel_id"], hello["credential"]) == (spec.kernel_id, spec.credential)


async def test_a_launch_is_listed(bench: Bench) -> None:
    provisioner = bench.provisioner()
    spec = bench.spec(Caller())
    await provisioner.launch(spec)
    assert await provisioner.list() == [spec.kernel_id]


async def test_another_gateways_sandboxes_are_neither_listed_nor_killed(bench: Bench) -> None:
    ours, theirs = bench.provisioner(), bench.provisioner(GatewayId("another-" + bench.gateway_id))
    caller = Caller()
    spec = bench.spec(caller, GatewayId("another-" + bench.gateway_id))
    await theirs.launch(spec)
    assert await ours.list() == []
    await ours.kill(spec.kernel_id)
    assert (await asyncio.wait_for(caller.hello, DEADLINE_S))["kernel_id"] == spec.kernel_id
    assert await theirs.list() == [spec.kernel_id]


async def test_kill_leaves_nothing_and_may_be_repeated(bench: Bench) -> None:
    provisioner = bench.provisioner()
    caller = Caller()
    spec = bench.spec(caller)
    await provisioner.launch(spec)
    await asyncio.wait_for(caller.hello, DEADLINE_S)
    assert bench.remains(spec.kernel_id) != []
    await provisioner.kill(spec.kernel_id)
    assert bench.remains(spec.kernel_id) == []
    assert await provisioner.list() == []
    await provisioner.kill(spec.kernel_id)


async def test_killing_an_unknown_kernel_is_no_error(bench: Bench) -> None:
    await bench.provisioner().kill(KernelId(str(uuid.uuid4())))


async def test_two_kills_at_once_both_return_when_it_is_gone(bench: Bench) -> None:
    provisioner = bench.provisioner()
    spec = bench.spec(Caller())
    await provisioner.launch(spec)
    await asyncio.gather(provisioner.kill(spec.kernel_id), provisioner.kill(spec.kernel_id))
    assert bench.remains(spec.kernel_id) == []


async def test_the_fate_of_a_supervisor_told_to_shut_down_is_exit_code_0(bench: Bench) -> None:
    provisioner = bench.provisioner()
    caller = Caller()
    spec = bench.spec(caller)
    await provisioner.launch(spec)
    await asyncio.wait_for(caller.hello, DEADLINE_S)
    assert await provisioner.fate(spec.kernel_id) is None
    assert caller.link is not None
    caller.link.send_text(protocol.encode_control(protocol.SHUTDOWN))
    assert await until_fate(provisioner, spec.kernel_id) == Fate(exit_code=0, oom=False)


async def test_the_fate_of_a_killed_supervisor_is_sigkill(bench: Bench) -> None:
    provisioner = bench.provisioner()
    spec = bench.spec(Caller())
    await provisioner.launch(spec)
    await provisioner.kill(spec.kernel_id)
    assert await until_fate(provisioner, spec.kernel_id) == Fate(exit_code=137, oom=False)


async def test_nothing_is_known_of_the_fate_of_an_unknown_kernel(bench: Bench) -> None:
    assert await bench.provisioner().fate(KernelId(str(uuid.uuid4()))) is None


async def test_a_launch_that_fails_leaves_nothing(bench: Bench) -> None:
    provisioner = bench.provisioner()
    spec = bench.spec(Caller())
    bench.switchboard.close(spec.kernel_id)  # takes the socket's directory away
    with pytest.raises(EngineUnavailable):
        await provisioner.launch(spec)
    assert bench.remains(spec.kernel_id) == []
    assert not spec.socket_dir.exists()


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.06])
async def test_a_launch_that_is_cancelled_leaves_nothing(bench: Bench, pause_s: float) -> None:
    provisioner = bench.provisioner()
    await provisioner.list()  # so that the engine's version is known and the pause falls into the launch
    spec = bench.spec(Caller())
    launch = asyncio.create_task(provisioner.launch(spec))
    await asyncio.sleep(pause_s)
    launch.cancel()
    await asyncio.wait([launch])
    if not launch.cancelled():  # it was quicker than the pause
        await provisioner.kill(spec.kernel_id)
    assert bench.remains(spec.kernel_id) == []


async def test_sandboxes_outlive_their_gateway_and_the_next_one_finds_and_ends_them(bench: Bench) -> None:
    caller = Caller()
    first = bench.provisioner()
    spec = bench.spec(caller)
    await first.launch(spec)
    await asyncio.wait_for(caller.hello, DEADLINE_S)
    bench.made.remove(first)
    await first.close()
    second = bench.provisioner()
    assert await second.list() == [spec.kernel_id]
    assert await second.fate(spec.kernel_id) is None
    await second.kill(spec.kernel_id)
    assert bench.remains(spec.kernel_id) == []


async def test_check_passes_where_a_launch_works(bench: Bench) -> None:
    await bench.provisioner().check()


@pytest.mark.docker
async def test_a_missing_kernel_image_is_said_with_what_to_do(
    docker_client: APIClient, gateway_id: GatewayId, short_dir: Path
) -> None:
    assert docker_client.ping()
    provisioner = DockerProvisioner(gateway_id, EngineSettings(kernel_image="cellblock-kernel:missing"))
    spec = LaunchSpec(KernelId(str(uuid.uuid4())), gateway_id, "secret", short_dir, Limits())
    with pytest.raises(EngineUnavailable, match="cellblock build"):
        await provisioner.check()
    with pytest.raises(EngineUnavailable, match="cellblock build"):
        await provisioner.launch(spec)
    await provisioner.close()


class Repeating:
    """Draws the same user id twice, then another."""

    def __init__(self, first: int) -> None:
        self.draws = iter((first, first, first + 1))

    def choice(self, numbers: range) -> int:
        number = next(self.draws)
        assert number in numbers
        return number


@pytest.mark.docker
async def test_a_taken_user_id_is_not_used_twice(kernel_image: str, gateway_id: GatewayId, short_dir: Path) -> None:
    provisioner = DockerProvisioner(
        gateway_id,
        EngineSettings(kernel_image=kernel_image),
        randomness=Repeating(1_900_000_000 + os.getpid()),  # type: ignore[arg-type]
    )
    for _ in range(2):
        await provisioner.launch(LaunchSpec(KernelId(str(uuid.uuid4())), gateway_id, "secret", short_dir, Limits()))
    kernel_ids = await provisioner.list()
    for kernel_id in kernel_ids:
        await provisioner.kill(kernel_id)
    await provisioner.close()
    assert len(kernel_ids) == 2


@pytest.fixture
def collects() -> Iterator[None]:
    """Collect what the test has left, once its last reference is gone."""
    yield
    gc.collect()


# docker-py forgets to close a socket that did not connect; it is collected here, so that no later test is blamed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("collects")
async def test_a_stopped_engine_is_said_and_not_waited_for(
    gateway_id: GatewayId, monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{short_dir}/nobody.sock")
    provisioner = DockerProvisioner(gateway_id, EngineSettings(kernel_image="any"))
    for attempt in (provisioner.check(), provisioner.list(), provisioner.kill(KernelId("any"))):
        with pytest.raises(EngineUnavailable, match="DOCKER_HOST"):
            await attempt
    await provisioner.close()


async def test_a_root_too_long_for_sockets_is_refused_at_once(gateway_id: GatewayId) -> None:
    with pytest.raises(Misconfigured, match=r"server\.data_dir"):
        ProcessProvisioner(gateway_id, Path("/" + "long/" * 20))


async def test_a_directory_that_cannot_be_removed_is_the_engine_out_of_reach(
    process_provisioner: ProcessProvisioner, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EBUSY, "busy")

    kernel_id = KernelId(str(uuid.uuid4()))
    (short_dir / "p" / kernel_id.replace("-", "")[:12]).mkdir(parents=True)
    with monkeypatch.context() as broken:
        broken.setattr("shutil.rmtree", refuse)
        with pytest.raises(EngineUnavailable, match="cannot be removed"):
            await process_provisioner.kill(kernel_id)
    await process_provisioner.kill(kernel_id)


def autogroup_niceness(pid: int) -> int | None:
    """None where the system does not group processes by session."""
    try:
        if Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() != "1":
            return None
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    except OSError:
        return None


async def test_processes_weigh_less_than_the_gateway(
    process_provisioner: ProcessProvisioner, switchboard: SupervisorSwitchboard, short_dir: Path, gateway_id: GatewayId
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    kernel_id = KernelId(str(uuid.uuid4()))
    caller = Caller()
    spec = LaunchSpec(kernel_id, gateway_id, "secret", switchboard.open(kernel_id, caller.accept), Limits())
    await process_provisioner.launch(spec)
    await asyncio.wait_for(caller.hello, DEADLINE_S)
    (record_file,) = (short_dir / "p").glob("*/record.json")
    supervisor = psutil.Process(json.loads(record_file.read_text())["pid"])
    processes = [supervisor, *supervisor.children(recursive=True)]
    assert {process.nice() for process in processes} == {min(19, own + 5)}
    assert autogroup_niceness(supervisor.pid) in (None, min(19, own + 5))
    await process_provisioner.kill(kernel_id)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_template_that_does_not_answer_is_replaced_and_what_it_has_forked_goes_on(
    process_provisioner: ProcessProvisioner,
    switchboard: SupervisorSwitchboard,
    short_dir: Path,
    gateway_id: GatewayId,
    *,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    monkeypatch.setattr("sessions.provisioners.process.template._TIMEOUT_S", 2.0)

    async def launch() -> tuple[KernelId, psutil.Process]:
        caller, kernel_id = Caller(), KernelId(str(uuid.uuid4()))
        spec = LaunchSpec(kernel_id, gateway_id, "secret", switchboard.open(kernel_id, caller.accept), Limits())
        await process_provisioner.launch(spec)
        await asyncio.wait_for(caller.hello, DEADLINE_S)
        record = (short_dir / "p" / kernel_id.replace("-", "")[:12] / "record.json").read_text()
        return kernel_id, psutil.Process(json.loads(record)["pid"])

    first, first_process = await launch()
    template = first_process.parent()
    assert template is not None
    template.send_signal(number)
    second, second_process = await launch()
    assert second_process.parent() not in (template, first_process.parent())
    assert not template.is_running()
    assert await process_provisioner.fate(first) is None
    first_process.kill()
    second_process.kill()
    assert await until_fate(process_provisioner, first) == Fate(exit_code=None, oom=False)
    assert await until_fate(process_provisioner, second) == Fate(exit_code=137, oom=False)


async def test_an_interpreter_that_starts_no_template_is_said_so(
    switchboard: SupervisorSwitchboard, short_dir: Path, gateway_id: GatewayId
) -> None:
    provisioner = ProcessProvisioner(gateway_id, short_dir / "p", python=Path("/bin/false"))
    kernel_id = KernelId(str(uuid.uuid4()))
    spec = LaunchSpec(kernel_id, gateway_id, "secret", switchboard.open(kernel_id, Caller().accept), Limits())
    with pytest.raises(EngineUnavailable, match=r"could not be started \(the process that forks them has ended\)"):
        await provisioner.launch(spec)
    assert not list((short_dir / "p").iterdir())
    await provisioner.close()


async def test_a_reused_process_id_is_left_alone(
    process_provisioner: ProcessProvisioner, switchboard: SupervisorSwitchboard, short_dir: Path, gateway_id: GatewayId
) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    await asyncio.sleep(0.05)  # start times are told in ticks of 10 ms
    kernel_id = KernelId(str(uuid.uuid4()))
    spec = LaunchSpec(kernel_id, gateway_id, "secret", switchboard.open(kernel_id, Caller().accept), Limits())
    await process_provisioner.launch(spec)
    (record_file,) = (short_dir / "p").glob("*/record.json")
    record = json.loads(record_file.read_text())
    record_file.write_text(json.dumps({**record, "pid": bystander.pid}))
    await process_provisioner.kill(kernel_id)
    assert bystander.returncode is None
    assert psutil.Process(bystander.pid).status() != "zombie"
    bystander.kill()
    await bystander.wait()


async def test_a_record_of_another_version_counts(
    process_provisioner: ProcessProvisioner, switchboard: SupervisorSwitchboard, short_dir: Path, gateway_id: GatewayId
) -> None:
    kernel_id = KernelId(str(uuid.uuid4()))
    spec = LaunchSpec(kernel_id, gateway_id, "secret", switchboard.open(kernel_id, Caller().accept), Limits())
    await process_provisioner.launch(spec)
    (record_file,) = (short_dir / "p").glob("*/record.json")
    record_file.write_text(json.dumps({**json.loads(record_file.read_text()), "session_id": None}))
    assert await process_provisioner.list() == [kernel_id]
