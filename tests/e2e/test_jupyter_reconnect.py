"""Connections that end before the run does: of clients, of lines too slow, and of the gateway itself.

Who comes back with the `session_id` of before shows, in the end, what a notebook that never left shows. The gateway may
go on where it stopped, or clear the output and tell all of it again.
"""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from client_rig import ALICE, Client, Json, clear_away, end, settings, short_directory
from docker.api.client import APIClient
from jupyter_client_rig import NUMBERED, Channels, Jupyter, numbers, visiting
from jupyter_messages import Message, text_of
from serve_rig import Gateway, fork
from websockets.exceptions import ConnectionClosed

LINES = 60
FLOOD_LINES = 700
FLOODS = 3
CODE = NUMBERED.format(count=LINES, pause_s=0.05)

pytestmark = pytest.mark.docker


class Site:
    """One data directory, and the gateway on it. Its state: that gateway, when there is one."""

    def __init__(self, docker_client: APIClient, environment: dict[str, str]) -> None:
        self._docker = docker_client
        self._environment = environment
        self._directory = short_directory()
        self._data_dir = self._directory.__enter__() / "data"
        self.gateway: Gateway | None = None

    def start(self) -> Gateway:
        """The gateway; started when there is none, or it has ended."""
        if self.gateway is None or self.gateway.process.poll() is not None:
            self.gateway = fork(self._data_dir, **self._environment)
        return self.gateway

    def close(self) -> None:
        gateway = self.start()
        try:
            end(gateway, self._docker)
        finally:
            clear_away(gateway, self._docker)
            self._directory.__exit__(None, None, None)


@pytest.fixture(scope="module")
def site(docker_client: APIClient, kernel_image: str, module_database_url: str) -> Iterator[Site]:
    more = {"CELLBLOCK_LIMITS_OUTPUT_BYTES": "8M", "CELLBLOCK_LIMITS_TIMEOUT": "120"}
    site = Site(docker_client, settings(kernel_image, module_database_url, **more))
    yield site
    site.close()


@pytest.fixture
def gateway(site: Site) -> Gateway:
    return site.start()


@pytest_asyncio.fixture
async def alice(site: Site) -> AsyncIterator[Jupyter]:
    """As `jupyter`, and cleans up at the gateway that is there in the end."""
    async with visiting(site.start()) as jupyter:
        yield jupyter
        jupyter.http.base_url = jupyter.url = site.start().url


async def first_lines(channels: Channels, code: str = CODE) -> str:
    """Start a run and hear a part of it."""
    msg_id = await channels.execute(code)
    for _ in range(3):
        await channels.until(lambda message: message.type == "stream" and message.parent_id == msg_id)
    return msg_id


async def the_rest(channels: Channels, msg_id: str, lines: int = LINES) -> None:
    """All of the run is there, and the next one works."""
    reply = await channels.reply(msg_id)
    assert (reply.type, reply.content["status"]) == ("execute_reply", "ok")
    assert text_of(channels.heard, msg_id) == numbers(lines)
    assert (await channels.run("print(n)"))[1] == f"{lines - 1}\n"


@pytest.mark.parametrize("how", ["close", "cut"])
@pytest.mark.parametrize("v1", [True, False], ids=["v1", "legacy"])
async def test_who_comes_back_in_mid_run_misses_nothing(jupyter: Jupyter, how: str, *, v1: bool) -> None:
    kernel_id = await jupyter.start()
    async with jupyter.channels(kernel_id, v1=v1) as channels:
        msg_id = await first_lines(channels)
        if how == "cut":
            channels.ws.transport.abort()
    await jupyter.until_nobody_is_connected(kernel_id)
    await asyncio.sleep(0.5)
    async with jupyter.channels(kernel_id, v1=v1, session=channels.session, heard=channels.heard) as again:
        await the_rest(again, msg_id)


async def test_who_comes_back_after_the_end_hears_it(jupyter: Jupyter) -> None:
    kernel_id = await jupyter.start()
    async with jupyter.channels(kernel_id) as channels:
        msg_id = await first_lines(channels, NUMBERED.format(count=LINES, pause_s=0.02))
    async with asyncio.timeout(30):
        while (await jupyter.http.get(f"/api/kernels/{kernel_id}")).json()["execution_state"] != "idle":
            await asyncio.sleep(0.1)
    async with jupyter.channels(kernel_id, session=channels.session, heard=channels.heard) as again:
        await the_rest(again, msg_id)


