"""Tokens, host names, origins, routes and headers, over a real server."""

from __future__ import annotations

import hashlib

import httpx
import pytest
from http_face import serving, url_name
from structlog.testing import capture_logs

from gateway.auth import Token
from sessions.model import ArtifactKind

CHAT = "https://chat.example.org"
TOKENS = (Token(sha256=hashlib.sha256(b"alpha").hexdigest(), tenant="alice"),)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_another_sites_page_cannot_run_code(method: str, headers: dict[str, str]) -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        given = {"params": {"code": "1"}} if method == "GET" else {"data": {"code": "1"}}
        answer = await client.request(method, "/runcode", headers=headers, **given)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert face.service.requests == []


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}])
async def test_the_address_bar_and_our_own_pages_can(headers: dict[str, str]) -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.get("/runcode", params={"code": "1"}, headers=headers)
        own = await client.post("/runcode", json={"code": "1"}, headers={**headers, "Origin": face.url})
        assert (answer.status_code, own.status_code) == (200, 200)


async def test_an_allowed_origin_gets_cors_and_another_none() -> None:
    async with serving(allowed_origins=(CHAT,)) as face, httpx.AsyncClient(base_url=face.url) as client:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        preflight = await client.options("/runcode", headers={"Origin": CHAT, **asked})
        assert preflight.status_code == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == CHAT
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        assert "Content-Type" in preflight.headers["Access-Control-Allow-Headers"]

        used = {"Origin": CHAT, "Sec-Fetch-Site": "cross-site"}
        answer = await client.post("/runcode", json={"code": "1"}, headers=used)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, CHAT)
        refused = await client.post("/runcode", json={"coed": "1"}, headers=used)
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (400, CHAT)

        foreign = await client.options("/runcode", headers={"Origin": "https://evil.example", **asked})
        assert foreign.status_code == 403
        assert "Access-Control-Allow-Origin" not in foreign.headers


async def test_images_stay_embeddable_in_other_sites_pages() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        ref = face.service.add("a.png", b"\x89PNG\r\n\x1a\n", ArtifactKind.IMAGE)
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        answer = await client.get(f"/image/{url_name(ref)}", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        rebound = await client.get(f"/image/{url_name(ref)}", headers={"Host": "evil.example"})
        assert rebound.status_code == 403


async def test_a_token_is_asked_for_and_gives_the_tenant() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        missing = await client.post("/runcode", json={"code": "1"})
        assert (missing.status_code, missing.json()["code"]) == (401, "unauthorized")
        assert missing.headers["WWW-Authenticate"] == "Bearer"
        for wrong in (b"Bearer beta", b"Bearer \xff\xfe", b"Basic YTpi", b"Bearer " + b"a" * 20_000, b"Bearer"):
            refused = await client.post("/runcode", json={"code": "1"}, headers={"Authorization": wrong})
            assert refused.status_code == 401, wrong[:20]
        for scheme in ("Bearer", "token"):
            answer = await client.post("/runcode", json={"code": "1"}, headers={"Authorization": f"{scheme} alpha"})
            assert answer.status_code == 200
        assert [request.tenant for request in face.service.requests] == ["alice"] * 2


async def test_a_large_body_with_a_wrong_token_still_gets_its_answer() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.post("/runcode", content=b" " * 70_000)
        assert answer.status_code == 401


async def test_probes_and_pictures_need_no_token() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        ref = face.service.add("a.png", b"\x89PNG\r\n\x1a\n", ArtifactKind.IMAGE)
        for path in ("/healthz", "/readyz", "/", f"/image/{url_name(ref)}"):
            assert (await client.get(path)).status_code == 200, path


async def test_readiness_tells_its_reasons() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready", "engine": "memory", "warm": 2}
        face.service.state.warnings = ("In sandboxes the CPU limit is not applied.",)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["warnings"]) == (200, list(face.service.state.warnings))
        face.service.state.ready = False
        face.service.state.reasons = ("The first kernel is still starting.", "The database does not answer.")
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert answer.json()["code"] == "unavailable"
        assert answer.json()["reasons"] == list(face.service.state.reasons)
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nowhere", 404, None),
        ("POST", "/nowhere", 404, None),
        ("GET", "/runcode/", 404, None),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, None),
        ("GET", "//evil.example/", 404, None),
        ("PUT", "/runcode", 405, "GET, POST, OPTIONS"),
        ("HEAD", "/runcode", 405, "GET, POST, OPTIONS"),
        ("DELETE", "/readyz", 405, "GET, HEAD, OPTIONS"),
        ("BREW", "/runcode", 405, "GET, POST, OPTIONS"),
        ("BREW", "/nowhere", 405, None),
    ],
)
async def test_unknown_routes_and_methods(method: str, path: str, status: int, allow: str | None) -> None:
    async with serving() as face, httpx.AsyncClient() as client:
        answer = await client.request(method, httpx.URL(face.url + path))
        assert answer.status_code == status
        assert allow is None or answer.headers["Allow"] == allow
        if method != "HEAD":
            assert answer.json().keys() == {"error", "code", "request_id"}
        assert face.service.requests == []


