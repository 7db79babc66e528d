"""`/sessions`, over a real server: making, showing, renewing, restarting and ending them."""

from __future__ import annotations

import hashlib

import httpx
import pytest
from http_face import Face, serving

from gateway.auth import Token
from sessions.errors import InvalidRequest, TooManyRequests

TOKENS = tuple(Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in ("alice", "bob"))


async def test_a_session_is_made_and_shown(client: httpx.AsyncClient) -> None:
    made = await client.post("/sessions", json={"session_id": "chat:42", "idle_timeout": 60, "max_lifetime": 120.5})
    view = {
        "session_id": "chat:42",
        "kernel_id": made.json()["kernel_id"],
        "language": "python",
        "state": "idle",
        "created_at": "2026-01-01T00:00:00.000000Z",
        "last_used_at": "2026-01-01T00:00:00.000000Z",
        "expires_at": "2026-01-01T00:01:00.000000Z",
        "idle_timeout": 60.0,
        "max_lifetime": 120.5,
        "runs": 0,
        "usage": {"wall_ms": 0.0, "cpu_ms": 0.0, "memory_peak_bytes": 0},
    }
    assert (made.status_code, made.json()) == (201, view)
    assert (await client.get(made.headers["Location"])).json() == view
    assert (await client.get("/sessions")).json() == {"sessions": [view]}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"session_id": null, "variables": null, "idle_timeout": null}'])
async def test_a_session_needs_no_field(face: Face, client: httpx.AsyncClient, body: bytes) -> None:
    made = await client.post("/sessions", content=body)
    assert made.status_code == 201, made.text
    assert made.json()["session_id"]
    asked = face.service.session_requests[0]
    assert (asked.session_id, asked.language, asked.variables) == (None, "python", {})
    assert (asked.idle_timeout_s, asked.max_lifetime_s) == (600, 3600)