async def test_coming_back_twice_in_one_run_misses_nothing(jupyter: Jupyter) -> None:
    kernel_id = await jupyter.start()
    session, heard = uuid.uuid4().hex, list[Message]()
    async with jupyter.channels(kernel_id, session=session, heard=heard) as channels:
        msg_id = await first_lines(channels)
    async with jupyter.channels(kernel_id, session=session, heard=heard) as channels:
        await channels.until(lambda message: message.type == "stream")
    async with jupyter.channels(kernel_id, session=session, heard=heard) as channels:
        await the_rest(channels, msg_id)


async def test_a_newcomer_is_told_nothing_of_before(jupyter: Jupyter) -> None:
    kernel_id = await jupyter.start()
    async with jupyter.channels(kernel_id) as channels:
        _, text = await channels.run("print('before')")
        assert text == "before\n"
    async with jupyter.channels(kernel_id) as newcomer:
        assert (await newcomer.run("print('after')"))[1] == "after\n"
        assert not any(message.type == "stream" and "before" in str(message.content) for message in newcomer.heard)


async def test_a_slow_line_holds_up_nobody_else(jupyter: Jupyter) -> None:
    """The slow one takes nothing while the other hears 21 MB, and is told everything afterwards."""
    kernel_id = await jupyter.start()
    code = f"line = 'x' * 10_000\nfor n in range({FLOOD_LINES}): print(f'{{n:06d}} {{line}}')"
    expected = "".join(f"{n:06d} {'x' * 10_000}\n" for n in range(FLOOD_LINES))
    slow_options: Json = {"max_queue": 1, "ping_interval": None, "compression": None}
    async with jupyter.channels(kernel_id, **slow_options) as slow, jupyter.channels(kernel_id) as quick:
        floods = []
        for _ in range(FLOODS):
            floods.append(await quick.execute(code))
            assert (await quick.reply(floods[-1])).content["status"] == "ok"
        assert (await quick.run("print('still quick')"))[1] == "still quick\n"
        await slow.until(lambda message: message.parent_id == floods[-1] and message.is_state("idle"))
        for channels in (quick, slow):
            # Compared by hand: nobody wants to see how megabytes differ.
            wrong = [flood for flood in floods if text_of(channels.heard, flood) != expected]
            assert wrong == [], [len(text_of(channels.heard, flood)) for flood in floods]


async def back_at(site: Site, alice: Jupyter) -> None:
    """A gateway is there again, on the same data."""
    alice.url = (await asyncio.to_thread(site.start)).url
    alice.http.base_url = alice.url  # type: ignore[assignment]


async def test_a_killed_gateway_has_lost_nothing_of_the_run(site: Site, alice: Jupyter) -> None:
    kernel_id = await alice.start()
    async with alice.channels(kernel_id) as channels:
        await channels.run("kept = 42")
        msg_id = await first_lines(channels, NUMBERED.format(count=LINES, pause_s=0.1))
        gateway = site.start()
        gateway.process.kill()
        with pytest.raises(ConnectionClosed):
            await channels.until(lambda message: message.type == "execute_reply" and message.parent_id == msg_id)
        await asyncio.to_thread(gateway.process.wait, 20)
    await back_at(site, alice)
    async with alice.channels(kernel_id, session=channels.session, heard=channels.heard) as again:
        await the_rest(again, msg_id)
        assert (await again.run("print(kept)"))[1] == "42\n"


async def test_a_gateway_that_stops_says_when_to_come_back(site: Site, alice: Jupyter) -> None:
    """1012, service restart: upon it JupyterLab connects again by itself."""
    kernel_id = await alice.start()
    async with alice.channels(kernel_id) as channels, alice.channels(kernel_id, v1=False) as idle:
        msg_id = await first_lines(channels, NUMBERED.format(count=LINES, pause_s=0.1))
        gateway = site.start()
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.send_signal(signal.SIGINT)  # at once
        for connection in (channels, idle):
            with pytest.raises(ConnectionClosed) as closed:
                await connection.until(lambda _: False)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        assert await asyncio.to_thread(gateway.process.wait, 30) == 0
    await back_at(site, alice)
    async with alice.channels(kernel_id, session=channels.session, heard=channels.heard) as again:
        await the_rest(again, msg_id)


async def test_a_run_whose_client_never_comes_back_is_on_record(site: Site, alice: Jupyter) -> None:
    kernel_id = await alice.start()
    async with alice.channels(kernel_id) as channels:
        await first_lines(channels)
        channels.ws.transport.abort()
    client = Client(site.start(), ALICE)
    (session,) = [one for one in (await client.get("/sessions"))["sessions"] if one["kernel_id"] == kernel_id]
    (run,) = await client.runs_of(session["session_id"], 1)
    answer = await client.until(run["run_id"], "ok")
    assert (answer["output"], answer["code"]) == (numbers(LINES), CODE)
    await client.http.aclose()
