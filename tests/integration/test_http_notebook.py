"""`GET /sessions/{id}/notebook`, over a real server, and run again by a real kernel."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import pickle
from collections.abc import AsyncIterator
from typing import Any

import httpx
import nbformat
import pytest
import pytest_asyncio
from http_face import Face, serving
from jupyter_client.manager import AsyncKernelManager

from gateway.auth import Token
from gateway.http.base.limits import HttpBounds
from gateway.http.render import notebook
from sessions.model import ANONYMOUS, ArtifactId, ArtifactKind, EventType, RunRequest, RunStatus, SessionId

PNG = b"\x89PNG\r\n\x1a\nfigure"


@pytest_asyncio.fixture
async def face(request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    async with serving(bounds=getattr(request, "param", None)) as face:
        async with httpx.AsyncClient(base_url=face.url) as client:
            await client.post("/sessions", json={"session_id": "s:1"})
        yield face


def add_run(face: Face, code: str, variables: dict[str, Any] | None = None) -> Any:
    return face.service.add_run(RunRequest(ANONYMOUS, code, "python", variables or {}, 30.0, SessionId("s:1")))


def add_figure(face: Face, run: Any, name: str, data: bytes = PNG) -> ArtifactId:
    ref = face.service.add(name, data, ArtifactKind.IMAGE, "image/png")
    fields = {"artifact_id": ref.id, "content_type": "image/png", "bytes": len(data)}
    run.add(EventType.IMAGE, name=name, **fields)
    run.add(EventType.RESULT, data={"image": name}, metadata={}, display_id=None, is_main_result=False)
    return ref.id


async def read(client: httpx.AsyncClient) -> Any:
    answer = await client.get("/sessions/s:1/notebook")
    assert answer.status_code == 200, answer.text
    document = nbformat.reads(answer.text, as_version=4)
    nbformat.validate(document)
    return document


async def test_a_session_without_runs_is_an_empty_notebook(client: httpx.AsyncClient) -> None:
    answer = await client.get("/sessions/s:1/notebook")
    assert answer.headers["Content-Type"] == "application/x-ipynb+json"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="s:1.ipynb"')
    assert (await read(client)).cells == []


async def test_runs_are_cells_in_order_with_their_figures(face: Face, client: httpx.AsyncClient) -> None:
    first = add_run(face, "plot()")
    add_figure(face, first, "figure-1.png")
    first.end()
    second = add_run(face, "1/0")
    second.end(RunStatus.TIMEOUT, error="Too slow.")
    add_run(face, "still running")
    document = await read(client)
    assert [cell.source for cell in document.cells] == ["plot()", "1/0"]
    assert base64.b64decode(document.cells[0].outputs[0].data["image/png"]) == PNG
    assert document.cells[1].outputs[0].evalue == "Too slow."
    assert document.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("face", [HttpBounds(notebook_shown_bytes=1000)], indirect=True)
async def test_what_is_too_much_leaves_a_note(face: Face, client: httpx.AsyncClient) -> None:
    run = add_run(face, "plot()")
    for number in range(1, 5):
        add_figure(face, run, f"figure-{number}.png", PNG.ljust(400))
    run.add(EventType.STDOUT, text="x" * 2000)
    run.end()
    outputs = (await read(client)).cells[0].outputs
    assert [output.output_type for output in outputs] == ["display_data", "display_data", "stream"]
    assert outputs[-1].text == "[cellblock] 3 outputs were left out: the notebook would be too large\n"
    async with (
        serving(service=face.service, bounds=HttpBounds(notebook_source_bytes=3)) as smaller,
        httpx.AsyncClient(base_url=smaller.url) as other,
    ):
        answer = await other.get("/sessions/s:1/notebook")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("face", [HttpBounds(notebook_runs=3)], indirect=True)
async def test_the_newest_runs_go_in_and_that_there_are_others_is_said(face: Face, client: httpx.AsyncClient) -> None:
    for code in "123":
        add_run(face, code).end()
    add_run(face, "still running")
    assert [cell.source for cell in (await read(client)).cells] == ["1", "2", "3"]
    for code in "45":
        add_run(face, code).end()
    note, *cells = (await read(client)).cells
    assert (note.cell_type, note.source.split("**")[1]) == ("markdown", "Older runs were left out")
    assert [cell.source for cell in cells] == ["3", "4", "5"]


@pytest.mark.parametrize("face", [HttpBounds(notebook_runs=1, notebook_source_bytes=100)], indirect=True)
async def test_runs_that_are_left_out_take_nothing_of_the_bounds(face: Face, client: httpx.AsyncClient) -> None:
    add_run(face, "#" * 99).end()
    add_run(face, "#" * 98).end()
    assert [cell.cell_type for cell in (await read(client)).cells] == ["markdown", "code"]


async def test_a_client_that_vanishes_ends_the_making_of_its_notebook(face: Face, client: httpx.AsyncClient) -> None:
    for _ in range(100):
        add_run(face, "1").end()
    steps = asyncio.Semaphore(0)
    fetched = 0
    get_events = face.service.get_events

    async def slow(*asked: Any) -> Any:
        nonlocal fetched
        fetched += 1
        await steps.acquire()
        return await get_events(*asked)

    face.service.get_events = slow  # type: ignore[method-assign]
    _, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"GET /sessions/s:1/notebook HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        while not fetched:
            await asyncio.sleep(0.005)
        writer.transport.abort()
        await face.in_flight.wait_for_none()
        for _ in range(100):
            steps.release()
        face.service.get_events = get_events  # type: ignore[method-assign]
        assert len((await read(client)).cells) == 100  # it is this tenant's turn again
    assert fetched == 1


async def test_a_tenant_waits_for_its_own_notebook_and_not_for_anothers() -> None:
    names = ("alice", "bob", "carol")
    tokens = tuple(Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in names)
    async with serving(tokens=tokens) as face, httpx.AsyncClient(base_url=face.url, timeout=30) as client:
        making: list[str] = []
        go = {name: asyncio.Event() for name in names}

        async def slow(tenant: str, *_: object) -> list[Any]:
            making.append(tenant)
            await go[tenant].wait()
            return []

        async def until(*expected: str) -> None:
            async with asyncio.timeout(5):
                while making != [*expected]:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)  # and no more than those
            assert making == [*expected]

        def ask(name: str) -> asyncio.Task[httpx.Response]:
            headers = {"Authorization": f"Bearer {name}"}
            return asyncio.ensure_future(client.get("/sessions/s/notebook", headers=headers))

        face.service.session_runs = slow  # type: ignore[method-assign,assignment]
        for name in names:
            headers = {"Authorization": f"Bearer {name}"}
            await client.post("/sessions", json={"session_id": "s"}, headers=headers)
        asked = [ask("alice"), ask("alice")]
        await until("alice")
        asked.append(ask("bob"))
        await until("alice", "bob")
        asked.append(ask("carol"))
        await until("alice", "bob")  # two are made at once
        go["bob"].set()
        await until("alice", "bob", "carol")
        go["carol"].set()
        go["alice"].set()
        await until("alice", "bob", "carol", "alice")
        assert [(await one).status_code for one in asked] == [200] * 4


async def test_a_figure_that_retention_has_removed_is_left_out(face: Face, client: httpx.AsyncClient) -> None:
    run = add_run(face, "plot()")
    del face.service.artifacts[add_figure(face, run, "figure-1.png")]
    run.end()
    assert (await read(client)).cells[0].outputs[0].data == {}


async def test_the_notebook_runs_again(face: Face, client: httpx.AsyncClient) -> None:
    values = {"x": 20, "text": "it's\n\ud800 三", "deep": {"a": [None, True, 1.5]}}
    add_run(face, "y = x + 1; t = text; d = deep", values).end()
    add_run(face, "assert (y, t, d['a'][2]) == (21, 'it\\'s\\n\\ud800 三', 1.5)").end()
    document = await read(client)
    manager = AsyncKernelManager(kernel_name="python3")
    await manager.start_kernel()
    kernel = manager.client()
    kernel.start_channels()
    try:
        async with asyncio.timeout(60):
            await kernel.wait_for_ready()
            for cell in document.cells:
                reply = await kernel.execute(cell.source, reply=True)
                assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        kernel.stop_channels()
        await manager.shutdown_kernel(now=True)


async def test_the_answers_of_its_runs_are_not_held_while_it_is_made(
    face: Face, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cells do not show would be in memory a thousand times over, and no bound would know of it."""
    for _ in range(5):
        run = add_run(face, "1")
        run.add(EventType.STDOUT, text="x" * 100_000)
        run.add(EventType.CLEAR, wait=False)
        run.end(output="x" * 100_000)
    held: list[int] = []
    made = notebook.notebook

    def measured(runs: Any, **fields: Any) -> Any:
        held.append(len(pickle.dumps(runs)))
        return made(runs, **fields)

    monkeypatch.setattr(notebook, "notebook", measured)
    await read(client)
    assert held[0] < 10_000
