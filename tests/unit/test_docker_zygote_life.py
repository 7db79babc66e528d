"""How a gateway's zygote starts, is replaced and ends, with an engine in memory and a server in place of the zygote."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import docker.errors
import pytest
from doubles import refusals, until

from kernel_image.protocol import SOCKET_NAME
from sessions.errors import EngineUnavailable
from sessions.model import GatewayId, KernelId
from sessions.ports import LaunchSpec
from sessions.provisioners.docker import zygote as zygote_module
from sessions.provisioners.docker.engine import EngineFacts, facts_from
from sessions.provisioners.docker.zygote import DockerZygote
from sessions.settings import EngineSettings, Limits

FACTS: EngineFacts = facts_from({}, {}, shares_host=True)
SPEC = LaunchSpec(
    kernel_id=KernelId("k"),
    gateway_id=GatewayId("g"),
    credential="",
    socket_dir=Path("/nowhere"),
    limits=Limits(),
    kernel_name="python3",
    preload=(),
)


class FakeDocker:
    """Containers in memory; `may_start` keeps a launch waiting in its thread."""

    def __init__(self) -> None:
        self.there: list[str] = []
        self.made = 0
        self.is_reachable = True
        self.may_start = threading.Event()
        self.may_start.set()

    def containers(self, **_: Any) -> list[dict[str, str]]:
        return [{"Id": one} for one in self.there]

    def create_container_from_config(self, config: Mapping[str, Any]) -> dict[str, str]:
        assert config["Labels"]
        self.made += 1
        self.there.append(f"z{self.made}")
        return {"Id": self.there[-1]}

    def start(self, container_id: str) -> None:
        assert self.may_start.wait(30)
        assert container_id in self.there

    def inspect_container(self, container_id: str) -> dict[str, Any]:
        return {"State": {"Running": container_id in self.there, "Pid": 4}}

    def remove_container(self, container_id: str, *, force: bool) -> None:
        assert force
        self.there.remove(container_id)

    async def call(self, function: Callable[[Any], Any], *, refused: str = "") -> Any:
        if not self.is_reachable:
            raise EngineUnavailable("no answer")
        with refusals(refused):
            return await asyncio.to_thread(function, self)


class Rig:
    """A DockerZygote, its engine, and what its socket answers, if anything listens there."""

    def __init__(self, directory: Path) -> None:
        self.docker = FakeDocker()
        self.directory = directory
        self.answer: dict[str, Any] = {"failed": {}}
        self.has_started = False
        self.server: asyncio.Server | None = None
        self.zygote = DockerZygote(cast("Any", self.docker), EngineSettings(), directory)

    async def listen(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            is_look = await reader.readline() == b"\n"
            answer = {"failed": {}, **self.answer} if is_look and self.has_started else self.answer
            writer.write(json.dumps(answer).encode() + b"\n")
            writer.close()

        self.directory.mkdir(exist_ok=True)
        self.server = await asyncio.start_unix_server(serve, self.directory / SOCKET_NAME)

    async def hang_up(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(zygote_module, "_LOOK_PAUSE_S", 0.01)
    monkeypatch.setattr(zygote_module, "_RETRY_PAUSE_S", 0.01, raising=False)
    monkeypatch.chdir(tmp_path)
    rig = Rig(Path("z"))
    yield rig
    rig.docker.may_start.set()
    rig.docker.is_reachable = True
    await rig.zygote.close()
    await rig.hang_up()
    assert rig.docker.there == []


async def test_only_one_is_started_at_a_time(rig: Rig) -> None:
    await rig.listen()
    assert await rig.zygote.ready(SPEC, FACTS)
    rig.docker.may_start.clear()
    await rig.hang_up()
    await until(lambda: not rig.zygote.is_up and rig.docker.made == 2)
    waiting = asyncio.ensure_future(rig.zygote.ready(SPEC, FACTS))
    await asyncio.sleep(0.1)
    await rig.listen()
    rig.docker.may_start.set()
    assert await waiting
    assert (rig.docker.made, rig.docker.there) == (2, ["z2"])


async def test_one_that_is_being_started_goes_with_the_gateway(rig: Rig) -> None:
    rig.docker.may_start.clear()
    waiting = asyncio.ensure_future(rig.zygote.ready(SPEC, FACTS))
    await until(lambda: rig.docker.made == 1)
    closing = asyncio.ensure_future(rig.zygote.close())
    await asyncio.sleep(0.1)
    assert not closing.done()
    rig.docker.may_start.set()
    await closing
    assert rig.docker.there == []
    await asyncio.wait([waiting])
    assert not await rig.zygote.ready(SPEC, FACTS)
    assert rig.zygote.trouble() == ""


async def test_an_engine_that_is_away_is_not_the_zygotes_fault(rig: Rig) -> None:
    await rig.listen()
    assert await rig.zygote.ready(SPEC, FACTS)
    rig.docker.is_reachable = False
    await rig.hang_up()
    await until(lambda: not rig.zygote.is_up)
    await asyncio.sleep(0.2)
    for _ in range(4):
        assert not await rig.zygote.ready(SPEC, FACTS)
    assert rig.zygote.trouble() == ""
    await rig.listen()
    rig.docker.is_reachable = True
    await until(lambda: rig.zygote.is_up)
    assert await rig.zygote.ready(SPEC, FACTS)


async def test_one_that_does_not_start_is_removed_and_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote_module, "_START_TIMEOUT_S", 0.05)
    rig.answer = {"error": "TimeoutError"}
    await rig.listen()
    while not rig.zygote.trouble():
        assert not await rig.zygote.ready(SPEC, FACTS)
        await asyncio.sleep(0.01)
    assert (rig.docker.made, rig.docker.there) == (3, [])
    assert "does not start" in rig.zygote.trouble()


async def test_launches_wait_for_one_that_hangs_but_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote_module, "_START_TIMEOUT_S", 0.05)
    assert not await rig.zygote.ready(SPEC, FACTS)
    monkeypatch.setattr(zygote_module, "_START_TIMEOUT_S", 60.0)
    async with asyncio.timeout(30):
        assert not await rig.zygote.ready(SPEC, FACTS)
    await until(lambda: rig.docker.made == 2)


async def test_a_directory_that_cannot_be_made_is_said(rig: Rig) -> None:
    rig.directory.write_text("")
    assert not await rig.zygote.ready(SPEC, FACTS)
    while not rig.zygote.trouble():
        assert not await rig.zygote.ready(SPEC, FACTS)
        await asyncio.sleep(0.01)
    assert "does not start" in rig.zygote.trouble()


async def test_forks_that_have_never_worked_are_given_up(rig: Rig) -> None:
    await rig.listen()
    assert await rig.zygote.ready(SPEC, FACTS)
    rig.has_started = True
    rig.answer = {"error": "OSError: setns: Invalid argument"}
    for _ in range(3):
        with pytest.raises(EngineUnavailable, match="setns"):
            await rig.zygote.fork("c", 4)
    assert "setns" in rig.zygote.trouble()
    await until(lambda: rig.docker.there == [])


async def test_forks_that_fail_later_are_not_given_up(rig: Rig) -> None:
    await rig.listen()
    assert await rig.zygote.ready(SPEC, FACTS)
    rig.has_started = True
    rig.answer = {"pid": 7}
    assert (await rig.zygote.fork("c", 4)).pid == 7
    rig.answer = {"error": "BlockingIOError: fork"}
    for _ in range(5):
        with pytest.raises(EngineUnavailable, match="fork"):
            await rig.zygote.fork("c", 4)
    assert rig.zygote.trouble() == ""


async def test_a_fork_that_nobody_waits_for_gives_nothing_up(rig: Rig) -> None:
    await rig.listen()
    assert await rig.zygote.ready(SPEC, FACTS)
    rig.has_started = True
    rig.answer = {"error": "CannotEnter: the container has ended"}
    for _ in range(5):
        with pytest.raises(EngineUnavailable, match="has ended"):
            await rig.zygote.fork("c", 4, counts=False)
    assert rig.zygote.trouble() == ""


async def test_one_that_was_up_is_replaced_however_often_its_start_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote_module, "_LONGEST_RETRY_PAUSE_S", 0.01)
    await rig.listen()
    assert await rig.zygote.ready(SPEC, FACTS)
    start = rig.docker.start
    starts = 0

    def fail_five_times(container_id: str) -> None:
        nonlocal starts
        starts += 1
        if starts <= 5:
            raise docker.errors.APIError("it was killed")
        start(container_id)

    monkeypatch.setattr(rig.docker, "start", fail_five_times)
    await rig.hang_up()
    await until(lambda: starts == 6)
    assert "it was killed" in rig.zygote.trouble()
    await rig.listen()
    await until(lambda: rig.zygote.is_up)
    assert rig.docker.there == [f"z{rig.docker.made}"]
    assert rig.zygote.trouble() == ""


def test_starts_become_more_seldom_but_never_end() -> None:
    pauses_s = [zygote_module._retry_pause_s(failures) for failures in (0, 1, 3, 6, 5000)]
    assert pauses_s == [1, 2, 8, 64, 64]
