"""Events as they come, over real HTTP and WebSockets, from real containers through a real database."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest
from client_rig import Client, Json, Launch, check_events, hear, tell, text_of
from serve_rig import Gateway
from test_session_files import Memory

MANY_LINES = int(os.environ.get("MANY_LINES", "500"))
"""Of each of the hundred runs. `MANY_LINES=2000 make test PYTEST_ARGS=tests/e2e/test_streaming.py` has more."""
MANY_RUNS = 100
SLOW_OUTPUT_BYTES = 6 << 20

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gateway(launch: Launch) -> Iterator[Gateway]:
    with launch(
        CELLBLOCK_LIMITS_OUTPUT_BYTES="8M",
        CELLBLOCK_LIMITS_QUEUE="200",
        CELLBLOCK_POOL_MAX="12",
        CELLBLOCK_LIMITS_TIMEOUT="120",
    ) as gateway:
        yield gateway


async def test_the_first_line_is_there_long_before_the_end(client: Client) -> None:
    code = "import time\nprint('first', flush=True)\ntime.sleep(3)\nprint('last')"
    came: dict[str, float] = {}
    began = time.monotonic()
    async with client.streaming("POST", "/runcode", code=code) as events:
        heard = []
        async for event in events:
            heard.append(event)
            came.setdefault(event["type"], time.monotonic() - began)
    assert came["end"] - came["stdout"] > 2
    check_events(heard)
    assert text_of(heard) == "first\nlast\n"
    assert [event["received_id"] for event in heard] == [event["seq"] for event in heard]


async def test_a_stream_that_was_cut_goes_on_after_the_last_event(client: Client) -> None:
    code = "import time\nfor n in range(40):\n    print(n, flush=True)\n    time.sleep(0.05)"
    first: list[Json] = []
    async with client.streaming("POST", "/runcode", code=code) as events:
        async for event in events:
            first.append(event)
            if len(first) == 5:
                break
    path, seen = f"/runs/{first[0]['run_id']}/events", first[-1]["received_id"]
    async with client.streaming("GET", path, headers={"Last-Event-ID": str(seen)}) as events:
        rest = [event async for event in events]
    check_events(first + rest)
    assert text_of(first + rest) == "".join(f"{n}\n" for n in range(40))
    lines = await client.events(first[0]["run_id"])
    assert lines == [{k: v for k, v in event.items() if k != "received_id"} for event in first + rest]
    # Both ways to say where; the larger counts.
    async with client.streaming("GET", f"{path}?after=2", headers={"Last-Event-ID": "4"}) as events:
        assert (await anext(events))["seq"] == 5


async def test_input_and_getpass_are_answered_over_the_socket(client: Client) -> None:
    async with client.socket() as ws:
        code = "import getpass\nname = input('name? ')\nword = getpass.getpass('word? ')\nprint(name, len(word))"
        await tell(ws, op="run", id="a", code=code)
        heard: list[Json] = []
        answers = iter(["Ada", "secret"])
        while not heard or heard[-1]["type"] != "end":
            heard.append(await hear(ws))
            if heard[-1]["type"] == "input_request":
                await tell(ws, op="input", run_id=heard[-1]["run_id"], value=next(answers))
    check_events(heard)
    assert heard[-1]["output"] == "Ada 6\n"
    asked = [(event["prompt"], event["password"]) for event in heard if event["type"] == "input_request"]
    assert asked == [("name? ", False), ("word? ", True)]
    assert "secret" not in str(await client.events(heard[0]["run_id"]))
    alone = await client.run("input('name? ')")
    assert (alone["status"], alone["exception"]["name"]) == ("error", "StdinNotImplementedError")


async def test_an_interrupt_over_the_socket_ends_one_run_of_several(client: Client, s: str) -> None:
    sessions = [f"{s}-{number}" for number in range(3)]
    await asyncio.gather(*(client.session(session_id=name) for name in sessions))
    async with client.socket() as ws:
        loop = "import time\nfor n in range({}):\n    print(n, flush=True)\n    time.sleep(0.05)"
        for name in sessions:
            # The interrupt has to come before the end.
            code = loop.format(600 if name == sessions[1] else 30)
            await tell(ws, op="run", id=name, session_id=name, code=code)
        heard: dict[str, list[Json]] = {name: [] for name in sessions}
        interleaved = []
        while not all(events and events[-1]["type"] == "end" for events in heard.values()):
            event = await hear(ws)
            heard[event["id"]].append(event)
            interleaved.append(event["id"])
            if event["id"] == sessions[1] and event.get("text", "").startswith("3"):
                await tell(ws, op="interrupt", run_id=event["run_id"])
    ends = [heard[name][-1] for name in sessions]
    assert [end["status"] for end in ends] == ["ok", "error", "ok"]
    assert ends[1]["exception"]["name"] == "KeyboardInterrupt"
    for events in heard.values():
        check_events(events)
    # They ran beside each other, not one after the other.
    assert interleaved.index(sessions[2]) < len(interleaved) - 1 - interleaved[::-1].index(sessions[0])


@pytest.mark.parametrize("way", ["socket", "events"])
async def test_a_client_that_vanishes_does_not_stop_its_run(client: Client, way: str) -> None:
    code = "import time\nfor n in range(20):\n    print(n, flush=True)\n    time.sleep(0.05)"
    if way == "events":
        run_id = await client.begin(code)
    else:
        async with client.socket() as ws:
            await tell(ws, op="run", code=code)
            run_id = (await hear(ws))["run_id"]
            ws.transport.abort()
    answer = await client.until(run_id, "ok")
    assert answer["output"] == "".join(f"{n}\n" for n in range(20))
    check_events(await client.events(run_id))


@pytest.mark.parametrize("way", ["socket", "events"])
async def test_slow_readers_get_everything_and_cost_no_memory(client: Client, gateway: Gateway, way: str) -> None:
    """Four runs of 6 MiB each, whose readers take nothing before all runs have ended.

    What they cost is a bounded number of copies on the way out, and nothing that grows with how slow they are.
    """
    code = f"line = 'x' * 1015\nfor n in range({SLOW_OUTPUT_BYTES} // 1024): print(f'{{n:07d}} {{line}}')"
    expected = "".join(f"{n:07d} {'x' * 1015}\n" for n in range(SLOW_OUTPUT_BYTES // 1024))
    for answer in await asyncio.gather(*(client.run(code) for _ in range(4))):
        assert (answer["status"], answer.get("stderr"), len(answer["output"])) == ("ok", None, len(expected))
        assert answer["output"] == expected
    memory = Memory(gateway.process.pid)
    if way == "socket":
        streams = await slowly_over_socket(client, code)
    else:
        run_ids = [await client.begin(code) for _ in range(4)]
        streams = await asyncio.gather(*(slowly(client, run_id) for run_id in run_ids))
    growth = await memory.growth()
    for events in streams:
        check_events(events)
        assert [event for event in events if event["type"] == "truncated"] == [], events[-1]["stderr"]
        assert text_of(events) == expected, len(text_of(events))
    assert growth < 4 * 10 * SLOW_OUTPUT_BYTES


async def have_ended(client: Client, run_ids: list[str]) -> None:
    """Wait for the end of these runs without reading any of their output."""
    async with asyncio.timeout(60):
        while any(
            run["finished_at"] is None for run in (await client.get("/runs"))["runs"] if run["run_id"] in run_ids
        ):
            await asyncio.sleep(0.2)


async def slowly_over_socket(client: Client, code: str) -> list[list[Json]]:
    """Hear something of each run, wait for the end of all, then hear the rest."""
    heard: dict[int, list[Json]] = {number: [] for number in range(4)}
    async with client.socket(max_size=None, max_queue=1) as ws:
        for number in heard:
            await tell(ws, op="run", id=number, code=code)
        while not all(events and events[-1]["type"] == "end" for events in heard.values()):
            event = await hear(ws)
            heard[event["id"]].append(event)
            if event["seq"] == 1 and all(heard.values()):
                await have_ended(client, [events[0]["run_id"] for events in heard.values()])
    return list(heard.values())


async def slowly(client: Client, run_id: str) -> list[Json]:
    """Read the first event, wait for the end of the run, then read on."""
    async with client.streaming("GET", f"/runs/{run_id}/events") as events:
        heard = [await anext(events)]
        await have_ended(client, [run_id])
        heard += [event async for event in events]
    return heard


@pytest.mark.timeout(300)
async def test_no_line_of_a_hundred_runs_is_missing(client: Client, s: str) -> None:
    code = f"for n in range({MANY_LINES}): print(n, flush=True)"
    expected = "".join(f"{n}\n" for n in range(MANY_LINES))

    async def ten_in_a_row(name: str) -> None:
        for _ in range(MANY_RUNS // 10):
            answer = await client.run(code, name, timeout=120)
            assert (answer["status"], answer["output"] == expected) == ("ok", True), answer["output"][-100:]
            events = await client.events(answer["run_id"])
            check_events(events)
            assert text_of(events) == expected

    names = [f"{s}-{number}" for number in range(10)]
    await asyncio.gather(*(client.session(session_id=name) for name in names))
    await asyncio.gather(*(ten_in_a_row(name) for name in names))
