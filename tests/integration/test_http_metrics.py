"""`GET /metrics`: the format, the names, who may read it, and that nothing of a client's becomes a label."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter

import httpx
import pytest
from events_talk import run_of
from http_face import Face, serving
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from gateway.auth import Token
from gateway.http.routes import ROUTES
from sessions.kernels.kernel_pool import PoolFigures
from sessions.measures.stages import BOUNDS_S, Stage
from sessions.measures.tally import Launch
from sessions.model import RunStatus, SessionState

TOKENS = (Token(sha256=hashlib.sha256(b"alpha").hexdigest(), tenant="alice"),)
NAMES_OF_OTHERS = ("process_", "python_")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(client: httpx.AsyncClient) -> Samples:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples_of(answer.text)


def samples_of(text: str) -> Samples:
    """All samples; one that comes twice fails."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_all_that_the_engine_tells_is_there(face: Face, client: httpx.AsyncClient) -> None:
    figures = face.service.figures
    figures.tally.runs["python", RunStatus.OK.value] += 3
    figures.tally.deaths["oom"] += 2
    figures.tally.launches["python3", Launch.FAILED] += 1
    figures.living = Counter({RunStatus.RUNNING: 5})
    figures.states = Counter({SessionState.IDLE: 6})
    figures.pool = [PoolFigures("python3", 2, 1, 3, 0, 4, 1.5), PoolFigures("bash", 0, 0, 1, 0, 0, 0.0)]
    samples = await scrape(client)
    assert value(samples, "cellblock_build_info", version="0.1.0", engine="memory") == 1
    assert value(samples, "cellblock_ready") == 1
    assert value(samples, "cellblock_runs_total", language="python", status="ok") == 3
    assert value(samples, "cellblock_runs_total", language="python", status="lost") == 0
    assert value(samples, "cellblock_runs_in_progress", status="running") == 5
    assert value(samples, "cellblock_runs_in_progress", status="queued") == 0
    assert value(samples, "cellblock_kernels", kernelspec="python3", state="starting") == 1
    assert value(samples, "cellblock_kernels", kernelspec="bash", state="working") == 1
    assert value(samples, "cellblock_kernels_max") == 8
    assert value(samples, "cellblock_claims_waiting", kernelspec="python3") == 4
    assert value(samples, "cellblock_claims_oldest_wait_seconds", kernelspec="python3") == 1.5
    assert value(samples, "cellblock_sandbox_launches_total", kernelspec="python3", outcome="failed") == 1
    assert value(samples, "cellblock_sandbox_launches_total", kernelspec="bash", outcome="ok") == 0
    assert value(samples, "cellblock_kernel_deaths_total", cause="oom") == 2
    assert value(samples, "cellblock_kernel_deaths_total", cause="gone") == 0
    assert value(samples, "cellblock_sessions", state="idle") == 6
    assert value(samples, "cellblock_zygote_up") == 1
    assert value(samples, "cellblock_zygote_forks_total", outcome="ok") == 7
    assert value(samples, "cellblock_zygote_forks_total", outcome="failed") == 1
    assert value(samples, "cellblock_database_up") == 1
    assert value(samples, "cellblock_database_round_trip_seconds") == 0.002
    assert value(samples, "cellblock_database_connections", lane="quick", state="in_use") == 1
    assert value(samples, "cellblock_database_connections", lane="quick", state="idle") == 2
    assert value(samples, "cellblock_database_connections_max", lane="quick") == 4
    assert value(samples, "cellblock_database_size_bytes") == 8_000_000
    assert value(samples, "cellblock_written_bytes_total", kind="artifacts") == 2000
    assert value(samples, "cellblock_written_bytes_total", kind="answers") == 0
    assert value(samples, "process_open_fds") > 0
    assert all(name.startswith(("cellblock_", *NAMES_OF_OTHERS)) for name, _ in samples)


async def test_stages_are_histograms_in_seconds_whose_buckets_add_up(face: Face, client: httpx.AsyncClient) -> None:
    for duration_s in (0.0001, 0.004, 1000.0):
        face.service.stages.observe(Stage.COMMIT, duration_s)
    samples = await scrape(client)
    name = "cellblock_run_stage_duration_seconds"
    buckets = [
        (float(dict(labels)["le"]), count)
        for (of, labels), count in samples.items()
        if of == f"{name}_bucket" and dict(labels)["stage"] == "commit"
    ]
    assert [bound for bound, _ in sorted(buckets)] == [*BOUNDS_S, float("inf")]
    counts = [count for _, count in sorted(buckets)]
    assert counts == sorted(counts)
    assert (counts[0], dict(buckets)[0.005], counts[-2], counts[-1]) == (1, 2, 2, 3)
    assert value(samples, f"{name}_count", stage="commit") == 3
    assert value(samples, f"{name}_sum", stage="commit") == pytest.approx(1000.0041)
    assert value(samples, f"{name}_count", stage="claim") == 0