async def test_variables_go_to_the_service_as_python_names_them(face: Face, client: httpx.AsyncClient) -> None:
    await client.post("/sessions", json={"variables": {"\ufb01le": [1, {"a": None}]}, "language": "Python"})
    assert face.service.session_requests[0].variables == {"file": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        (b"[]", "invalid_json", "object"),
        (b"{", "invalid_json", "JSON"),
        (b'{"sesion_id": "a"}', "invalid_request", 'did you mean "session_id"?'),
        (b'{"session_id": ""}', "invalid_request", '"session_id"'),
        (b'{"session_id": "a/b"}', "invalid_request", '"session_id"'),
        (b'{"session_id": 1}', "invalid_request", '"session_id"'),
        (b'{"language": "cobol"}', "unsupported_language", "cobol"),
        (b'{"variables": {"1": 1}}', "invalid_request", '"variables"'),
        (b'{"idle_timeout": 0}', "invalid_request", '"idle_timeout"'),
        (b'{"idle_timeout": -1}', "invalid_request", '"idle_timeout"'),
        (b'{"idle_timeout": true}', "invalid_request", '"idle_timeout"'),
        (b'{"idle_timeout": "5"}', "invalid_request", '"idle_timeout"'),
        (b'{"idle_timeout": 1e999}', "invalid_request", '"idle_timeout"'),
        (b'{"idle_timeout": NaN}', "invalid_json", "NaN"),
        (b'{"idle_timeout": 1' + b"0" * 400 + b"}", "invalid_request", ""),
        (b'{"idle_timeout": 3601}', "invalid_request", "3600"),
        (b'{"max_lifetime": 3601}', "invalid_request", '"max_lifetime"'),
    ],
)
async def test_bad_bodies_make_no_session(
    face: Face, client: httpx.AsyncClient, body: bytes, code: str, word: str
) -> None:
    answer = await client.post("/sessions", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert word in answer.json()["error"]
    assert face.service.session_requests == []


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_only_json_is_read(client: httpx.AsyncClient, media_type: str) -> None:
    answer = await client.post("/sessions", content=b"session_id=a", headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_a_second_session_of_one_id_is_409(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/sessions", json={"session_id": "s"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 409]
    assert answers[1].json()["code"] == "conflict"


async def test_one_session_too_many_is_429(face: Face, client: httpx.AsyncClient) -> None:
    async def refuse(*_: object) -> None:
        raise TooManyRequests("You have 16 sessions: end one.", retry_after_s=30)

    face.service.create_session = refuse  # type: ignore[method-assign,assignment]
    answer = await client.post("/sessions")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "30")


async def test_a_session_is_renewed_and_its_time_outs_changed(face: Face, client: httpx.AsyncClient) -> None:
    await client.post("/sessions", json={"session_id": "s"})
    renewed = await client.patch("/sessions/s", json={})
    assert (renewed.status_code, renewed.json()["expires_at"]) == (200, "2026-01-01T00:10:01.000000Z")
    changed = await client.patch("/sessions/s", json={"idle_timeout": 5, "max_lifetime": None})
    assert changed.json()["idle_timeout"] == 5.0
    assert face.service.renewals == [(None, None), (5.0, None)]
    for body in ({"idle_timeout": 3601}, {"idle_timeout": "x"}, {"session_id": "t"}, {"state": "busy"}):
        assert (await client.patch("/sessions/s", json=body)).status_code == 400, body
    assert len(face.service.renewals) == 2


async def test_what_the_service_refuses_of_a_renewal_is_400(face: Face, client: httpx.AsyncClient) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise InvalidRequest("It would end at once.")

    face.service.renew_session = refuse  # type: ignore[method-assign,assignment]
    assert (await client.patch("/sessions/s", json={})).status_code == 400


async def test_a_session_is_interrupted_restarted_and_ended(face: Face, client: httpx.AsyncClient) -> None:
    await client.post("/sessions", json={"session_id": "s"})
    interrupted = await client.post("/sessions/s/interrupt")
    assert (interrupted.status_code, interrupted.json()) == (202, {"session_id": "s"})
    assert face.service.interrupted == ["s"]
    restarted = await client.post("/sessions/s/restart", content=b"ignored")
    assert (restarted.status_code, restarted.json()["state"], restarted.json()["session_lost"]) == (
        200,
        "starting",
        False,
    )
    ended = await client.delete("/sessions/s")
    assert (ended.status_code, ended.content) == (204, b"")
    assert "Content-Type" not in ended.headers
    assert (await client.get("/sessions/s")).status_code == 404


ROUTES = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/interrupt"),
    ("POST", "/restart"),
    ("GET", "/notebook"),
    ("GET", "/files"),
    ("GET", "/files/a"),
    ("PUT", "/files/a"),
    ("DELETE", "/files/a"),
]


@pytest.mark.parametrize(("method", "rest"), ROUTES)
@pytest.mark.parametrize("name", ["nobody", "%2e%2e", "..%2fx", "%00", "%ff", "a%20b", "x" * 129])
async def test_what_names_no_session_is_404(client: httpx.AsyncClient, method: str, rest: str, name: str) -> None:
    answer = await client.request(method, f"/sessions/{name}{rest}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(("method", "rest"), ROUTES)
async def test_another_tenants_session_does_not_exist(method: str, rest: str) -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        alice, bob = {"Authorization": "Bearer alice"}, {"Authorization": "Bearer bob"}
        await client.post("/sessions", json={"session_id": "s"}, headers=alice)
        face.service.files.content["a"] = b"secret"
        path = f"/sessions/s{rest}"
        assert (await client.request(method, path, headers=bob)).status_code == 404
        assert (await client.request(method, path)).status_code == 401
        assert (await client.get("/sessions", headers=bob)).json() == {"sessions": []}
        assert face.service.files.content == {"a": b"secret"}
        assert (await client.request(method, path, headers=alice)).is_success


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
@pytest.mark.parametrize(("method", "rest"), ROUTES)
async def test_another_sites_page_can_do_nothing(
    face: Face, client: httpx.AsyncClient, headers: dict[str, str], method: str, rest: str
) -> None:
    await client.post("/sessions", json={"session_id": "s"})
    answer = await client.request(method, f"/sessions/s{rest}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert face.service.files.content == {}


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/sessions", "GET, HEAD, POST, OPTIONS"),
        ("/sessions/s", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("/sessions/s/interrupt", "POST, OPTIONS"),
        ("/sessions/s/restart", "POST, OPTIONS"),
        ("/sessions/s/notebook", "GET, HEAD, OPTIONS"),
        ("/sessions/s/files", "GET, HEAD, OPTIONS"),
        ("/sessions/s/files/a", "GET, HEAD, PUT, DELETE, OPTIONS"),
    ],
)
async def test_other_methods_are_405(client: httpx.AsyncClient, path: str, allow: str) -> None:
    answer = await client.request("BREW", path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allow)
    assert (await client.options(path)).headers["Allow"] == allow


async def test_a_preflight_allows_what_these_routes_take() -> None:
    origin = "https://chat.example.org"
    async with serving(allowed_origins=(origin,)) as face, httpx.AsyncClient(base_url=face.url) as client:
        asked = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
        answer = await client.options("/sessions/s", headers=asked)
        assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
        assert {"Last-Event-ID", "Idempotency-Key"} <= set(answer.headers["Access-Control-Allow-Headers"].split(", "))
        made = await client.post("/sessions", headers={"Origin": origin})
        assert "Location" in made.headers["Access-Control-Expose-Headers"]
