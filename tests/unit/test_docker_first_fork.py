"""The fork that begins with a container's start, and the question of its supervisor, which comes later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import docker.errors
import pytest
from doubles import refusals, until

from sessions.errors import EngineUnavailable
from sessions.model import GatewayId, KernelId
from sessions.ports import ForkedKernel, LaunchSpec
from sessions.provisioners.docker.container import KERNEL_LABEL
from sessions.provisioners.docker.engine import EngineFacts, facts_from
from sessions.provisioners.docker.events import ContainerEvents
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.settings import EngineSettings, Limits

KERNEL = KernelId("k")
SPEC = LaunchSpec(KERNEL, GatewayId("g"), "secret", Path("/nowhere"), Limits())


class MemoryDocker:
    """An engine and its client. The state: its containers, by id, and how often it was asked about one."""

    def __init__(self) -> None:
        self.kernels: dict[str, str] = {}
        self.init = 4711
        self.inspected = 0

    def client(self) -> MemoryDocker:
        return self

    async def call(self, function: Callable[[Any], Any], *, refused: str = "") -> Any:
        await asyncio.sleep(0)
        with refusals(refused):
            return function(self)

    async def facts(self) -> EngineFacts:
        return facts_from({}, {}, shares_host=True)

    async def close(self) -> None:
        self.kernels.clear()

    def create_container_from_config(self, config: Mapping[str, Any], name: str) -> dict[str, str]:
        assert name
        container_id = f"container {len(self.kernels)}"
        self.kernels[container_id] = config["Labels"][KERNEL_LABEL]
        return {"Id": container_id}

    def start(self, container_id: str) -> None:
        assert container_id in self.kernels

    def inspect_container(self, container_id: str) -> dict[str, Any]:
        self.inspected += 1
        if container_id not in self.kernels:
            raise docker.errors.NotFound("no such container")
        return {"State": {"Pid": self.init}}

    def remove_container(self, container_id: str, *, force: bool, v: bool) -> None:
        assert force
        assert v
        del self.kernels[container_id]

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        return [{"Id": one, "Labels": {KERNEL_LABEL: kernel}} for one, kernel in self.kernels.items()]


class MemoryZygote:
    """Forks when `goes_on` is set; `failures` first ones fail. It notes what it was asked, and what was cancelled."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, bool]] = []
        self.cancelled = 0
        self.failures = 0
        self.is_there = True
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def ready(self, *_: object) -> bool:
        return self.is_there

    async def fork(self, container_id: str, init: int, *, counts: bool = True) -> ForkedKernel:
        self.asked.append((container_id, init, counts))
        pid = len(self.asked) + 10
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failures:
            self.failures -= 1
            raise EngineUnavailable("This fork was told to fail.")
        return ForkedKernel(pid, {})

    async def close(self) -> None:
        """Nothing is left."""


@pytest.fixture
def engine() -> MemoryDocker:
    return MemoryDocker()


@pytest.fixture
def zygote() -> MemoryZygote:
    return MemoryZygote()


@pytest.fixture
async def provisioner(
    engine: MemoryDocker, zygote: MemoryZygote, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DockerProvisioner]:
    monkeypatch.setattr(ContainerEvents, "start", lambda _: None)
    settings = EngineSettings(name="docker", kernel_image="image")
    provisioner = DockerProvisioner(GatewayId("g"), settings, cast("Any", engine))
    provisioner._zygote = cast("Any", zygote)
    yield provisioner
    await provisioner.close()


def tasks() -> int:
    return len(asyncio.all_tasks())


async def test_the_first_kernel_is_forked_before_the_supervisor_asks(
    provisioner: DockerProvisioner, engine: MemoryDocker, zygote: MemoryZygote
) -> None:
    await provisioner.launch(SPEC)
    await until(lambda: zygote.asked == [("container 0", 4711, False)])
    assert (await provisioner.fork(KERNEL, 1)).pid == 11
    assert (await provisioner.fork(KERNEL, 2)).pid == 12
    assert zygote.asked[1:] == [("container 0", 4711, True)]
    assert engine.inspected == 1


