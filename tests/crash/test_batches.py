"""`kill -9` and SIGTERM while a batch is under way: every item is answered, and none runs twice.

The engine is `process`: what the code does can be counted outside of it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio
from crash_rig import ANSWER_S, CrashableGateway
from store_fixtures import copy_template_data_dir

ITEMS = 20
FREE = 10
"""So many items run at once; the others go on when the test says so."""

Json = dict[str, Any]


class Site:
    """A gateway, and two files outside of its reach: items write their names into one, and some await the other."""

    def __init__(self, directory: Path) -> None:
        # A quarter of the sandboxes is for batches: three runs at once.
        self.gateway = CrashableGateway(directory, "process", CELLBLOCK_POOL_SIZE="0", CELLBLOCK_POOL_MAX="12")
        self.gate = directory / "gate"
        self._ledger = directory / "ledger"

    def ran(self) -> Counter[str]:
        return Counter(self._ledger.read_text().split()) if self._ledger.exists() else Counter()

    def items(self) -> list[Json]:
        """Some of two sessions, which count theirs, and some of none. Each has its name as its id and as its key."""
        items = []
        for place in range(ITEMS):
            session = None if place % 8 == 4 else "ab"[place % 2]
            name = f"{session or 'none'}-{place}"
            code = (
                f"open({str(self._ledger)!r}, 'a').write('{name}\\n')\n"
                "import os, time\n"
                f"while {place} >= {FREE} and not os.path.exists({str(self.gate)!r}): time.sleep(0.01)\n"
                "count = globals().get('count', 0) + 1\n"
                f"print('{name}', count)"
            )
            in_session = {} if session is None else {"session_id": session}
            items.append({"id": name, "idempotency_key": name, "code": code, "timeout": 120, **in_session})
        return items

    async def send(self, answers: dict[str, Json], items: list[Json]) -> bool:
        """Send the batch; `answers` takes the lines as they come. Whether all of it came."""
        try:
            async with (
                httpx.AsyncClient(base_url=self.gateway.url, timeout=ANSWER_S) as client,
                client.stream("POST", "/runcode/batch", json={"runs": items}) as answer,
            ):
                assert answer.status_code == 200, await answer.aread()
                async for line in answer.aiter_lines():
                    told = json.loads(line)
                    answers[told["id"]] = told
        except httpx.TransportError:
            return False
        return True

    async def until_answered(self, answers: dict[str, Json], count: int) -> None:
        deadline = time.monotonic() + ANSWER_S
        while len(answers) < count:
            assert time.monotonic() < deadline, self.gateway.tail()
            await asyncio.sleep(0.01)

    async def until_draining(self) -> None:
        deadline = time.monotonic() + ANSWER_S
        while '"draining"' not in self.gateway.log.read_text(errors="replace"):
            assert time.monotonic() < deadline, self.gateway.tail()
            await asyncio.sleep(0.01)

    async def send_until_whole(self, items: list[Json]) -> dict[str, Json]:
        """Send the batch again and again, until the gateway has answered all of it."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            answers: dict[str, Json] = {}
            if await self.send(answers, items) and all(line["status_code"] == 200 for line in answers.values()):
                return answers
            assert time.monotonic() < deadline, (answers, self.gateway.tail())
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    site = Site(directory)
    copy_template_data_dir(site.gateway.data_dir)
    await site.gateway.start()
    yield site
    site.gateway.stop()
    shutil.rmtree(directory)


def check_whole(site: Site, answers: dict[str, Json], items: list[Json]) -> None:
    """Each item has run once, in its session's order, and has been answered with what it printed."""
    assert site.ran() == {item["id"]: 1 for item in items}
    seen: Counter[str] = Counter()
    for item in items:
        name, session = item["id"], item.get("session_id", item["id"])
        seen[session] += 1
        answer = answers[name]
        assert (answer["status_code"], answer["status"]) == (200, "ok"), answer
        assert answer["output"] == f"{name} {seen[session]}\n"
        assert not answer.get("session_lost")
    assert len({answer["run_id"] for answer in answers.values()}) == len(items)


async def test_a_batch_that_is_sent_again_after_a_kill_gets_all_answers_and_repeats_nothing(site: Site) -> None:
    items, first = site.items(), {}
    sending = asyncio.ensure_future(site.send(first, items))
    await site.until_answered(first, 5)
    site.gateway.kill()
    assert not await sending, "the connection breaks"
    assert 5 <= len(first) <= FREE
    site.gate.touch()
    await site.gateway.start()
    answers = await site.send_until_whole(items)
    check_whole(site, answers, items)
    assert {name: answers[name] for name in first} == first
    assert await site.send_until_whole(items) == answers


async def test_a_gateway_that_is_told_to_stop_answers_every_item(site: Site) -> None:
    items, first = site.items(), {}
    sending = asyncio.ensure_future(site.send(first, items))
    await site.until_answered(first, 5)
    assert site.gateway.process is not None
    site.gateway.process.send_signal(signal.SIGTERM)
    await site.until_draining()
    site.gate.touch()
    assert await sending, "the answer is whole"
    assert len(first) == ITEMS
    begun = [name for name, answer in first.items() if answer["status_code"] == 200]
    assert Counter(begun) == site.ran()
    for name in first.keys() - set(begun):
        assert (first[name]["status_code"], first[name]["code"]) == (503, "unavailable"), first[name]
    assert len(begun) < ITEMS
    site.gateway.process.wait(60)
    await site.gateway.start()
    answers = await site.send_until_whole(items)
    check_whole(site, answers, items)
    assert {name: answers[name] for name in begun} == {name: first[name] for name in begun}
