"""`/runs`: one, many, and the end of one, over a real server."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
from http_face import Face, serving
from memory_service import MemoryRun

from gateway.auth import Token
from sessions.model import ANONYMOUS, EventType, Result, RunRequest, RunStatus, SessionId, TenantId, Usage

ALICE = TenantId("alice")
TOKENS = tuple(
    Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in (ALICE, TenantId("bob"))
)
UNKNOWN = "0f000000-0000-4000-8000-000000000000"


def add(face: Face, *, tenant: TenantId = ANONYMOUS, session_id: str | None = None, code: str = "1") -> MemoryRun:
    session = None if session_id is None else SessionId(session_id)
    return face.service.add_run(RunRequest(tenant, code, "python", {}, 30.0, session))


async def test_a_run_that_has_ended_is_its_answer_and_what_was_asked(face: Face, client: httpx.AsyncClient) -> None:
    run = add(face, session_id="s", code="print(\x00'\ud800')")
    run.add(EventType.STDOUT, text="hi")
    run.end(RunStatus.TIMEOUT, session_lost=True, usage=Usage(1.0, 2.0, 3), execution_count=4)
    answer = await client.get(f"/runs/{run.run_id}")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "run_id": run.run_id,
            "status": "timeout",
            "output": "hi",
            "error": "The code ran past its time limit and was stopped.",
            "execution_count": 4,
            "session_id": "s",
            "session_created": False,
            "session_lost": True,
            "usage": {"wall_ms": 1.0, "cpu_ms": 2.0, "memory_peak_bytes": 3},
            "code": "print(\x00'\ufffd')",
            "language": "python",
            "created_at": "2026-01-01T00:01:00.000000Z",
            "finished_at": "2026-01-01T00:01:01.000000Z",
        },
    )


@pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.RUNNING])
@pytest.mark.parametrize("has_result", [True, False])
async def test_a_run_that_lives_says_so_and_is_no_error(
    face: Face,
    client: httpx.AsyncClient,
    status: RunStatus,
    has_result: bool,  # noqa: FBT001 - a table
) -> None:
    run = add(face)
    result = Result(run.run_id, status, "so far") if has_result else None
    run.record = replace(run.record, status=status, result=result)
    body = (await client.get(f"/runs/{run.run_id}")).json()
    assert body == {
        "run_id": run.run_id,
        "status": status.value,
        "output": "so far" if has_result else "",
        "code": "1",
        "language": "python",
        "created_at": "2026-01-01T00:01:00.000000Z",
        "finished_at": None,
    }


@pytest.mark.parametrize(
    "name",
    [
        UNKNOWN,
        UNKNOWN.upper(),
        UNKNOWN.replace("-", ""),
        "{" + UNKNOWN + "}",
        "urn:uuid:" + UNKNOWN,
        "x",
        "%2e%2e",
        "..%2f..%2fetc",
        "%00",
        "%ff",
        "9" * 5000,
        "a b",
    ],
)
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("GET", "/events"), ("POST", "/cancel")])
async def test_what_names_no_run_is_404(client: httpx.AsyncClient, name: str, method: str, rest: str) -> None:
    answer = await client.request(method, f"/runs/{name}{rest}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_an_id_in_capital_letters_is_the_same_id(face: Face, client: httpx.AsyncClient) -> None:
    run = add(face)
    assert (await client.get(f"/runs/{run.run_id.upper()}")).json()["run_id"] == run.run_id


async def test_what_retention_has_removed_is_gone(face: Face, client: httpx.AsyncClient) -> None:
    run = add(face)
    run.end()
    run.record = replace(run.record, expired_at=datetime(2026, 2, 1, tzinfo=UTC), result=None)
    for path in (f"/runs/{run.run_id}", f"/runs/{run.run_id}/events"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (410, "gone"), path


async def test_runs_are_listed_newest_first_and_page_by_page(face: Face, client: httpx.AsyncClient) -> None:
    runs = [add(face) for _ in range(5)]
    runs[0].end(usage=Usage(1.0, 2.0, 3))
    first = (await client.get("/runs", params={"limit": 2})).json()["runs"]
    assert [run["run_id"] for run in first] == [runs[4].run_id, runs[3].run_id]
    rest = (await client.get("/runs", params={"before": first[-1]["run_id"]})).json()["runs"]
    assert [run["run_id"] for run in rest] == [runs[2].run_id, runs[1].run_id, runs[0].run_id]
    assert rest[-1] == {
        "run_id": runs[0].run_id,
        "status": "ok",
        "language": "python",
        "session_id": None,
        "created_at": "2026-01-01T00:01:00.000000Z",
        "finished_at": "2026-01-01T00:01:01.000000Z",
        "usage": {"wall_ms": 1.0, "cpu_ms": 2.0, "memory_peak_bytes": 3},
    }
    assert rest[0]["finished_at"] is None


async def test_runs_are_found_by_session_status_and_time(face: Face, client: httpx.AsyncClient) -> None:
    old, new = add(face, session_id="s"), add(face)
    new.end(RunStatus.ERROR)

    async def ids(**params: str) -> list[str]:
        answer = await client.get("/runs", params=params)
        assert answer.status_code == 200, answer.text
        return [run["run_id"] for run in answer.json()["runs"]]

    assert await ids(session_id="s") == [old.run_id]
    assert await ids(status="error") == [new.run_id]
    assert await ids(status="running", session_id="other") == []
    for time in ("2026-01-01T00:02:00Z", "2026-01-01T00:02:00", "2026-01-01T01:02:00+01:00", "2026-01-01T00:02"):
        assert await ids(before=time) == [old.run_id], time
    assert await ids(before="", status="", limit="", session_id="") == [new.run_id, old.run_id]
    unescaped = await client.get("/runs?before=2026-01-01T01:02:00+01:00")
    assert [run["run_id"] for run in unescaped.json()["runs"]] == [old.run_id]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", '"limit"'),
        ("limit=501", '"limit"'),
        ("limit=-1", '"limit"'),
        ("limit=1.5", '"limit"'),
        ("limit=x", '"limit"'),
        ("limit=" + "9" * 5000, '"limit"'),
        ("status=okay", 'did you mean "ok"?'),
        ("status=zzz", "use one of queued"),
        ("before=yesterday", '"before"'),
        ("before=0001-01-01T00:00:00%2B23:59", '"before"'),
        ("before=" + UNKNOWN, '"before"'),
        ("session_id=a%20b", '"session_id"'),
        ("sesion_id=a", 'did you mean "session_id"?'),
        ("limit=1&limit=2", '"limit"'),
        ("before=%ff", "UTF-8"),
    ],
)
async def test_bad_questions_are_400_and_name_the_field(client: httpx.AsyncClient, query: str, field: str) -> None:
    answer = await client.get(f"/runs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert field in answer.json()["error"]


async def test_cancelling_is_202_once_and_again(face: Face, client: httpx.AsyncClient) -> None:
    run = add(face)
    for _ in range(2):
        answer = await client.post(f"/runs/{run.run_id}/cancel")
        assert (answer.status_code, answer.json()) == (202, {"run_id": run.run_id, "status": "cancelled"})
    ended = add(face)
    ended.end()
    assert (await client.post(f"/runs/{ended.run_id}/cancel")).json()["status"] == "ok"


async def test_another_tenants_runs_do_not_exist() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        run = add(face, tenant=ALICE)
        run.end()
        bob, alice = {"Authorization": "Bearer bob"}, {"Authorization": "Bearer alice"}
        paths = [("GET", f"/runs/{run.run_id}"), ("GET", f"/runs/{run.run_id}/events")]
        for method, path in [*paths, ("POST", f"/runs/{run.run_id}/cancel")]:
            assert (await client.request(method, path, headers=bob)).status_code == 404, path
            assert (await client.request(method, path)).status_code == 401, path
            assert (await client.request(method, path, headers=alice)).status_code in (200, 202), path
        assert (await client.get("/runs", headers=bob)).json() == {"runs": []}
        assert (await client.get(f"/runs?before={run.run_id}", headers=bob)).status_code == 400
        assert len((await client.get("/runs", headers=alice)).json()["runs"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/runs", "GET, HEAD, OPTIONS"),
        ("DELETE", f"/runs/{UNKNOWN}", "GET, HEAD, OPTIONS"),
        ("POST", f"/runs/{UNKNOWN}/events", "GET, HEAD, OPTIONS"),
        ("GET", f"/runs/{UNKNOWN}/cancel", "POST, OPTIONS"),
    ],
)
async def test_other_methods_are_405(client: httpx.AsyncClient, method: str, path: str, allow: str) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allow)


async def test_head_is_get_without_the_body(face: Face, client: httpx.AsyncClient) -> None:
    run = add(face)
    for path in ("/runs", f"/runs/{run.run_id}", f"/runs/{run.run_id}/events"):
        answer = await client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
async def test_another_sites_page_can_neither_read_nor_cancel(
    face: Face, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    run = add(face)
    for method, path in (("GET", "/runs"), ("POST", f"/runs/{run.run_id}/cancel")):
        assert (await client.request(method, path, headers=headers)).status_code == 403
    assert run.record.status is RunStatus.RUNNING