async def test_a_supervisor_that_asks_meanwhile_waits_for_the_same_fork(
    provisioner: DockerProvisioner, zygote: MemoryZygote
) -> None:
    zygote.goes_on.clear()
    await provisioner.launch(SPEC)
    asking = asyncio.ensure_future(provisioner.fork(KERNEL, 1))
    await until(lambda: bool(zygote.asked))
    zygote.goes_on.set()
    assert (await asking).pid == 11
    assert len(zygote.asked) == 1


async def test_a_fork_that_has_failed_is_tried_again_when_the_supervisor_asks(
    provisioner: DockerProvisioner, zygote: MemoryZygote
) -> None:
    zygote.failures = 1
    await provisioner.launch(SPEC)
    await until(lambda: zygote.failures == 0)
    assert (await provisioner.fork(KERNEL, 1)).pid == 12
    assert zygote.asked == [("container 0", 4711, False), ("container 0", 4711, True)]


async def test_a_second_failure_is_the_supervisors_answer(provisioner: DockerProvisioner, zygote: MemoryZygote) -> None:
    zygote.failures = 2
    await provisioner.launch(SPEC)
    with pytest.raises(EngineUnavailable, match="told to fail"):
        await provisioner.fork(KERNEL, 1)


async def test_a_later_kernel_is_never_the_first_fork(provisioner: DockerProvisioner, zygote: MemoryZygote) -> None:
    await provisioner.launch(SPEC)
    await until(lambda: bool(zygote.asked))
    assert (await provisioner.fork(KERNEL, 2)).pid == 12
    assert (await provisioner.fork(KERNEL, 1)).pid == 13


async def test_without_a_zygote_nothing_is_forked_ahead(provisioner: DockerProvisioner, zygote: MemoryZygote) -> None:
    zygote.is_there = False
    before = tasks()
    await provisioner.launch(SPEC)
    assert (tasks(), zygote.asked) == (before, [])


async def test_a_container_that_is_removed_ends_its_fork(provisioner: DockerProvisioner, zygote: MemoryZygote) -> None:
    zygote.goes_on.clear()
    before = tasks()
    await provisioner.launch(SPEC)
    await until(lambda: bool(zygote.asked))
    await provisioner.kill(KERNEL)
    await until(lambda: (zygote.cancelled, tasks()) == (1, before))
    with pytest.raises(EngineUnavailable, match="gone"):
        await provisioner.fork(KERNEL, 1)


async def test_the_end_of_the_gateway_ends_all_forks(provisioner: DockerProvisioner, zygote: MemoryZygote) -> None:
    zygote.goes_on.clear()
    before = tasks()
    await provisioner.launch(SPEC)
    await until(lambda: bool(zygote.asked))
    await provisioner.close()
    assert (zygote.cancelled, tasks()) == (1, before)


async def test_a_list_that_is_asked_for_meanwhile_loses_no_fork(
    provisioner: DockerProvisioner, zygote: MemoryZygote
) -> None:
    await provisioner.launch(SPEC)
    assert await provisioner.list() == [KERNEL]
    assert (await provisioner.fork(KERNEL, 1)).pid == 11
    assert len(zygote.asked) == 1


async def test_a_container_of_an_earlier_gateway_is_asked_about_once(
    provisioner: DockerProvisioner, engine: MemoryDocker, zygote: MemoryZygote
) -> None:
    engine.kernels["left"] = KERNEL
    assert await provisioner.list() == [KERNEL]
    assert (await provisioner.fork(KERNEL, 1)).pid == 11
    assert (await provisioner.fork(KERNEL, 2)).pid == 12
    assert zygote.asked == [("left", 4711, True)] * 2
    assert engine.inspected == 1


async def test_a_container_whose_first_process_has_ended_gets_none(
    provisioner: DockerProvisioner, engine: MemoryDocker, zygote: MemoryZygote
) -> None:
    engine.init = 0
    await provisioner.launch(SPEC)
    with pytest.raises(EngineUnavailable, match="gone"):
        await provisioner.fork(KERNEL, 1)
    engine.kernels.clear()
    with pytest.raises(EngineUnavailable, match="gone"):
        await provisioner.fork(KERNEL, 2)
    assert zygote.asked == []