@pytest.mark.parametrize(
    ("given", "is_kept"), [("abc-123.X:y_z", True), ("", False), ("a b", False), ("x" * 129, False), ("é", False)]
)
async def test_a_sane_request_id_of_the_client_is_kept(given: str, is_kept: bool) -> None:  # noqa: FBT001 - a table
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        for path in ("/healthz", "/nowhere", "/runcode"):
            answer = await client.get(path, headers={"X-Request-Id": given.encode()})
            assert answer.headers["X-Request-Id"]
            assert (answer.headers["X-Request-Id"] == given) is is_kept


async def test_the_access_log_has_one_line_per_request_and_no_code_or_token() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        with capture_logs() as logs:
            await client.get("/runcode", params={"code": "very_secret()"}, headers={"Authorization": "Bearer alpha"})
            await client.get("/runcode?coed=very_secret()", headers={"Authorization": "Bearer alpha"})
            await client.get("/very_secret")
        lines = [(line["route"], line["status"], line["tenant"]) for line in logs]
        assert lines == [("/runcode", 200, "alice"), ("/runcode", 400, "alice"), ("unknown", 404, "anonymous")]
        assert all(line["request_id"] and line["ms"] >= 0 for line in logs)
        assert "very_secret" not in repr(logs)
        assert "alpha" not in repr(logs)


async def test_public_url_is_where_image_urls_start() -> None:
    async with serving(public_url="https://cells.example.org/base") as face, httpx.AsyncClient() as client:
        ref = face.service.add("a.png", b"", ArtifactKind.IMAGE)
        face.service.next_result = {"images": {"a.png": ref}}
        headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Real-Ip": "1.2.3.4"}
        answer = await client.post(f"{face.url}/runcode", json={"code": "1"}, headers=headers)
        assert answer.json()["images"]["a.png"] == f"https://cells.example.org/base/image/{url_name(ref)}"


async def test_forwarded_headers_are_not_believed() -> None:
    async with serving() as face, httpx.AsyncClient() as client:
        ref = face.service.add("a.png", b"", ArtifactKind.IMAGE)
        face.service.next_result = {"images": {"a.png": ref}}
        headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Scheme": "https"}
        answer = await client.post(f"{face.url}/runcode", json={"code": "1"}, headers=headers)
        assert answer.json()["images"]["a.png"] == f"{face.url}/image/{url_name(ref)}"


async def test_probes_that_find_all_well_leave_no_line_in_the_log() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        with capture_logs() as logs:
            for path in ("/healthz", "/readyz", "/"):
                await client.get(path)
            face.service.state.ready = False
            await client.get("/readyz")
        lines = [(line["route"], line["status"]) for line in logs if line["log_level"] == "info"]
        assert lines == [("/", 200), ("/readyz", 503)]
