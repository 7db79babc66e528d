"""The database hangs, or is killed, while code runs: nothing is lost, and what is asked meanwhile is told the truth."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import psutil
import pytest
from client_rig import Client, check_events, clear_away, end, settings, short_directory, text_of
from docker.api.client import APIClient
from serve_rig import Gateway, start

from gateway.store.embedded.postmaster import read_lock

LINES = 60
LOOP = f"import time\nfor n in range({LINES}):\n    print(n, flush=True)\n    time.sleep(0.1)\nx = 1"
EXPECTED = "".join(f"{n}\n" for n in range(LINES))

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gateway(docker_client: APIClient, kernel_image: str) -> Iterator[Gateway]:
    """One with a database of its own, which it has to keep alive."""
    with short_directory() as parent:
        gateway = start(parent / "data", **settings(kernel_image, "", CELLBLOCK_POOL_SIZE="2"))
        try:
            yield gateway
            end(gateway, docker_client)
        finally:
            clear_away(gateway, docker_client)


def postgres(gateway: Gateway) -> list[psutil.Process]:
    """The postmaster, and all its processes behind it."""
    pid, _ = read_lock(gateway.data_dir.resolve() / "pg")
    postmaster = psutil.Process(pid or 0)
    return [postmaster, *postmaster.children(recursive=True)]


@pytest.fixture(autouse=True)
async def ready_afterwards(client: Client) -> AsyncIterator[None]:
    """The next test, and the end of the gateway, may count on the database, whatever became of this test."""
    yield
    await until_ready(client, ready=True)


async def kill_postmaster(gateway: Gateway) -> None:
    """Its children end by themselves, as after a crash. One that is just being started again is waited for."""
    async with asyncio.timeout(40):
        while True:
            with suppress(psutil.NoSuchProcess):
                postgres(gateway)[0].kill()
                return
            await asyncio.sleep(0.05)


def send(gateway: Gateway, number: signal.Signals) -> None:
    for process in postgres(gateway):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


async def until_ready(client: Client, *, ready: bool) -> None:
    async with asyncio.timeout(40):
        while (answer := await client.http.get("/readyz")).is_success is not ready:
            await asyncio.sleep(0.1)
    if not ready:
        assert "database" in " ".join(answer.json()["reasons"])


async def test_a_run_goes_on_while_the_database_hangs(client: Client, gateway: Gateway, s: str) -> None:
    await client.session(session_id=s)
    run_id = await client.begin(LOOP, s)
    alone = await client.begin(LOOP)
    send(gateway, signal.SIGSTOP)
    try:
        await until_ready(client, ready=False)
        for answer in await asyncio.gather(client.post("print(1)"), client.http.get(f"/runs/{run_id}")):
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        assert (await client.http.get("/healthz")).status_code == 200
        await asyncio.sleep(4)  # the code ends meanwhile
    finally:
        send(gateway, signal.SIGCONT)
    answer = await client.until(run_id, "ok", "lost", "kernel_died", "timeout")
    assert (answer["status"], answer["output"], answer.get("truncated")) == ("ok", EXPECTED, None)
    events = await client.events(run_id)
    check_events(events)
    assert text_of(events) == EXPECTED
    assert (await client.until(alone, "ok", "lost", "timeout"))["output"] == EXPECTED
    await until_ready(client, ready=True)
    assert (await client.run("print(x)", s))["output"] == "1\n"


async def test_what_was_refused_while_the_database_hung_is_not_there_afterwards(
    client: Client, gateway: Gateway, s: str
) -> None:
    """The server has the statements of those that were refused already, and obeys them when it goes on."""
    await client.run("count = 0", s)
    await client.run("print('warm')")
    send(gateway, signal.SIGSTOP)
    try:
        asked = [client.post("count += 1", s), *(client.post("print(1)") for _ in range(4))]
        refused = await asyncio.gather(*asked)
        assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(503, "unavailable")] * 5
    finally:
        send(gateway, signal.SIGCONT)
    await until_ready(client, ready=True)
    async with asyncio.timeout(20):
        while [run for run in (await client.get("/runs"))["runs"] if run["finished_at"] is None]:
            await asyncio.sleep(0.1)
    assert (await client.run("print(count)", s))["output"] == "0\n"


async def test_a_killed_database_is_started_again_and_nothing_is_missing(
    client: Client, gateway: Gateway, s: str
) -> None:
    await client.session(session_id=s)
    run_id = await client.begin(LOOP, s)
    alone = await client.begin(LOOP)
    for _ in range(2):
        await asyncio.sleep(1.2)
        await kill_postmaster(gateway)
    answer = await client.until(run_id, "ok", "lost", "kernel_died", "timeout")
    assert (answer["status"], answer["output"]) == ("ok", EXPECTED)
    check_events(await client.events(run_id))
    assert (await client.until(alone, "ok", "lost", "timeout"))["output"] == EXPECTED
    await until_ready(client, ready=True)
    assert (await client.run("print(x)", s))["output"] == "1\n"
    assert [run["status"] for run in (await client.get("/runs"))["runs"] if run["finished_at"] is None] == []


async def test_a_gateway_killed_while_the_database_hangs_loses_nothing(
    client: Client, gateway: Gateway, s: str, kernel_image: str
) -> None:
    """The code's output has nowhere to go but the supervisor's spool, and the gateway that would store it is gone."""
    await client.run("x = 0", s)
    run_id = await client.begin(LOOP, s)
    await asyncio.sleep(1)
    send(gateway, signal.SIGSTOP)
    await asyncio.sleep(2)
    gateway.process.kill()
    gateway.process.wait()
    send(gateway, signal.SIGCONT)
    await asyncio.sleep(4)
    more = start(gateway.data_dir, **settings(kernel_image, "", CELLBLOCK_POOL_SIZE="2"))
    gateway.process, gateway.url = more.process, more.url
    client.http.base_url = more.url  # type: ignore[assignment]
    answer = await client.until(run_id, "ok", "lost", "kernel_died", "timeout")
    assert (answer["status"], answer["output"]) == ("ok", EXPECTED)
    check_events(await client.events(run_id))
    assert (await client.run("print(x)", s))["output"] == "1\n"
