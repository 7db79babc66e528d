"""The gateway's side of the zygote: when there can be none, when there shall be none, and when it is replaced."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import docker.errors
import pytest
import requests
from doubles import refusals, until

from kernel_image.protocol import SOCKET_NAME
from sessions.errors import EngineUnavailable
from sessions.model import GatewayId, KernelId
from sessions.ports import ForkedKernel, LaunchSpec, ZygoteFigures
from sessions.provisioners.docker import zygote as docker_zygote
from sessions.provisioners.docker.engine import DockerEngine, EngineFacts, facts_from
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.provisioners.docker.zygote import DockerZygote
from sessions.provisioners.docker.zygote_container import ZYGOTE_LABEL
from sessions.settings import EngineSettings, Limits

SETTINGS = EngineSettings(name="docker", kernel_image="image")
FACTS = facts_from({}, {}, shares_host=True)
GATEWAY = GatewayId("g")
INIT = 4711
SPEC = LaunchSpec(KernelId("k"), GATEWAY, "secret", Path("/nowhere"), Limits(), preload=("numpy",))


class MemoryDocker:
    """An engine, its client, and what runs in a zygote's container, in one.

    The state: the containers, and which are `running`; `configs` of all that were made; `answers` to the next requests
    (later ones get what an honest zygote answers); the `requests` it has had; and the `gate` before its calls.
    """

    def __init__(self, directory: Path) -> None:
        self.running: dict[str, bool] = {}
        self.configs: list[Mapping[str, Any]] = []
        self.answers: list[bytes] = []
        self.requests: list[dict[str, Any]] = []
        self.starts_fail = 0
        self.serves = True
        self.gate = asyncio.Event()
        self.gate.set()
        self._directory = directory
        self._server: asyncio.Server | None = None

    async def call(self, function: Callable[[Any], Any], *, refused: str = "") -> Any:
        return await asyncio.shield(asyncio.ensure_future(self._call(function, refused)))

    async def _call(self, function: Callable[[Any], Any], refused: str) -> Any:
        """As in a thread, which goes on when its caller is cancelled."""
        await self.gate.wait()
        with refusals(refused):
            return function(self)

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._directory / SOCKET_NAME)

    async def hang_up(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).strip()
        if line:
            self.requests.append(json.loads(line))
        honest = {"pid": 12} if line else {"failed": {"numpy": "ImportError: no"}}
        if self.serves:
            writer.write(self.answers.pop(0) if self.answers else json.dumps(honest).encode() + b"\n")
        else:
            await reader.read()
        writer.close()

    # --- docker's client ----------------------------------------------------------------------------------------------

    def create_container_from_config(self, config: Mapping[str, Any]) -> dict[str, str]:
        self.configs.append(config)
        container_id = f"zygote {len(self.configs)}".ljust(64, "0")
        self.running[container_id] = False
        return {"Id": container_id}

    def start(self, container_id: str) -> None:
        if self.starts_fail:
            self.starts_fail -= 1
            response = requests.Response()
            response.status_code = 500
            raise docker.errors.APIError("no start", response)
        self.running[container_id] = True

    def remove_container(self, container_id: str, *, force: bool) -> None:
        assert force
        del self.running[container_id]

    def inspect_container(self, container_id: str) -> dict[str, Any]:
        assert container_id in self.running
        return {"State": {"Running": self.running[container_id]}}

    def containers(self, *, all: bool, filters: Mapping[str, str]) -> list[dict[str, str]]:  # noqa: A002
        assert all
        assert filters == {"label": f"{ZYGOTE_LABEL}={GATEWAY}"}
        return [{"Id": one} for one in self.running]


@pytest.fixture
async def engine(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryDocker]:
    monkeypatch.setattr(docker_zygote, "_START_PAUSE_S", 0.001)
    monkeypatch.setattr(docker_zygote, "_LOOK_PAUSE_S", 0.001)
    engine = MemoryDocker(short_dir)
    await engine.listen()
    yield engine
    await engine.hang_up()


@pytest.fixture
async def zygote(engine: MemoryDocker, short_dir: Path) -> AsyncIterator[DockerZygote]:
    zygote = make_zygote(engine, short_dir)
    yield zygote
    await zygote.close()


def make_zygote(engine: MemoryDocker, directory: Path, settings: EngineSettings = SETTINGS) -> DockerZygote:
    return DockerZygote(cast("DockerEngine", engine), settings, directory)


async def test_it_is_started_once_for_all_that_wait(zygote: DockerZygote, engine: MemoryDocker) -> None:
    assert await asyncio.gather(*(zygote.ready(SPEC, FACTS) for _ in range(3))) == [True] * 3
    assert await zygote.ready(SPEC, FACTS)
    (config,) = engine.configs
    assert (config["Image"], config["Labels"]) == ("image", {ZYGOTE_LABEL: GATEWAY})
    assert (zygote.why_not, zygote.trouble()) == ("", "")


async def test_its_directory_is_the_gateways_own(engine: MemoryDocker, short_dir: Path) -> None:
    zygote = make_zygote(engine, short_dir / "z")
    engine.starts_fail = 1
    assert not await zygote.ready(SPEC, FACTS)
    assert (short_dir / "z").stat().st_mode & 0o777 == 0o700
    await zygote.close()


async def test_it_forks_into_the_container_by_its_first_process(zygote: DockerZygote, engine: MemoryDocker) -> None:
    await zygote.ready(SPEC, FACTS)
    assert await zygote.fork("sandbox", INIT) == ForkedKernel(12, {"numpy": "ImportError: no"})
    assert engine.requests == [{"container": "sandbox", "init": INIT}]


@pytest.mark.parametrize(
    ("settings", "facts", "why"),
    [
        (EngineSettings(name="docker", kernel_image="image", zygote="off"), FACTS, "`engine.zygote` is off"),
        (EngineSettings(name="docker", kernel_image="image", runtime="runsc"), FACTS, "the runtime is runsc"),
        (SETTINGS, replace(FACTS, maps_users=True), "the engine maps user ids"),
        (SETTINGS, replace(FACTS, shares_host=False), "the engine runs on another host"),
    ],
)
async def test_where_there_can_be_none_none_is_started_and_nobody_is_warned(
    engine: MemoryDocker, short_dir: Path, settings: EngineSettings, facts: EngineFacts, why: str
) -> None:
    zygote = make_zygote(engine, short_dir, settings)
    assert not await zygote.ready(SPEC, facts)
    assert (zygote.why_not, zygote.trouble(), engine.configs) == (why, "", [])
    assert zygote.figures() is None
    with pytest.raises(EngineUnavailable, match=re.escape(why)):
        await zygote.fork("sandbox", INIT)
    await zygote.close()


async def test_a_directory_with_too_long_a_name_is_an_obstacle(engine: MemoryDocker, short_dir: Path) -> None:
    zygote = make_zygote(engine, short_dir / ("long" * 25))
    assert not await zygote.ready(SPEC, FACTS)
    assert "too long" in zygote.why_not
    assert not (short_dir / ("long" * 25)).exists()


async def test_one_that_does_not_start_is_tried_three_times_and_given_up(
    zygote: DockerZygote, engine: MemoryDocker
) -> None:
    engine.starts_fail = 5
    assert not await zygote.ready(SPEC, FACTS)
    assert zygote.trouble() == ""
    while not zygote.trouble():
        assert not await zygote.ready(SPEC, FACTS)
        await asyncio.sleep(0.005)
    assert zygote.trouble().startswith("it does not start: ")
    assert not await zygote.ready(SPEC, FACTS)
    assert (len(engine.configs), engine.running) == (3, {})


async def test_one_that_starts_at_last_is_used(zygote: DockerZygote, engine: MemoryDocker) -> None:
    engine.starts_fail = 2
    while not await zygote.ready(SPEC, FACTS):
        await asyncio.sleep(0.005)
    assert len(engine.configs) == 3
    assert zygote.trouble() == ""


async def test_one_whose_container_ends_before_it_answers_has_failed(
    zygote: DockerZygote, engine: MemoryDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.hang_up()
    monkeypatch.setattr(engine, "start", lambda _: None)
    assert not await zygote.ready(SPEC, FACTS)
    assert not zygote.is_up


@pytest.mark.parametrize("answer", [b"", b"no json\n", b"[]\n", b'{"error": "CannotEnter: no"}\n'])
async def test_a_fork_that_fails_is_told_to_the_supervisor_and_not_the_end(
    zygote: DockerZygote, engine: MemoryDocker, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(docker_zygote, "_LOOK_PAUSE_S", 60.0)
    await zygote.ready(SPEC, FACTS)
    engine.answers = [answer]
    with pytest.raises(EngineUnavailable, match="The zygote"):
        await zygote.fork("sandbox", INIT)
    assert (await zygote.fork("sandbox", INIT)).pid == 12
    figures = zygote.figures()
    assert figures is not None
    assert (figures.forks, figures.failed_forks) == (1, 1)


async def test_its_figures_say_whether_it_is_up(zygote: DockerZygote) -> None:
    assert zygote.figures() == ZygoteFigures(is_up=False, forks=0, failed_forks=0)
    await zygote.ready(SPEC, FACTS)
    assert zygote.figures() == ZygoteFigures(is_up=True, forks=0, failed_forks=0)
    zygote.give_up("what it forked was not like its sandbox")
    assert zygote.figures() == ZygoteFigures(is_up=False, forks=0, failed_forks=0)


async def test_one_that_cannot_say_what_it_imported_has_failed(zygote: DockerZygote, engine: MemoryDocker) -> None:
    engine.answers = [b'{"error": "TimeoutError: timed out"}\n']
    await zygote.ready(SPEC, FACTS)
    assert await zygote.ready(SPEC, FACTS)


async def test_one_that_does_not_answer_is_replaced(
    zygote: DockerZygote, engine: MemoryDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zygote.ready(SPEC, FACTS)
    monkeypatch.setattr(docker_zygote, "_ANSWER_TIMEOUT_S", 0.05)
    engine.serves = False
    await until(lambda: not zygote.is_up)
    with pytest.raises(EngineUnavailable, match="being replaced"):
        await zygote.fork("sandbox", INIT)
    engine.serves = True
    await until(lambda: zygote.is_up)
    assert len(engine.running) == 1
    assert len(engine.configs) > 1
    assert (await zygote.fork("sandbox", INIT)).pid == 12


async def test_one_that_has_ended_is_replaced(zygote: DockerZygote, engine: MemoryDocker) -> None:
    await zygote.ready(SPEC, FACTS)
    await engine.hang_up()
    await until(lambda: not zygote.is_up)
    await engine.listen()
    await until(lambda: zygote.is_up)
    assert zygote.trouble() == ""
    assert len(engine.running) == 1


async def test_a_launch_waits_for_the_replacement_and_does_not_start_another(
    zygote: DockerZygote, engine: MemoryDocker
) -> None:
    await zygote.ready(SPEC, FACTS)
    await engine.hang_up()
    engine.gate.clear()
    await until(lambda: not zygote.is_up)
    launches = [asyncio.ensure_future(zygote.ready(SPEC, FACTS)) for _ in range(3)]
    await asyncio.sleep(0.02)
    await engine.listen()
    engine.gate.set()
    assert await asyncio.gather(*launches) == [True] * 3
    assert (len(engine.configs), len(engine.running)) == (2, 1)


async def test_once_given_up_it_stays_away(zygote: DockerZygote, engine: MemoryDocker) -> None:
    await zygote.ready(SPEC, FACTS)
    zygote.give_up("it differs in limits")
    zygote.give_up("and another reason")
    assert zygote.trouble() == "it differs in limits"
    assert not await zygote.ready(SPEC, FACTS)
    await until(lambda: engine.running == {})
    with pytest.raises(EngineUnavailable, match="it differs in limits"):
        await zygote.fork("sandbox", INIT)
    assert len(engine.configs) == 1


async def test_what_an_earlier_gateway_has_left_is_removed(zygote: DockerZygote, engine: MemoryDocker) -> None:
    engine.running = {"left": True, "ended": False}
    await zygote.ready(SPEC, FACTS)
    assert len(engine.running) == 1
    assert not {"left", "ended"} & {*engine.running}


async def test_close_removes_it(engine: MemoryDocker, short_dir: Path) -> None:
    zygote = make_zygote(engine, short_dir)
    await zygote.ready(SPEC, FACTS)
    await zygote.close()
    assert (engine.running, zygote.is_up) == ({}, False)
    await asyncio.sleep(0.02)
    assert len(engine.configs) == 1


async def test_close_ends_a_start_that_is_under_way(engine: MemoryDocker, short_dir: Path) -> None:
    zygote = make_zygote(engine, short_dir)
    await engine.hang_up()
    starting = asyncio.ensure_future(zygote.ready(SPEC, FACTS))
    await until(lambda: bool(engine.running))
    await zygote.close()
    assert engine.running == {}
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_close_removes_a_container_that_is_still_being_made(engine: MemoryDocker, short_dir: Path) -> None:
    zygote = make_zygote(engine, short_dir)
    engine.gate.clear()
    starting = asyncio.ensure_future(zygote.ready(SPEC, FACTS))
    await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(zygote.close())
    await asyncio.sleep(0.01)
    engine.gate.set()
    await closing
    await asyncio.sleep(0.01)
    assert (len(engine.configs), engine.running) == (1, {})
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_the_provisioner_warns_of_a_refusal_in_a_sentence(short_dir: Path) -> None:
    provisioner = DockerProvisioner(GATEWAY, SETTINGS, zygote_dir=short_dir)
    assert provisioner.warnings() == ()
    provisioner.stop_forking("it differs in limits")
    assert provisioner.warnings() == (
        "Sandboxes start more slowly than they could, since there is no zygote: it differs in limits.",
    )
    await provisioner.close()


async def test_without_a_directory_there_is_no_zygote_and_no_warning() -> None:
    provisioner = DockerProvisioner(GATEWAY, SETTINGS)
    provisioner.stop_forking("it differs in limits")
    assert provisioner.warnings() == ()
    with pytest.raises(EngineUnavailable):
        await provisioner.fork(KernelId("k"), 1)
    await provisioner.close()


async def test_one_that_was_given_up_forks_for_no_sandbox_any_more(tmp_path: Path) -> None:
    zygote = DockerZygote(DockerEngine(), EngineSettings(), tmp_path)
    zygote.is_up = True
    zygote.give_up("it differs in limits")
    with pytest.raises(EngineUnavailable, match="it differs in limits"):
        await zygote.fork("0123456789ab", INIT)
    assert zygote.trouble() == "it differs in limits"
