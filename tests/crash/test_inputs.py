"""`kill -9` while a run waits that was given files and an environment: the next gateway runs it with them."""

from __future__ import annotations

import asyncio

import pytest
from failpoint_rig import Crash

WARM = 0
WAITING = """
import os
print(open('d/given.txt').read(), os.environ['CB_GIVEN'])
"""


@pytest.mark.asyncio(loop_scope="module")
async def test_a_run_that_waits_in_a_session_has_its_files_and_its_environment_afterwards(crash: Crash) -> None:
    client, gateway = crash.client, crash.gateway
    go = gateway.directory / "go"
    busy = f"import os, time\nprint('busy', flush=True)\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    given = {
        "files": {"d/given.txt": {"text": "kept"}, "unread.bin": {"base64": "AAEC"}},
        "fetch": ["unread.bin", "nowhere"],
        "env": {"CB_GIVEN": "s3cret"},
    }
    first = asyncio.ensure_future(client.run("busy", busy, session_id="queue"))
    await recorded(crash, 1)
    second = asyncio.ensure_future(client.run("waiting", WAITING, session_id="queue", **given))
    run_id = await recorded(crash, 2)
    assert "s3cret" not in (await client.ask("GET", f"/runs/{run_id}")).text
    gateway.kill()
    await gateway.start()
    go.touch()
    assert (await first)["status"] == "ok"
    answer = await second
    assert (answer["status"], answer["output"]) == ("ok", "kept s3cret\n"), answer
    assert answer["stderr"] == "[cellblock] nowhere was not fetched: there is no file of this name\n"
    assert (await client.ask("GET", answer["files"]["unread.bin"])).content == bytes(range(3))
    after = await client.run("after", "import os; print(os.environ.get('CB_GIVEN'))", session_id="queue")
    assert after["output"] == "None\n"
    assert "s3cret" not in gateway.log.read_text()


async def recorded(crash: Crash, count: int) -> str:
    """Wait until so many runs of the session are recorded; returns the id of the last one."""
    async with asyncio.timeout(60):
        while len(runs := (await crash.client.ask("GET", "/runs?session_id=queue")).json()["runs"]) < count:
            await asyncio.sleep(0.02)
    return str(runs[0]["run_id"])
