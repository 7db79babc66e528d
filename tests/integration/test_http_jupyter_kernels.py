"""`/api/kernels` and `/api/sessions`, over a real server: sessions as a Jupyter client sees them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from dataclasses import replace
from typing import Any

import httpx
import pytest
from http_face import Face, serving

from gateway.auth import Token
from sessions.model import ANONYMOUS, SessionId, SessionState

TOKENS = tuple(Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in ("alice", "bob"))
K = "11111111-2222-3333-4444-555555555555"


async def opened(client: httpx.AsyncClient, path: str = "a.ipynb", **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/sessions", content=json.dumps({"path": path, "type": "notebook", **fields}))
    assert answer.status_code == 201, answer.text
    session: dict[str, Any] = answer.json()
    return session


# --- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b'{"name": null}',
        b'{"name": ""}',
        b'{"name": "python3", "path": null}',
        b'{"name": "python"}',
        b'{"name": "python3", "env": {"A": "1"}}',
        b'{"name": "python3", "path": "a/b", "kernel_id": null, "env": null, "unknown": 1}',
    ],
)
async def test_a_kernel_is_a_session(face: Face, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=face.url) as client:
        made = await client.post("/api/kernels?unknown=1", content=body)
        kernel = {
            "id": made.json()["id"],
            "name": "python3",
            "last_activity": "2026-01-01T00:00:00.000000Z",
            "execution_state": "idle",
            "connections": 0,
        }
        assert (made.status_code, made.json()) == (201, kernel)
        assert str(uuid.UUID(kernel["id"])) == kernel["id"]
        assert made.headers["Location"] == f"/api/kernels/{kernel['id']}"
        assert (await client.get(made.headers["Location"])).json() == kernel
        assert (await client.head(made.headers["Location"])).status_code == 200
        assert (await client.get("/api/kernels")).json() == [kernel]
        session = (await client.get("/sessions")).json()["sessions"][0]
        assert session["session_id"] == session["kernel_id"] == kernel["id"]
    (asked,) = face.service.session_requests
    assert (asked.language, asked.variables, asked.idle_timeout_s, asked.max_lifetime_s) == ("python", {}, 600, 3600)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"1",
        b'"python3"',
        b"name=python3",
        b"\xff",
        b'{"name": 1}',
        b'{"path": 1}',
        b'{"env": []}',
        b'{"env": {"A": 1}}',
        b'{"env": {"A": null}}',
        b'{"kernel_id": 1}',
        b'{"kernel_id": ""}',
        b'{"kernel_id": "chat-42"}',
        b'{"kernel_id": "a-b-c-d-\\u0000"}',
        b'{"kernel_id": "\\ud800-b-c-d-e"}',
        b'{"kernel_id": "a:-b-c-d-e"}',
        b"[" * 5000,
    ],
)
async def test_a_body_that_makes_no_sense_starts_no_kernel(face: Face, client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/api/kernels", content=body)
    assert (answer.status_code, sorted(answer.json()), answer.json()["reason"]) == (400, ["message", "reason"], None)
    assert face.service.sessions == {}


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_is_json_whatever_it_is_called(client: httpx.AsyncClient, media_type: str) -> None:
    headers = {"Content-Type": media_type}
    made = await client.post("/api/kernels", content=json.dumps({"kernel_id": K}).encode(), headers=headers)
    assert (made.status_code, made.json()["id"]) == (201, K)


async def test_json_that_is_none_is_called_as_jupyter_calls_it(client: httpx.AsyncClient) -> None:
    assert (
        (await client.post("/api/kernels", content=b"{"))
        .json()["message"]
        .startswith("Invalid JSON in body of request")
    )


@pytest.mark.parametrize("name", ["nope", "Python 3", "\x00", "\ud800"])
async def test_an_unknown_kernelspec_is_500_as_with_jupyter_server(
    face: Face, client: httpx.AsyncClient, name: str
) -> None:
    answer = await client.post("/api/kernels", content=json.dumps({"name": name}))
    assert (answer.status_code, answer.json()["reason"]) == (500, None)
    assert answer.json()["message"].startswith("No such kernel named")
    assert face.service.session_requests == []


async def test_a_kernelspec_is_chosen_by_its_name_or_its_languages() -> None:
    languages = {"r": "ir", "python": "python3", "bash": "bash", "python3": "odd"}
    async with serving(languages=languages) as face, httpx.AsyncClient(base_url=face.url) as client:
        asked = (None, "ir", "R", "bash", "python3", "odd")
        kernels = [(await client.post("/api/kernels", json={"name": name})).json()["name"] for name in asked]
        assert kernels == ["python3", "ir", "ir", "bash", "python3", "odd"]
    async with serving(languages={"r": "ir"}) as face, httpx.AsyncClient(base_url=face.url) as client:
        assert (await client.post("/api/kernels")).json()["name"] == "ir"


async def test_a_kernels_id_may_be_chosen_and_chosen_again_it_is_the_same_kernel(
    face: Face, client: httpx.AsyncClient
) -> None:
    answers = [await client.post("/api/kernels", json={"kernel_id": K}) for _ in range(2)]
    assert [(answer.status_code, answer.json()["id"]) for answer in answers] == [(201, K), (201, K)]
    assert answers[0].headers["Location"] == answers[1].headers["Location"]
    assert len(face.service.session_requests) == 1


async def test_a_session_of_runcode_is_a_kernel_by_both_its_ids(face: Face, client: httpx.AsyncClient) -> None:
    made = (await client.post("/sessions", json={"session_id": "chat:42"})).json()
    (kernel,) = (await client.get("/api/kernels")).json()
    assert kernel["id"] == made["kernel_id"] != "chat:42"
    for name in (kernel["id"], "chat:42", "chat%3A42"):
        assert (await client.get(f"/api/kernels/{name}")).json() == kernel
    interrupted = await client.post(f"/api/kernels/{kernel['id']}/interrupt", content=b"{}")
    assert (interrupted.status_code, interrupted.content, face.service.interrupted) == (204, b"", ["chat:42"])
    restarted = await client.post(f"/api/kernels/{kernel['id']}/restart", json={})
    assert (restarted.status_code, restarted.json()) == (200, {**kernel, "execution_state": "starting"})
    ended = await client.delete(f"/api/kernels/{kernel['id']}")
    assert (ended.status_code, ended.content) == (204, b"")
    assert (await client.get("/sessions/chat:42")).status_code == 404


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (SessionState.STARTING, "starting"),
        (SessionState.IDLE, "idle"),
        (SessionState.BUSY, "busy"),
        (SessionState.DEAD, "starting"),
    ],
)
async def test_no_kernel_is_dead_for_good(
    face: Face, client: httpx.AsyncClient, state: SessionState, shown: str
) -> None:
    await client.post("/api/kernels", json={"kernel_id": K})
    view = face.service.get_session(ANONYMOUS, SessionId(K))
    face.service.sessions[ANONYMOUS, SessionId(K)] = replace(view, state=state)
    assert (await client.get(f"/api/kernels/{K}")).json()["execution_state"] == shown


KERNEL_ROUTES = [("GET", ""), ("DELETE", ""), ("POST", "/interrupt"), ("POST", "/restart")]


@pytest.mark.parametrize(("method", "rest"), KERNEL_ROUTES)
@pytest.mark.parametrize("name", [K, "nobody", "%2e%2e", "..%2fx", "%00", "%ff", "a%20b", "x" * 300])
async def test_an_unknown_kernel_is_404(client: httpx.AsyncClient, method: str, rest: str, name: str) -> None:
    answer = await client.request(method, f"/api/kernels/{name}{rest}")
    assert (answer.status_code, answer.json()["reason"]) == (404, None)
    assert answer.json()["message"].startswith("Kernel does not exist: ")


async def test_an_unknown_kernel_is_named(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/api/kernels/{K}")).json()["message"] == f"Kernel does not exist: {K}"


# --- sessions ---------------------------------------------------------------------------------------------------------


async def test_a_session_is_opened_and_shown(client: httpx.AsyncClient) -> None:
    made = await client.post(
        "/api/sessions",
        json={"path": "d/a.ipynb", "name": "a", "type": "notebook", "kernel": {"name": "python3"}},
        headers={"Content-Type": "text/plain"},
    )
    session = made.json()
    (kernel,) = (await client.get("/api/kernels")).json()
    assert session == {
        "id": str(uuid.UUID(session["id"])),
        "path": "d/a.ipynb",
        "name": "a",
        "type": "notebook",
        "kernel": kernel,
        "notebook": {"path": "d/a.ipynb", "name": "a"},
    }
    assert (made.status_code, made.headers["Location"]) == (201, f"/api/sessions/{session['id']}")
    assert (await client.get(made.headers["Location"])).json() == session
    assert (await client.get("/api/sessions")).json() == [session]
    again = await client.post("/api/sessions", json={"path": "d/a.ipynb", "type": "x", "kernel": {"name": "nope"}})
    assert (again.status_code, again.json()) == (201, session)


async def test_a_session_of_another_type_has_no_notebook(client: httpx.AsyncClient) -> None:
    session = await opened(client, type="console")
    assert ("notebook" in session, session["name"]) == (False, None)


@pytest.mark.parametrize(
    ("notebook", "path"), [({"path": "p"}, "p"), ({"name": "n"}, "n"), ({"path": "p", "name": "n"}, "n")]
)
async def test_the_fields_of_old_clients_are_understood(
    client: httpx.AsyncClient, notebook: dict[str, str], path: str
) -> None:
    answer = await client.post("/api/sessions", json={"notebook": notebook, "kernel": {"name": "python3"}})
    assert (answer.status_code, answer.json()["path"], answer.json()["type"]) == (201, path, "notebook")
    changed = await client.patch(answer.headers["Location"], json={"notebook": {"path": "q"}})
    assert (changed.json()["path"], changed.json()["notebook"]["path"]) == ("q", "q")


async def test_two_who_open_a_path_at_once_get_one_session(face: Face, client: httpx.AsyncClient) -> None:
    face.service.may_create = asyncio.Event()
    both = asyncio.gather(opened(client), opened(client))
    while not face.service.session_requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    face.service.may_create.set()
    first, second = await both
    assert (first, len(face.service.sessions)) == (second, 1)


async def test_a_path_is_opened_on_a_kernel_that_is_there(client: httpx.AsyncClient) -> None:
    await client.post("/sessions", json={"session_id": "chat"})
    (kernel,) = (await client.get("/api/kernels")).json()
    session = await opened(client, kernel={"id": kernel["id"], "name": "nope"})
    assert session["kernel"] == kernel
    shared = await opened(client, "b", kernel={"id": "chat"})
    assert (shared["kernel"], shared["id"] != session["id"]) == (kernel, True)
    assert (await client.get("/api/sessions")).json() == [session, shared]
    assert (await opened(client, "c", kernel={"id": K}))["kernel"]["id"] == K
    assert (await opened(client, "d", kernel={"id": "", "name": ""}))["kernel"]["name"] == "python3"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "No JSON data provided"),
        (b"null", "No JSON data provided"),
        (b"{", "Invalid JSON in body of request"),
        (b"[]", "object"),
        (b'{"type": "notebook"}', "Missing field in JSON data: path"),
        (b'{"path": "a"}', "Missing field in JSON data: type"),
        (b'{"path": null, "type": "notebook"}', "path"),
        (b'{"path": 1, "type": "notebook"}', "path"),
        (b'{"path": "a", "type": 1}', "type"),
        (b'{"path": "a", "type": "t", "name": 1}', "name"),
        (b'{"path": "a", "type": "t", "kernel": "python3"}', "kernel"),
        (b'{"path": "a", "type": "t", "kernel": {"id": 1}}', "kernel.id"),
        (b'{"notebook": "a"}', "notebook"),
        (b'{"path": "' + b"x" * 4097 + b'", "type": "t"}', "path"),
        (b'{"path": "a", "type": "' + b"x" * 129 + b'"}', "type"),
        (b'{"path": "a", "type": "t", "name": "' + b"x" * 1025 + b'"}', "name"),
    ],
)
async def test_a_body_that_makes_no_sense_opens_nothing(
    face: Face, client: httpx.AsyncClient, body: bytes, message: str
) -> None:
    answer = await client.post("/api/sessions", content=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, None)
    assert message in answer.json()["message"]
    assert face.service.sessions == {}


@pytest.mark.parametrize("awkward", ["\x00", "\ud800", "", "../../etc", "x" * 4096])
async def test_any_text_is_a_path(client: httpx.AsyncClient, awkward: str) -> None:
    session = await opened(client, awkward, name=awkward[:100])
    assert (await opened(client, awkward))["id"] == session["id"]
    changes = json.dumps({"path": "b", "name": awkward[:100]})
    renamed = await client.patch(f"/api/sessions/{session['id']}", content=changes)
    assert renamed.status_code == 200
    assert (await client.get("/api/sessions")).json() == [renamed.json()]


async def test_an_unknown_kernelspec_is_501(face: Face, client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/sessions", json={"path": "a", "type": "t", "kernel": {"name": "nope"}})
    assert (answer.status_code, answer.json()) == (
        501,
        {
            "message": "The 'nope' kernel is not available. Please pick another suitable kernel instead, or install "
            "that kernel.",
            "short_message": "nope not found",
        },
    )
    assert face.service.sessions == {}
    session = await opened(client)
    changed = await client.patch(f"/api/sessions/{session['id']}", json={"kernel": {"name": "nope"}})
    assert (changed.status_code, changed.json()["short_message"]) == (501, "Error starting kernel nope")
    assert (await client.get("/api/sessions")).json() == [session]


async def test_a_session_is_renamed(client: httpx.AsyncClient) -> None:
    session = await opened(client)
    url = f"/api/sessions/{session['id']}"
    renamed = await client.patch(url, json={"id": "ignored", "path": "b", "name": "b", "type": "file", "kernel": {}})
    expected = {key: session[key] for key in ("id", "kernel")} | {"path": "b", "name": "b", "type": "file"}
    assert (renamed.status_code, renamed.json()) == (200, expected)
    assert (await client.patch(url, json={})).json() == expected
    assert (await client.patch(url, json={"name": None, "kernel": None})).json() == {**expected, "name": None}


async def test_a_session_gets_another_kernel_and_the_old_one_ends(client: httpx.AsyncClient) -> None:
    session = await opened(client)
    url = f"/api/sessions/{session['id']}"
    fresh = (await client.patch(url, json={"kernel": {"name": "python3"}})).json()
    assert (fresh["id"], fresh["path"]) == (session["id"], "a.ipynb")
    assert [kernel["id"] for kernel in (await client.get("/api/kernels")).json()] == [fresh["kernel"]["id"]]
    assert fresh["kernel"]["id"] != session["kernel"]["id"]
    await client.post("/api/kernels", json={"kernel_id": K})
    moved = (await client.patch(url, json={"kernel": {"id": K, "name": "nope"}, "path": "b"})).json()
    assert (moved["kernel"]["id"], moved["path"]) == (K, "b")
    assert [kernel["id"] for kernel in (await client.get("/api/kernels")).json()] == [K]
    assert (await client.patch(url, json={"kernel": {"id": K}})).json() == moved


@pytest.mark.parametrize("unknown", ["nobody", "11111111-2222-3333-4444-666666666666", "a/b", "\u4e09", "x" * 300])
async def test_a_path_is_opened_on_a_new_kernel_where_the_id_is_no_kernels(
    client: httpx.AsyncClient, unknown: str
) -> None:
    session = await opened(client, kernel={"id": unknown, "name": "python3"})
    assert [session["kernel"]] == (await client.get("/api/kernels")).json()
    assert session["kernel"]["name"] == "python3"
    for name in (None, "nope"):
        answer = await client.post(
            "/api/sessions", json={"path": "b", "type": "t", "kernel": {"id": unknown + "-", "name": name}}
        )
        assert answer.status_code == (201 if name is None else 501)
        await client.delete(f"/api/sessions/{answer.json().get('id')}")
    assert (await client.get("/api/sessions")).json() == [session]


async def test_one_of_two_sessions_leaves_the_kernel_to_the_other(client: httpx.AsyncClient) -> None:
    first = await opened(client)
    second = await opened(client, "b", kernel={"id": first["kernel"]["id"]})
    third = await opened(client, "c")
    moved = (await client.patch(f"/api/sessions/{third['id']}", json={"kernel": {"id": first["kernel"]["id"]}})).json()
    assert moved == {**third, "kernel": first["kernel"]}
    assert (await client.get("/api/kernels")).json() == [first["kernel"]]
    away = (await client.patch(f"/api/sessions/{second['id']}", json={"kernel": {"name": "python3"}})).json()
    assert away["kernel"]["id"] != first["kernel"]["id"]
    for session, kernels in ((third, [first["kernel"], away["kernel"]]), (first, [away["kernel"]]), (second, [])):
        assert (await client.delete(f"/api/sessions/{session['id']}")).status_code == 204
        assert (await client.get(f"/api/sessions/{session['id']}")).status_code == 404
        assert (await client.get("/api/kernels")).json() == kernels


async def test_both_sessions_go_with_their_kernel(client: httpx.AsyncClient) -> None:
    first = await opened(client)
    second = await opened(client, "b", kernel={"id": first["kernel"]["id"]})
    await client.delete(f"/api/kernels/{first['kernel']['id']}")
    assert (await client.get("/api/sessions")).json() == []
    for session in (first, second):
        assert (await client.delete(f"/api/sessions/{session['id']}")).status_code == 404


async def test_a_session_gets_no_kernel_that_is_unknown(client: httpx.AsyncClient) -> None:
    session, other = await opened(client), await opened(client, "b")
    url = f"/api/sessions/{session['id']}"
    unknown = await client.patch(url, json={"kernel": {"id": K}})
    assert (unknown.status_code, unknown.json()["message"]) == (400, f"No such kernel: {K}")
    for body in (b"", b"null", b"[]", b'{"path": null}', b'{"path": 1}', b'{"kernel": 1}'):
        assert (await client.patch(url, content=body)).status_code == 400
    assert (await client.get("/api/sessions")).json() == [session, other]


async def test_a_session_and_its_kernel_end_together(client: httpx.AsyncClient) -> None:
    first, second = await opened(client), await opened(client, "b")
    ended = await client.delete(f"/api/sessions/{first['id']}")
    assert (ended.status_code, ended.content) == (204, b"")
    assert (await client.delete(f"/api/kernels/{second['kernel']['id']}")).status_code == 204
    assert (await client.get("/api/kernels")).json() == (await client.get("/api/sessions")).json() == []


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("name", [K, "nobody", "%2e%2e", "%00", "%ff"])
async def test_an_unknown_session_is_404(client: httpx.AsyncClient, method: str, name: str) -> None:
    answer = await client.request(method, f"/api/sessions/{name}", content=b"{}")
    assert (answer.status_code, answer.json()["reason"]) == (404, None)
    assert answer.json()["message"].startswith("Session not found: session_id='")


async def test_what_another_tenant_has_does_not_exist() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        alice, bob = {"Authorization": "token alice"}, {"Authorization": "token bob"}
        asked = {"path": "a", "type": "notebook", "kernel": {"id": K}}
        session = (await client.post("/api/sessions", json=asked, headers=alice)).json()
        for method, rest in KERNEL_ROUTES:
            assert (await client.request(method, f"/api/kernels/{K}{rest}", headers=bob)).status_code == 404
        for method in ("GET", "PATCH", "DELETE"):
            path = f"/api/sessions/{session['id']}"
            assert (await client.request(method, path, json={"path": "x"}, headers=bob)).status_code == 404
        for path in ("/api/kernels", "/api/sessions"):
            assert (await client.get(path, headers=bob)).json() == []
        own = (await client.post("/api/sessions", json=asked, headers=bob)).json()
        assert own["id"] != session["id"]
        assert (await client.get("/api/sessions", headers=alice)).json() == [session]


async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    allowed = {
        "/api/kernels": "GET, HEAD, POST, OPTIONS",
        "/api/kernels/x": "GET, HEAD, DELETE, OPTIONS",
        "/api/kernels/x/interrupt": "POST, OPTIONS",
        "/api/kernels/x/restart": "POST, OPTIONS",
        "/api/sessions": "GET, HEAD, POST, OPTIONS",
        "/api/sessions/x": "GET, HEAD, PATCH, DELETE, OPTIONS",
    }
    for path, allow in allowed.items():
        answer = await client.put(path)
        assert (answer.status_code, answer.headers["Allow"], answer.json()["reason"]) == (405, allow, None)
