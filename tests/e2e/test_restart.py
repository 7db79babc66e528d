"""Planned restarts: what the next gateway takes over, and what each of several gateways leaves alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from client_rig import (
    Client,
    check_events,
    clear_away,
    containers_of,
    end,
    kernels_of,
    settings,
    short_directory,
    text_of,
)
from docker.api.client import APIClient
from serve_rig import Gateway, fork

from sessions.provisioners.docker.container import GATEWAY_LABEL, KERNEL_LABEL

LOOP = "import time\nfor n in range({}):\n    print(n, flush=True)\n    time.sleep(0.05)"

pytestmark = pytest.mark.docker


class Site:
    """Data directories on one database, and the gateways on them. Its state: those that were started."""

    def __init__(self, docker_client: APIClient, environment: dict[str, str], parent: Path) -> None:
        self.docker = docker_client
        self._environment = environment
        self._parent = parent
        self._gateways: dict[str, Gateway] = {}
        self._clients: list[Client] = []

    def start(self, name: str = "a", **more: str) -> Client:
        """Start a gateway on a data directory, again or for the first time."""
        directory = self._parent / name
        directory.mkdir(exist_ok=True)
        gateway = self._gateways[name] = fork(directory / "data", **self._environment, **more)
        self._clients.append(Client(gateway))
        return self._clients[-1]

    async def close(self) -> None:
        """End everything that still runs; nothing may be left."""
        for client in self._clients:
            await client.http.aclose()
        with ExitStack() as stack:
            for gateway in self._gateways.values():
                stack.callback(clear_away, gateway, self.docker)
            for gateway in self._gateways.values():
                if gateway.process.poll() is None:
                    await asyncio.to_thread(end, gateway, self.docker)


@pytest.fixture
def parent() -> Iterator[Path]:
    with short_directory() as parent:
        yield parent


@pytest_asyncio.fixture
async def site(
    docker_client: APIClient, kernel_image: str, module_database_url: str, parent: Path
) -> AsyncIterator[Site]:
    environment = settings(kernel_image, module_database_url, CELLBLOCK_POOL_SIZE="1", CELLBLOCK_POOL_MAX="6")
    site = Site(docker_client, environment, parent)
    yield site
    await site.close()


def restart(site: Site, client: Client, **more: str) -> Client:
    """A signal, and another one if runs in flight delay the end; then a new gateway on the same data."""
    client.gateway.process.send_signal(signal.SIGTERM)
    try:
        ended = client.gateway.process.wait(3)
    except subprocess.TimeoutExpired:
        ended = client.gateway.stop(signal.SIGTERM)
    assert ended == 0
    return site.start(client.gateway.data_dir.parent.name, **more)


async def test_sessions_and_runs_go_on_over_a_planned_restart(site: Site, s: str) -> None:
    first = site.start()
    await first.run("x = 42\nopen('a.txt', 'w').write('kept')", s)
    before = await first.get(f"/sessions/{s}")
    in_session = await first.begin(LOOP.format(120) + "\ny = x", s)
    alone = await first.begin(LOOP.format(120), timeout=30)
    asked = asyncio.ensure_future(first.post("print(x, y)", s, key="waiting"))
    waiting = (await first.runs_of(s, 3))[0]["run_id"]
    in_use = kernels_of(site.docker, first.gateway)
    assert len(in_use) == 3

    first.gateway.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    assert (await first.http.post("/runcode", json={"code": "1"})).status_code == 503
    assert first.gateway.stop(signal.SIGTERM) == 0
    told = await asked
    assert (told.status_code, told.json()["code"]) == (500, "end_not_stored")
    # The warm one, which nobody had used, is gone; the two others wait.
    kernels = kernels_of(site.docker, first.gateway)
    assert len(kernels) == 2
    assert kernels < in_use

    second = site.start()
    after = await second.get(f"/sessions/{s}")
    assert after["kernel_id"] == before["kernel_id"]
    assert after["created_at"] == before["created_at"]
    for run_id in (in_session, alone):
        answer = await second.until(run_id, "ok", "lost", "kernel_died", "timeout")
        assert (answer["status"], answer["output"]) == ("ok", "".join(f"{n}\n" for n in range(120)))
        check_events(await second.events(run_id))
    assert (await second.until(waiting, "ok", "error"))["output"] == "42 42\n"
    # The same request again is the same run.
    assert (await second.run("print(x, y)", s, key="waiting"))["run_id"] == waiting
    final = await second.run("print(x, open('a.txt').read())", s)
    assert (final["output"], final["session_created"], final["session_lost"]) == ("42 kept\n", False, False)


async def test_a_stream_that_the_restart_has_cut_goes_on_at_the_next_gateway(site: Site) -> None:
    first = site.start()
    heard = []
    async with first.streaming("POST", "/runcode", code=LOOP.format(60)) as events:
        async for event in events:
            heard.append(event)
            if len(heard) == 5:
                first.gateway.process.send_signal(signal.SIGTERM)
                first.gateway.process.send_signal(signal.SIGINT)
    assert heard[-1]["type"] != "end"
    assert await asyncio.to_thread(first.gateway.process.wait, 20) == 0
    second = site.start()
    path = f"/runs/{heard[0]['run_id']}/events"
    async with second.streaming("GET", path, headers={"Last-Event-ID": str(heard[-1]["seq"])}) as events:
        heard += [event async for event in events]
    check_events(heard)
    assert text_of(heard) == "".join(f"{n}\n" for n in range(60))


async def test_a_session_whose_container_went_in_between_says_what_it_lost(site: Site, s: str) -> None:
    first = site.start()
    await first.run("x = 1", s)
    before = await first.get(f"/sessions/{s}")
    running = await first.begin(LOOP.format(600), s, timeout=100)
    assert first.gateway.stop(signal.SIGTERM, signal.SIGTERM) == 0
    for container in containers_of(site.docker, first.gateway):
        site.docker.remove_container(container["Id"], force=True)
    second = site.start()
    answer = await second.until(running, "lost", "ok", "kernel_died")
    assert (answer["status"], answer["session_lost"]) == ("lost", True)
    fresh = await second.run("print('x' in globals())", s)
    assert (fresh["output"], fresh["session_created"], fresh["session_lost"]) == ("False\n", True, False)
    # The container is another one; what clients know the kernel by is not.
    assert (await second.get(f"/sessions/{s}"))["kernel_id"] == before["kernel_id"]


async def test_times_run_on_over_a_restart(site: Site) -> None:
    first = site.start()
    await asyncio.gather(*(first.session(session_id=name) for name in ("idle", "old", "young")))
    await first.http.patch("/sessions/idle", json={"idle_timeout": 2})
    await first.http.patch("/sessions/old", json={"max_lifetime": 5})
    second = await asyncio.to_thread(restart, site, first)
    assert (await second.http.get("/sessions/young")).status_code == 200
    async with asyncio.timeout(15):
        while len(left := (await second.get("/sessions"))["sessions"]) > 1:
            await asyncio.sleep(0.1)
    assert [session["session_id"] for session in left] == ["young"]
    async with asyncio.timeout(10):
        while len(containers_of(site.docker, second.gateway)) > 2:
            await asyncio.sleep(0.1)


async def test_leftovers_of_this_gateway_are_removed_and_those_of_others_are_not(
    site: Site, kernel_image: str, parent: Path
) -> None:
    first = site.start()
    gateway_id = (first.gateway.data_dir / "gateway_id").read_text().strip()
    other_gateway = uuid.uuid4().hex
    foreign_dir = parent / "foreign" / "s" / "k"
    foreign_dir.mkdir(parents=True)
    (foreign_dir / "mark").write_text("mine")

    def create(owner: str) -> str:
        labels = {GATEWAY_LABEL: owner, KERNEL_LABEL: str(uuid.uuid4())}
        host = site.docker.create_host_config(binds=[f"{foreign_dir}:/run/gateway"])
        made = site.docker.create_container(kernel_image, labels=labels, host_config=host, command=["sleep", "600"])
        return str(made["Id"])

    half_made, foreign = create(gateway_id), create(other_gateway)
    try:
        second = await asyncio.to_thread(restart, site, first)
        left = {container["Id"] for container in site.docker.containers(all=True)}
        assert half_made not in left
        assert foreign in left
        assert (await second.run("print(1)"))["output"] == "1\n"
        assert await asyncio.to_thread(second.gateway.stop, signal.SIGTERM) == 0
        assert site.docker.inspect_container(foreign)["State"]["Status"] == "created"
        assert (foreign_dir / "mark").read_text() == "mine"
    finally:
        site.docker.remove_container(foreign, force=True)


async def test_two_gateways_on_one_database_keep_to_their_own(site: Site, s: str) -> None:
    first, second = await asyncio.gather(*(asyncio.to_thread(site.start, name) for name in ("a", "b")))
    await first.run("x = 1", s)
    await second.run("x = 2", f"{s}-b")
    running = await first.begin(LOOP.format(80), s)
    elsewhere = await second.begin(LOOP.format(80), f"{s}-b")

    for run in (await second.post("1", s), await second.http.post("/sessions", json={"session_id": s})):
        assert (run.status_code, run.json()["code"]) == (409, "conflict")
    cancelled = await second.http.post(f"/runs/{running}/cancel")
    assert cancelled.status_code == 409
    following = asyncio.ensure_future(second.events(running))
    await asyncio.sleep(0.5)
    before = {name: kernels_of(site.docker, one.gateway) for name, one in (("a", first), ("b", second))}

    # While one is restarted the other goes on, and what follows from there misses nothing.
    first = await asyncio.to_thread(restart, site, first)
    assert elsewhere in {run["run_id"] for run in (await first.get("/runs"))["runs"]}
    events = await following
    check_events(events)
    assert (events[-1]["status"], text_of(events)) == ("ok", "".join(f"{n}\n" for n in range(80)))
    other = await second.until(elsewhere, "ok", "lost")
    assert (other["status"], other["output"]) == ("ok", "".join(f"{n}\n" for n in range(80)))
    assert (await first.run("print(x)", s))["output"] == "1\n"
    assert (await second.run("print(x)", f"{s}-b"))["output"] == "2\n"
    assert kernels_of(site.docker, second.gateway) & before["b"] == before["b"]
    assert {one["session_id"] for one in (await second.get("/sessions"))["sessions"]} == {f"{s}-b"}
