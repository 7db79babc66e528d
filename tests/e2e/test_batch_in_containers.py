"""A batch over real HTTP, from real containers through a real database; and what another client gets meanwhile."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from client_rig import Client, Json

ITEMS = 200
SESSIONS = 4
STATELESS = range(0, ITEMS, 13)
SINGLES = 3

pytestmark = pytest.mark.docker


def batch(tag: str) -> list[Json]:
    """A few runs of their own, and those of sessions, which count theirs; one fails, and one cannot be run."""
    items: list[Json] = []
    for place in range(ITEMS):
        code = f"count = globals().get('count', 0) + 1\nprint({place})\ncount"
        session = {} if place in STATELESS else {"session_id": f"{tag}-{place % SESSIONS}"}
        items.append({"code": code, "idempotency_key": f"{tag}-{place}", **session})
    items[100]["code"] = "1/0"
    items[101]["cod"] = "1"
    return items


async def send(client: Client, items: list[Json]) -> list[Json]:
    async with client.http.stream("POST", "/runcode/batch", json={"runs": items}) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["Content-Type"].startswith("application/x-ndjson")
        return [json.loads(line) async for line in answer.aiter_lines()]


async def test_two_hundred_runs_in_one_request_and_others_between_them(client: Client, bob: Client) -> None:
    tag = uuid.uuid4().hex
    items = batch(tag)
    sending = asyncio.ensure_future(send(client, items))
    for number in range(SINGLES):
        # They find a sandbox although the batch wants more of them.
        assert (await bob.run(f"print({number})"))["output"] == f"{number}\n"
    lines = await sending
    assert sorted(line["id"] for line in lines) == list(range(ITEMS))
    by_id = {line["id"]: line for line in lines}
    counts = dict.fromkeys((f"{tag}-{number}" for number in range(SESSIONS)), 0)
    for place, item in enumerate(items):
        line = by_id[place]
        if place == 100:
            assert (line["status_code"], line["status"], line["exception"]["name"]) == (
                200,
                "error",
                "ZeroDivisionError",
            )
        elif place == 101:
            assert (line["status_code"], line["code"]) == (400, "invalid_request")
        else:
            session = item.get("session_id", "")
            counts[session] = counts.get(session, 0) + 1 if session else 1
            assert (line["status_code"], line["status"], line["output"]) == (200, "ok", f"{place}\n")
            assert line["results"] == [{"text/plain": str(counts[session])}], "in order, and once"
            assert line["usage"]["wall_ms"] > 0
    again = {line["id"]: line for line in await send(client, items)}
    again[101]["request_id"] = by_id[101]["request_id"]
    assert again == by_id, "the stored answers"