async def test_what_is_not_known_is_missing(face: Face, client: httpx.AsyncClient) -> None:
    figures = face.service.figures
    figures.of_zygote = figures.size_bytes = None
    names = {name for name, _ in await scrape(client)}
    assert not names & {"cellblock_zygote_up", "cellblock_zygote_forks_total", "cellblock_database_size_bytes"}


async def test_requests_are_counted_by_route_and_never_by_what_a_client_wrote(client: httpx.AsyncClient) -> None:
    for path in ("/runs/secret-1", "/runs/secret-2", "/secret-3", "/sessions/s/files/secret-4", "/api/secret-5"):
        await client.get(path)
    await client.request("SECRET6", "/runs")
    await client.post("/runcode", json={"code": "1"})
    await client.post("/runcode", json={"cod": "1"})
    text = (await client.get("/metrics")).text
    assert "secret" not in text.lower()
    samples = samples_of(text)
    name = "cellblock_http_requests_total"
    assert value(samples, name, route="/runs/{id}", method="GET", status="404") == 2
    assert value(samples, name, route="unknown", method="GET", status="404") == 1
    assert value(samples, name, route="/api/{path}", method="GET", status="404") == 1
    assert value(samples, name, route="/runs", method="other", status="405") == 1
    assert value(samples, name, route="/runcode", method="POST", status="200") == 1
    assert value(samples, name, route="/runcode", method="POST", status="400") == 1
    took = "cellblock_http_request_duration_seconds"
    assert value(samples, f"{took}_count", route="/runcode", method="POST") == 2
    assert 0 < value(samples, f"{took}_sum", route="/runcode", method="POST") < 30
    known = {route.path for route in ROUTES} | {"unknown"}
    assert {dict(labels)["route"] for of, labels in samples if of == name} <= known


async def test_a_route_that_was_used_shows_that_none_of_its_requests_failed(
    face: Face, client: httpx.AsyncClient
) -> None:
    failed = {"route": "/runcode", "method": "POST", "status": "500"}
    name = "cellblock_http_requests_total"
    await client.post("/runcode", json={"code": "1"})
    assert value(await scrape(client), name, **failed) == 0
    face.service.next_error = RuntimeError("a bug")
    await client.post("/runcode", json={"code": "1"})
    assert value(await scrape(client), name, **failed) == 1


async def test_streams_and_sockets_are_counted_while_they_are_open(face: Face, client: httpx.AsyncClient) -> None:
    name = "cellblock_http_streams"
    async with connect(face.ws_url), asyncio.TaskGroup() as group:
        reading = group.create_task(client.post("/runcode", json={"code": "1", "stream": True}))
        run = await run_of(face)
        samples = await scrape(client)
        assert value(samples, name, kind="events") == 1
        assert value(samples, name, kind="websocket") == 1
        assert value(samples, "cellblock_http_connections") == 3
        run.end()
        await reading
    async with asyncio.timeout(30):
        while any(face.streams):
            await asyncio.sleep(0.01)
    samples = await scrape(client)
    assert value(samples, name, kind="events") == value(samples, name, kind="websocket") == 0
    count = "cellblock_http_requests_total"
    assert value(samples, count, route="/runcode/ws", method="GET", status="101") == 1


async def test_bodies_are_counted_while_they_are_in_memory(face: Face, client: httpx.AsyncClient) -> None:
    face.service.hold = asyncio.Event()
    body = b'{"code": "' + b"1" * 5000 + b'"}'
    async with asyncio.TaskGroup() as group:
        group.create_task(client.post("/runcode", content=body))
        await face.service.was_asked.wait()
        samples = await scrape(client)
        assert value(samples, "cellblock_http_buffered_bytes", what="bodies") == len(body)
        assert value(samples, "cellblock_http_buffered_bytes_max", what="bodies") == 16 * 10_000
        assert value(samples, "cellblock_http_requests_in_flight") == 2
        face.service.hold.set()


async def test_it_takes_a_token_where_tokens_are_required() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        refused = await client.get("/metrics")
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "cellblock_" not in refused.text
        answer = await client.get("/metrics", headers={"Authorization": "Bearer alpha"})
        assert answer.status_code == 200
        assert value(samples_of(answer.text), "cellblock_ready") == 1


async def test_a_page_of_another_site_cannot_read_it(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
