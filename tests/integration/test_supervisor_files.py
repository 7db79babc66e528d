"""Files of a real supervisor's working directory, over its real link: while code runs, and when the link breaks."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from supervised import Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard
from kernel_image.safe_directory import HIDDEN_PREFIX
from sessions.errors import InvalidRequest, Unavailable


@pytest.fixture
async def kernel(short_dir: Path, switchboard: SupervisorSwitchboard) -> AsyncIterator[Supervised]:
    async with supervised(short_dir, switchboard) as kernel:
        yield kernel


async def put(kernel: Supervised, path: str, data: bytes) -> None:
    writer = await kernel.files.create(path, 1 << 30)
    await writer.write(data)
    await writer.commit()


async def get(kernel: Supervised, path: str) -> bytes:
    reader = await kernel.files.open(path)
    data = b""
    while piece := await reader.read():
        data += piece
    reader.close()
    return data


async def test_what_a_client_puts_the_code_reads_and_the_other_way_round(kernel: Supervised) -> None:
    data = os.urandom(1_500_000)
    await put(kernel, "in/data.bin", data)
    code = "import hashlib; blob = open('in/data.bin', 'rb').read(); hashlib.sha256(blob).hexdigest()"
    run = await kernel.run(code)
    assert run.value() == repr(hashlib.sha256(data).hexdigest())
    assert run.files() == {}
    run = await kernel.run("open('out.bin', 'wb').write(blob[::-1])", cellblock={"artifacts": False})
    assert await get(kernel, "out.bin") == data[::-1]
    assert [entry.path for entry in await kernel.files.list()] == ["in/data.bin", "out.bin"]
    await kernel.files.remove("out.bin")
    assert (await kernel.run("import os; os.listdir()")).value() == "['in']"


async def test_files_are_there_while_code_runs_and_its_output_goes_on(kernel: Supervised) -> None:
    msg_id = kernel.send("import time\nfor i in range(300): print(i, flush=True); time.sleep(0.003)")
    await kernel.printed("5\n")
    data = os.urandom(3_000_000)
    await put(kernel, "t", data)
    assert await get(kernel, "t") == data
    run = await kernel.end_of(msg_id)
    assert run.text() == "".join(f"{number}\n" for number in range(300))
    assert run.files() == {}


async def test_a_link_that_breaks_leaves_nothing_half_written(kernel: Supervised) -> None:
    await put(kernel, "t", b"old")
    writer = await kernel.files.create("t", 100)
    await writer.write(b"new")
    assert list(kernel.work_dir.glob(f"{HIDDEN_PREFIX}*"))
    await kernel.reconnect()
    with pytest.raises(Unavailable):
        await writer.commit()
    assert await get(kernel, "t") == b"old"
    assert not list(kernel.work_dir.glob(f"{HIDDEN_PREFIX}*"))


async def test_what_is_asked_as_the_link_breaks_fails_at_once(kernel: Supervised) -> None:
    asking = asyncio.ensure_future(kernel.files.list())
    await asyncio.sleep(0)
    await kernel.reconnect()
    async with asyncio.timeout(5):
        try:
            assert await asking == []
        except Unavailable:
            assert await kernel.files.list() == []


async def test_links_that_code_plants_lead_nowhere(kernel: Supervised) -> None:
    await kernel.run("import os\nos.symlink('/etc', 'etc')\nos.symlink('/etc/hostname', 'name')\nos.mkfifo('pipe')")
    for path in ("etc/hostname", "name", "pipe"):
        with pytest.raises(InvalidRequest):
            await kernel.files.open(path)
    assert await kernel.files.list() == []


async def test_files_are_there_without_a_kernel(kernel: Supervised) -> None:
    await put(kernel, "t", b"x")
    kernel.control("restart")
    assert await get(kernel, "t") == b"x"
    await kernel.ready(generation=2)
    assert (await kernel.run("open('t').read()")).value() == "'x'"
