"""`/status.json` over a clock that the test moves, and the parts of the page: what is sent, and to whom."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from described import Call, check
from doubles import ManualClock, until
from http_face import Face, serving
from structlog.testing import capture_logs

from gateway.auth import Token
from gateway.http.status_page import handlers
from gateway.http.status_page.ring import Ring
from sessions.kernels.kernel_pool import PoolFigures
from sessions.measures.stages import Stage
from sessions.model import RunStatus, SessionState

TOKENS = (Token(sha256=hashlib.sha256(b"alpha").hexdigest(), tenant="alice"),)
STATIC = Path(handlers.__file__).parent / "static"


async def asked(client: httpx.AsyncClient, query: str = "") -> Any:
    answer = await client.get(f"/status.json{query}")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    check(Call("GET", "/status.json"), answer)
    return answer.json()


async def live_a_little(face: Face, client: httpx.AsyncClient, clock: ManualClock) -> None:
    """Three runs of two languages and a bug in ten seconds, then half a minute that nobody reads, then an outage."""
    face.history.sample()
    figures = face.service.figures
    figures.tally.runs["python", "ok"] += 3
    figures.tally.runs["bash", "ok"] += 1
    figures.tally.runs["python", "timeout"] += 1
    figures.tally.deaths["oom"] += 2
    figures.living = Counter({RunStatus.RUNNING: 5, RunStatus.QUEUED: 2})
    figures.states = Counter({SessionState.IDLE: 6})
    figures.pool.append(PoolFigures("bash", 1, 0, 1, 0, 2, 4.0))
    for duration_s in (0.02, 0.02, 4.0):
        figures.stages.whole.observe(duration_s)
        figures.stages.own.observe(0.003)
        figures.stages.observe(Stage.COMMIT, 0.001)
    face.service.next_error = RuntimeError("a bug")
    await client.post("/runcode", json={"code": "1"})
    clock.at_s += 10
    face.history.sample()
    clock.at_s += 30
    face.service.state.ready = False
    face.service.state.reasons = ("The engine does not answer.",)
    figures.of_database = replace(figures.of_database, is_up=False, round_trip_s=None)
    assert (await client.get("/readyz")).status_code == 503
    face.history.sample()


async def test_a_gateway_that_has_just_begun_has_figures_of_now_alone(face: Face, client: httpx.AsyncClient) -> None:
    face.history.sample()
    fresh = await asked(client)
    assert (fresh["history"]["begins_at"], fresh["history"]["series"]["runs"]["running"]) == (None, [])
    assert fresh["history"]["run_time"] == {"count": 0, "p50": None, "p95": None, "p99": None}
    assert fresh["gateway"]["isolation"] == "container"
    assert fresh["now"]["kernels"] == {"warm": 2, "starting": 1, "in_use": 3, "max": 8}


async def test_what_there_is_and_what_has_happened_is_shown() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as face, httpx.AsyncClient(base_url=face.url) as client:
        await live_a_little(face, client, clock)
        status = await asked(client)
    now, since = status["now"], status["since_start"]
    assert (now["ready"], now["reasons"]) == (False, ["The engine does not answer."])
    assert now["runs"] == {"running": 5, "queued": 2}
    assert now["queue"] == {"waiting": 6, "oldest_wait": 4.0}
    assert now["kernels"] == {"warm": 3, "starting": 1, "in_use": 4, "max": 8}
    assert now["sessions"] == {"starting": 0, "idle": 6, "busy": 0, "dead": 0}
    assert (now["database"]["reachable"], now["database"]["round_trip"]) == (False, None)
    assert now["database"]["lanes"][0] == {"lane": "quick", "open": 3, "in_use": 1, "max": 4}
    assert (since["ended"]["ok"], since["ended"]["timeout"], since["ended"]["lost"]) == (4, 1, 0)
    assert (since["deaths"]["oom"], since["deaths"]["gone"]) == (2, 0)
    assert since["requests"] == {"answered": 2, "server_errors": 1, "too_many_requests": 0}
    assert [(stage["stage"], stage["count"]) for stage in since["stages"]] == [("handler", 1), ("commit", 3)]
    assert status["gateway"]["uptime"] == 40


async def test_the_past_hour_and_day_have_a_value_for_each_slot_and_null_for_gaps() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as face, httpx.AsyncClient(base_url=face.url) as client:
        await live_a_little(face, client, clock)
        past = (await asked(client))["history"]
        assert (await asked(client, "?window=day"))["history"]["begins_at"] is None
        clock.at_s += 300
        face.history.sample()
        day = (await asked(client, "?window=day"))["history"]
    assert (past["step"], past["span"], past["begins_at"]) == (10, 3600, "2026-01-01T00:16:40.000000Z")
    series = past["series"]
    assert series["gateway"]["ready"] == [1, None, None, 0]
    assert series["database"] == {"reachable": [1, None, None, 0], "round_trip": [0.002, None, None, None]}
    assert series["runs"] == {"running": [5, None, None, 5], "queued": [2, None, None, 2]}
    assert series["queue"] == {"waiting": [6, None, None, 6], "oldest_wait": [4.0, None, None, 4.0]}
    assert series["ended"]["ok"] == [4, None, None, 0]
    assert series["deaths"]["oom"] == [2, None, None, 0]
    assert series["http"]["server_errors"] == [1, None, None, 0]
    assert past["run_time"]["count"] == past["own_time"]["count"] == 3
    p50 = past["run_time"]["p50"]
    assert 0.015 < p50 <= 0.025
    assert 2.5 < past["run_time"]["p99"] <= 5.0
    assert series["run_time"]["p50"] == [p50, None, None, p50]
    assert 0.002 < past["own_time"]["p95"] <= 0.003
    assert (day["step"], day["span"], day["series"]["ended"]["ok"]) == (300, 86_400, [4])
    assert day["series"]["gateway"]["ready"] == [pytest.approx(1 / 3, abs=1e-6)]
    assert day["series"]["database"]["round_trip"] == [0.002]


async def test_a_gateway_reads_its_figures_by_itself_and_goes_on_after_a_failure(face: Face) -> None:
    face.history.hour, figures = Ring(1, 60), face.service.figures
    tally, figures.tally = figures.tally, None  # type: ignore[assignment]
    with capture_logs() as logs:
        following = asyncio.create_task(face.history.follow())
        await until(lambda: bool(logs))
        figures.tally = tally
        await until(lambda: len(face.history.hour) > 0)
        following.cancel()
    assert {line["event"] for line in logs} == {"status_not_read"}


async def test_the_figures_take_a_token_and_name_nobody() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            refused = await client.get("/status.json", headers=headers)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "engine" not in refused.text
        assert (await client.get("/status.json?token=alpha")).status_code == 401
        client.headers["Authorization"] = "Bearer alpha"
        await client.post("/sessions", json={"session_id": "secret-1"})
        await client.post("/runcode", json={"code": "1", "session_id": "secret-2"})
        face.history.sample()
        text = (await client.get("/status.json")).text
        assert not re.search("alice|alpha|secret", text)
        assert (await client.get("/status.json", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("window=dya", "day"),
        ("window=week", "hour or day"),
        ("windows=day", "window"),
        ("window=hour&window=day", "window"),
    ],
)
async def test_a_window_that_there_is_not_is_refused(client: httpx.AsyncClient, query: str, said: str) -> None:
    answer = await client.get(f"/status.json?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert said in answer.json()["error"]


async def test_the_page_is_open_has_no_figures_and_may_use_nothing_but_its_own_parts() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        page = await client.get("/status")
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["Content-Security-Policy"].split("; ") == [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
        assert page.content == (STATIC / "status.html").read_bytes()
        parts = {path.name for path in STATIC.iterdir()} - {"status.html"}
        types = {"js": "text/javascript", "css": "text/css"}
        for name in parts:
            part = await client.get(f"/status/{name}")
            assert part.headers["Content-Type"] == f"{types[name.rpartition('.')[2]]}; charset=utf-8"
            assert part.headers["X-Content-Type-Options"] == "nosniff"
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|insertAdjacentHTML|eval\(", part.text)
            again = await client.get(f"/status/{name}", headers={"If-None-Match": part.headers["ETag"]})
            assert (again.status_code, again.content) == (304, b"")
        links = re.findall(r'(?:src|href)="(status/[^"]*)"', page.text)
        assert {link.removeprefix("status/") for link in links} <= parts
        for name in ("status.html", "nothing.js", "..%2fhandlers.py", "%2e%2e%2fring.py", "static"):
            assert (await client.get(f"/status/{name}")).status_code == 404, name
