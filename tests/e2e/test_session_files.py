"""Files of sessions through real HTTP and real containers: large ones, full disks, links, and runs that use them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator

import httpx
import nbclient
import nbformat
import psutil
import pytest
from client_rig import TINY_PNG, Client, Launch
from serve_rig import Gateway

DISK_BYTES = 160 << 20
LARGE_BYTES = 100 << 20
PIECE = bytes(range(256)) * 1024

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gateway(launch: Launch) -> Iterator[Gateway]:
    with launch(CELLBLOCK_LIMITS_DISK=str(DISK_BYTES), CELLBLOCK_LIMITS_MEMORY="512M") as gateway:
        yield gateway


async def pieces(size_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(size_bytes // len(PIECE)):
        yield PIECE


class Memory:
    """The largest that a process has been in memory, above what it was at first."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.first = self.peak = self._process.memory_info().rss
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            await asyncio.sleep(0.02)

    async def growth(self) -> int:
        self._watching.cancel()
        await asyncio.wait([self._watching])
        return self.peak - self.first


async def test_a_hundred_megabytes_go_in_and_out_and_the_gateway_stays_small(
    client: Client, gateway: Gateway, s: str
) -> None:
    await client.session(session_id=s)
    expected = hashlib.sha256(PIECE * (LARGE_BYTES // len(PIECE))).hexdigest()
    memory = Memory(gateway.process.pid)
    path = f"/sessions/{s}/files/data/large.bin"
    put = await client.http.put(path, content=pieces(LARGE_BYTES), headers={"Content-Length": str(LARGE_BYTES)})
    assert (put.status_code, put.json()["bytes"], put.json()["path"]) == (201, LARGE_BYTES, "data/large.bin")
    received = hashlib.sha256()
    async with client.http.stream("GET", path) as answer:
        assert int(answer.headers["Content-Length"]) == LARGE_BYTES
        async for piece in answer.aiter_bytes():
            received.update(piece)
    assert await memory.growth() < 30 << 20
    assert received.hexdigest() == expected
    code = "import hashlib; print(hashlib.file_digest(open('data/large.bin', 'rb'), 'sha256').hexdigest())"
    run = await client.run(code, s)
    assert run["output"] == f"{expected}\n"
    assert "files" not in run
    assert [entry["path"] for entry in (await client.get(f"/sessions/{s}/files"))["files"]] == ["data/large.bin"]
    assert (await client.http.delete(path)).status_code == 204
    assert (await client.http.get(path)).status_code == 404


async def test_what_is_too_large_is_refused_and_leaves_what_was_there(client: Client, s: str) -> None:
    await client.run("open('a.bin', 'w').write('old')", s)
    path = f"/sessions/{s}/files/a.bin"
    size_bytes = DISK_BYTES + len(PIECE)
    for headers in ({"Content-Length": str(size_bytes)}, {}):
        refused = await answer_of(client, path, size_bytes, headers)
        assert refused in (413, None)  # None: it had hung up before the client had finished
    await client.run("open('ballast', 'wb').write(bytes(150 << 20))", s)
    full = await client.http.put(path, content=PIECE * (20 << 2))
    assert (full.status_code, full.json()["code"]) == (413, "too_large")
    assert (await client.http.get(path)).text == "old"
    kept = (await client.get(f"/sessions/{s}/files"))["files"]
    assert [(entry["path"], entry["bytes"]) for entry in kept] == [("a.bin", 3), ("ballast", 150 << 20)]
    # Nothing of what was refused takes up room.
    after = await client.run("import os\nos.unlink('ballast')\nprint(sorted(os.listdir()))", s)
    assert after["output"] == "['a.bin']\n"
    used = await client.run("v = os.statvfs('.')\nprint((v.f_blocks - v.f_bfree) * v.f_bsize < 1 << 20)", s)
    assert used["output"] == "True\n"
    assert (await client.http.put(path, content=PIECE)).status_code == 200


async def answer_of(client: Client, path: str, size_bytes: int, headers: dict[str, str]) -> int | None:
    try:
        return (await client.http.put(path, content=pieces(size_bytes), headers=headers)).status_code
    except httpx.TransportError:
        return None


async def test_a_reader_has_one_whole_version_while_others_replace_it(client: Client, s: str) -> None:
    await client.session(session_id=s)
    path = f"/sessions/{s}/files/a.bin"
    versions = [bytes([number]) * (4 << 20) for number in range(1, 6)]
    await client.http.put(path, content=versions[0])

    async def replace() -> None:
        for version in versions[1:]:
            assert (await client.http.put(path, content=version)).status_code == 200

    replacing = asyncio.ensure_future(replace())
    seen = set()
    while not replacing.done():
        seen.add((await client.http.get(path)).content)
    await replacing
    assert seen <= set(versions)
    assert (await client.http.get(path)).content == versions[-1]


async def test_a_client_that_hangs_up_leaves_what_was_there(client: Client, s: str) -> None:
    await client.run("open('a.txt', 'w').write('old')", s)

    async def half() -> AsyncIterator[bytes]:
        yield PIECE
        raise ConnectionAbortedError

    headers = {"Content-Length": str(2 * len(PIECE))}
    with pytest.raises(ConnectionAbortedError):
        await client.http.put(f"/sessions/{s}/files/a.txt", content=half(), headers=headers)
    await asyncio.sleep(0.5)
    assert (await client.run("import os; print(os.listdir(), open('a.txt').read())", s))["output"] == "['a.txt'] old\n"


@pytest.mark.parametrize(
    "path", ["../a", "a/../../b", "%2e%2e/a", "..%2fa", "/etc/passwd", "%2fetc%2fpasswd", "a//b", "a%00b", ".", "a/."]
)
async def test_paths_that_leave_are_refused(client: Client, gateway: Gateway, s: str, path: str) -> None:
    await client.session(session_id=s)
    _, port = gateway.url.removeprefix("http://").split(":")
    for method in ("GET", "PUT", "DELETE"):
        # By hand: httpx would tidy the path up.
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        head = f"{method} /sessions/{s}/files/{path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n"
        head += f"Authorization: {client.headers['Authorization']}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400"), (method, answer)


async def test_links_that_the_code_makes_lead_nowhere(client: Client, s: str) -> None:
    made = await client.run(
        "import os\nos.symlink('/etc', 'd'); os.symlink('/etc/passwd', 'l'); os.mkfifo('p'); os.mkdir('e')\n"
        "os.symlink('/tmp', 'e/t'); open('real.txt', 'w').write('x'); os.symlink('real.txt', 'inside')",
        s,
    )
    assert made["status"] == "ok"
    for path in ("l", "d/passwd", "p", "inside", "e", "e/t/x"):
        for method in ("GET", "DELETE"):
            answer = await client.http.request(method, f"/sessions/{s}/files/{path}")
            assert answer.status_code == 400, (method, path, answer.text)
    for path in ("d/x", "e/t/x"):
        answer = await client.http.put(f"/sessions/{s}/files/{path}", content=b"x")
        assert answer.status_code == 400, (path, answer.text)
    assert [entry["path"] for entry in (await client.get(f"/sessions/{s}/files"))["files"]] == ["real.txt"]
    assert (await client.run("print(os.listdir('/tmp/'), os.path.islink('l'))", s))["output"].endswith("True\n")


async def test_files_come_and_go_while_a_run_is_busy_and_are_not_its_artifacts(client: Client, s: str) -> None:
    await client.session(session_id=s)
    code = (
        "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
        "open('mine.txt', 'w').write('made'); open('sent.txt', 'a').write(' and changed'); print(open('go').read())"
    )
    for name in ("sent.txt", "other.txt"):
        await client.http.put(f"/sessions/{s}/files/{name}", content=b"sent")
    running = asyncio.ensure_future(client.run(code, s))
    await client.until((await client.runs_of(s, 1))[0]["run_id"], "running")
    assert (await client.http.get(f"/sessions/{s}/files/sent.txt")).text == "sent"
    assert (await client.http.put(f"/sessions/{s}/files/go", content=b"now")).status_code == 201
    answer = await running
    assert answer["output"] == "now\n"
    # What changed by its doing is its own; what was sent meanwhile is not.
    assert set(answer["files"]) == {"mine.txt", "sent.txt"}
    assert (await client.http.get(answer["files"]["sent.txt"])).text == "sent and changed"
    usual = await client.run("print(1)", s)
    assert "files" not in usual


async def test_the_notebook_of_a_session_runs_again_with_the_same_outputs(client: Client, s: str) -> None:
    await client.run("total = 0\nprint('start')", s)
    await client.run("for n in numbers:\n    total += n\n    print(total)\ntotal", s, variables={"numbers": [1, 2, 3]})
    await client.run("from IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))\nprint('é\\n', end='')", s)
    await client.run("1/0", s)
    await client.run(
        f"import base64\nfrom IPython.display import Image\nImage(base64.b64decode('{TINY_PNG}'), format='png')", s
    )
    answer = await client.http.get(f"/sessions/{s}/notebook")
    assert answer.status_code == 200
    notebook = nbformat.reads(answer.text, as_version=4)
    nbformat.validate(notebook)
    again = nbformat.from_dict(notebook)
    for cell in again.cells:
        cell.outputs = []
    executor = nbclient.NotebookClient(again, timeout=60, kernel_name="python3", allow_errors=True)
    await executor.async_execute()
    shown = [[comparable(output) for output in cell.outputs] for cell in notebook.cells]
    assert shown == [[comparable(output) for output in cell.outputs] for cell in again.cells]
    assert sum(map(bool, shown)) == 5
    assert "numbers" in next(
        cell.source for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", ())
    )


def comparable(output: nbformat.NotebookNode) -> tuple[object, ...]:
    match output.output_type:
        case "stream":
            return output.name, output.text
        case "error":
            return output.ename, output.evalue
        case _:
            data = {kind: str(value).strip() for kind, value in output.data.items() if kind != "text/plain"}
            return output.output_type, data, "text/plain" in output.data
