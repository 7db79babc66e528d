"""Survives a `kill -9` at a failpoint: a bit of everything is at work, and afterwards everything is there, once.

The engine is `process`: a container is not the point here, and what the code does can be counted outside of it.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from crash_rig import Client, CrashableGateway, check_events
from store_fixtures import copy_template_data_dir

LINES = 60
NUMBERS = itertools.count(1)

# What a run in the session does: it counts in a variable, and in a file outside of the gateway's reach.
LOOP = f"""
import os, time
from IPython.display import display
count = globals().get('count', 0) + 1
open({{ledger!r}}, 'a').write('{{key}}\\n')
for line in range({LINES}):
    print(line, flush=True)
    time.sleep(0.005)
display({{{{'text/plain': 'shown'}}}}, raw=True)
open('made.txt', 'w').write('{{key}}')
assert os.environ.get('CB_GIVEN') == {{given!r}}
assert {{given!r}} is None or open('given.txt').read() == {{given!r}}
count
"""
OUTPUT = "".join(f"{line}\n" for line in range(LINES))


def given(key: str) -> dict[str, Any]:
    """What a run is given beside its code: nothing while it is the first of the session."""
    if key.endswith("running"):
        return {}
    return {"files": {"given.txt": {"text": key}}, "fetch": ["given.txt"], "env": {"CB_GIVEN": key}}


ABOUT_SESSIONS = {"store.add_session", "store.renew_session", "store.remove_session"}
ABOUT_KERNELS = {"store.update_session", "send.interrupt", "send.restart", "send.shutdown", "take.died"}


class Crash:
    """One gateway with a session, and what happens to them."""

    def __init__(self, gateway: CrashableGateway, client: Client) -> None:
        self.gateway = gateway
        self.client = client
        self.ledger = gateway.directory / "ledger"
        self.runs_in_session = 0

    async def survive(self, failpoint: str) -> None:
        """Do a bit of everything, die at the failpoint, come back, and check that everything is there, once."""
        number = next(NUMBERS)
        keys = [f"{number}-{kind}" for kind in ("running", "waiting", "single")]
        self.gateway.arm(failpoint)
        asked = asyncio.gather(
            self.client.run_streaming(keys[0], self.code(keys[0]), session_id="s"),
            self._later(keys[1], session_id="s"),
            self.client.run(keys[2], self.code(keys[2]), **given(keys[2])),
            *self._other_things(number, failpoint.rpartition(".")[0]),
        )
        await self._bring_back(failpoint, asked)
        (running, events), waiting, single, *_ = await asked
        check_events(events, running)
        self.runs_in_session += 2
        # Which of the two is first is open where neither had been taken on when the gateway died.
        counts = sorted(int(answer["results"][1]["text/plain"]) for answer in (running, waiting))
        assert counts == [self.runs_in_session - 1, self.runs_in_session]
        for key, answer in zip(keys, (running, waiting, single), strict=True):
            assert (answer["status"], answer["output"]) == ("ok", OUTPUT), answer
            assert answer["results"][0] == {"text/plain": "shown"}
            assert list(answer["files"]) == [*given(key).get("fetch", ()), "made.txt"]
            url = answer["files"]["made.txt"]
            assert (await self.client.ask("GET", url)).text == key
            assert self.ledger.read_text().splitlines().count(key) == 1
            assert not answer.get("session_lost"), "the session is still the same"
            stored = await self.client.events(answer["run_id"])
            check_events(stored, answer)
            assert stored[: len(events)] == events or key != keys[0]
            in_session = {"session_id": "s"} if "single" not in key else {}
            again = await self.client.run(key, self.code(key), **given(key), **in_session)
            assert again == {name: value for name, value in answer.items() if name not in ("seq", "type")}

    def code(self, key: str) -> str:
        return LOOP.format(ledger=str(self.ledger), key=key, given=key if given(key) else None)

    async def _later(self, key: str, **fields: Any) -> dict[str, Any]:
        """The second run in the session comes second."""
        await asyncio.sleep(0.15)
        return await self.client.run(key, self.code(key), **given(key), **fields)

    def _other_things(self, number: int, failpoint: str) -> list[Awaitable[None]]:
        """What runs do not pass, in a session that is made, renewed and ended."""
        if failpoint not in ABOUT_SESSIONS | ABOUT_KERNELS:
            return []
        return [self._other_session(number, loses_kernels=failpoint in ABOUT_KERNELS)]

    async def _other_session(self, number: int, *, loses_kernels: bool) -> None:
        path = f"/sessions/other-{number}"
        await self.client.ask("POST", "/sessions", json={"session_id": f"other-{number}"})
        await self.client.ask("PATCH", path, json={})
        if loses_kernels:
            await self._lose_kernels(number, path)
        await self.client.ask("DELETE", path)

    async def _lose_kernels(self, number: int, path: str) -> None:
        """Two that end, one that is interrupted, and one that is restarted."""
        await self.client.run(f"{number}-exit", "get_ipython().ask_exit()", session_id=f"other-{number}")
        await self.client.run(f"{number}-die", "import os; os._exit(1)", session_id=f"other-{number}")
        sleeping = asyncio.ensure_future(
            self.client.run(f"{number}-sleep", "import time; time.sleep(60)", session_id=f"other-{number}")
        )
        while not sleeping.done():
            await self.client.ask("POST", f"{path}/interrupt")
            await asyncio.sleep(0.2)
        # Killed where the machine stood still for as long as an interrupt may take.
        assert (await sleeping)["status"] in ("error", "kernel_died")
        await self.client.ask("POST", f"{path}/restart")

    async def _bring_back(self, failpoint: str, asked: asyncio.Future[Any]) -> None:
        patience = 500  # some things, such as removing a used kernel, are done behind the answers' backs
        while not self.gateway.has_died():
            patience -= asked.done()
            assert patience, f"{failpoint} was never reached: {asked}"
            await asyncio.sleep(0.01)
        await self.gateway.start()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crash(request: pytest.FixtureRequest) -> AsyncIterator[Crash]:
    """Of a module. Its `WARM` is how many kernels wait in the pool, and are replaced at each start of the gateway."""
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    settings = {"CELLBLOCK_POOL_SIZE": str(request.module.WARM), "CELLBLOCK_LANGUAGES_ENV_ALLOWED": "CB_GIVEN"}
    gateway = CrashableGateway(directory, "process", **settings)
    copy_template_data_dir(gateway.data_dir)
    await gateway.start()
    client = Client(gateway.url)
    crash = Crash(gateway, client)
    yield crash
    await client.close()
    gateway.stop()
    shutil.rmtree(directory)
