"""The Python client, blocking and for asyncio, at a real gateway, which is also killed under it."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from crash_rig import CrashableGateway
from store_fixtures import copy_template_data_dir

from gateway.client import AsyncClient, Client, InvalidRequest, NotFound, RunFailed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW = """
import time
open({ledger!r}, 'a').write('once\\n')
for line in range(40):
    print(line, flush=True)
    time.sleep(0.02)
line
"""
PNG = """
import base64
dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/q842iQAAAABJRU5ErkJggg=="
open("dot.png", "wb").write(base64.b64decode(dot))
"""


class Threaded:
    """A blocking client, or something of one, whose methods are awaited: they run in a thread."""

    def __init__(self, blocking: Any) -> None:
        self._blocking = blocking

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._blocking, name)
        if not callable(value):
            return Threaded(value) if name == "files" else value
        if inspect.isgeneratorfunction(value) or name in ("stream", "events", "batch"):
            return lambda *given, **named: _items(value(*given, **named))

        async def call(*given: Any, **named: Any) -> Any:
            result = await asyncio.to_thread(value, *given, **named)
            return Threaded(result) if name == "session" else result

        return call


async def _items(blocking: Any) -> AsyncIterator[Any]:
    nothing = object()
    while (item := await asyncio.to_thread(next, blocking, nothing)) is not nothing:
        yield item


async def content(artifact: Any) -> bytes:
    """The bytes of an image or file, whichever client it is from."""
    read = await asyncio.to_thread(artifact.read)
    return await read if inspect.isawaitable(read) else read


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[CrashableGateway]:
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    gateway = CrashableGateway(directory, "process")
    copy_template_data_dir(gateway.data_dir)
    await gateway.start()
    yield gateway
    gateway.stop()
    shutil.rmtree(directory)


@pytest_asyncio.fixture(params=[Client, AsyncClient], ids=["blocking", "async"], loop_scope="module")
async def client(request: pytest.FixtureRequest, gateway: CrashableGateway) -> AsyncIterator[Any]:
    if request.param is AsyncClient:
        async with AsyncClient(gateway.url) as client:
            yield client
    else:
        with Client(gateway.url) as client:
            yield Threaded(client)


async def test_code_runs_and_shows_what_it_made(client: Any) -> None:
    result = await client.run(f"{PNG}\nprint(x)\nopen('t.csv', 'w').write('a,b')\nx + 1", variables={"x": 41})
    assert (result.check().output, result.text, result.execution_count) == ("41\n", "42", 1)
    assert (await content(result.images["dot.png"]))[:4] == b"\x89PNG"
    assert await content(result.files["t.csv"]) == b"a,b"
    assert result.usage.wall_ms > 0
    assert "dot.png" in result._repr_mimebundle_()["text/html"]
    again = await client.get_run(result.run_id)
    assert (again.output, again.status) == ("41\n", "ok")
    assert result.run_id in [run.run_id for run in await client.runs(status="ok", limit=5)]


async def test_an_error_of_the_code_is_a_result(client: Any) -> None:
    result = await client.run("print('before')\n1/0")
    assert (result.status, result.output, result.exception.name, result.exception.line) == (
        "error",
        "before\n",
        "ZeroDivisionError",
        2,
    )
    with pytest.raises(RunFailed, match="ZeroDivisionError"):
        result.check()


async def test_a_session_keeps_variables_and_files(client: Any) -> None:
    session = await client.session(variables={"x": 1}, idle_timeout=100)
    assert (await session.run("x += 1; x")).text == "2"
    await session.files.write("data/a.txt", "text")
    assert (await session.run("open('data/a.txt').read()")).text == "'text'"
    assert [(file.path, file.size_bytes) for file in await session.files.list()] == [("data/a.txt", 4)]
    assert await session.files.read("data/a.txt") == b"text"
    await session.files.remove("data/a.txt")
    with pytest.raises(NotFound):
        await session.files.read("data/a.txt")
    notebook = await session.notebook()
    assert "x += 1; x" in ["".join(cell["source"]) for cell in notebook["cells"]]
    assert (await session.restart()).state in ("starting", "idle")
    assert (await session.run("'x' in globals()")).text == "False"
    assert (await session.renew(idle_timeout=50)).raw["idle_timeout"] == 50
    assert session.session_id in [info.session_id for info in await client.sessions()]
    await session.end()
    with pytest.raises(NotFound):
        await session.refresh()


async def test_a_run_can_be_interrupted_and_cancelled(client: Any) -> None:
    session = await client.session()
    events = client.stream("import time\ntime.sleep(60)", session_id=session.session_id)
    started = await anext(events)
    await session.interrupt()
    assert [event.fields["status"] async for event in events if event.type == "end"] == ["error"]
    assert (await anext(client.events(started.run_id, after=1))).seq == 2
    events = client.stream("import time\ntime.sleep(60)", session_id=session.session_id)
    await client.cancel((await anext(events)).run_id)
    ends = [client.result_of(event) async for event in events if event.type == "end"]
    assert [(await end if inspect.isawaitable(end) else end).status for end in ends] == ["cancelled"]
    await session.end()


async def test_a_batch_answers_each_item_and_gives_files(client: Any) -> None:
    runs = [
        "print('one')",
        {"code": "open('in.txt').read()", "files": {"in.txt": "text"}, "fetch": ["in.txt"]},
        {"code": "1/0"},
        {"code": "1", "language": "cobol"},
    ]
    answers = {answer.place: answer async for answer in client.batch(runs)}
    assert sorted(answers) == [0, 1, 2, 3]
    assert answers[0].result.output == "one\n"
    assert answers[1].result.text == "'text'"
    assert await content(answers[1].result.files["in.txt"]) == b"text"
    assert answers[2].result.status == "error"
    assert isinstance(answers[3].error, InvalidRequest)
    assert "cobol" in str(answers[3].error)


async def test_blocks_end_what_they_began(gateway: CrashableGateway) -> None:
    async with AsyncClient(gateway.url) as client:
        async with client.session() as session:
            assert (await session.run("1")).ok
        with pytest.raises(NotFound):
            await session.refresh()
    with Client(gateway.url) as blocking:
        with await asyncio.to_thread(blocking.session) as kept:
            pass
        with pytest.raises(NotFound):
            await asyncio.to_thread(kept.refresh)


async def test_a_gateway_that_is_killed_is_waited_for(client: Any, gateway: CrashableGateway) -> None:
    ledger = gateway.directory / f"ledger-{id(client)}"
    code = SLOW.format(ledger=str(ledger))
    running = asyncio.ensure_future(client.run(code))
    events: list[Any] = []

    async def stream() -> None:
        async for event in client.stream(code):
            events.append(event)  # noqa: PERF401 - they are looked at as they come

    streaming = asyncio.ensure_future(stream())
    async with asyncio.timeout(30):
        while not any(event.type == "stdout" for event in events) or not ledger.exists():
            await asyncio.sleep(0.01)
    gateway.kill()
    await gateway.start()
    result = await running
    await streaming
    output = "".join(f"{line}\n" for line in range(40))
    assert (result.status, result.output, result.text) == ("ok", output, "39")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert "".join(event.fields["text"] for event in events if event.type == "stdout") == output
    assert events[-1].fields["output"] == output
    assert ledger.read_text() == "once\nonce\n"
