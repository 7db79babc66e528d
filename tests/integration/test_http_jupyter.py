"""Jupyter's REST API, over a real server: what a client asks before it uses it, tokens, errors, and kernelspecs."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog
from http_face import Face, serving

from gateway.auth import Token
from gateway.host.logs import configure_logs
from gateway.http.jupyter.kernelspecs import python_logos
from sessions.errors import Unavailable

TOKENS = tuple(Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in ("alice", "bob"))
LANGUAGES = {"python": "python3", "py": "python3", "bash": "bash"}
ROUTES = [
    ("GET", "/api/status"),
    ("GET", "/api/me"),
    ("GET", "/api/kernelspecs"),
    ("GET", "/api/kernelspecs/python3"),
    ("GET", "/kernelspecs/python3/logo-64x64.png"),
    ("GET", "/api/kernels"),
    ("POST", "/api/kernels"),
    ("GET", "/api/kernels/a-b-c-d-e"),
    ("DELETE", "/api/kernels/a-b-c-d-e"),
    ("POST", "/api/kernels/a-b-c-d-e/interrupt"),
    ("POST", "/api/kernels/a-b-c-d-e/restart"),
    ("GET", "/api/sessions"),
    ("POST", "/api/sessions"),
    ("GET", "/api/sessions/j"),
    ("PATCH", "/api/sessions/j"),
    ("DELETE", "/api/sessions/j"),
]


# --- before it is used ------------------------------------------------------------------------------------------------


async def test_the_version_is_told_to_everybody() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.get("/api")
        assert (answer.status_code, list(answer.json())) == (200, ["version"])
        assert answer.json()["version"].split(".")[0] == "2"


async def test_the_status_counts_what_the_tenant_has() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        before = (await client.get("/api/status?token=bob")).json()
        assert before == {
            "started": before["started"],
            "last_activity": before["started"],
            "kernels": 0,
            "connections": 0,
        }
        await client.post("/api/kernels?token=alice")
        assert (await client.get("/api/status?token=alice")).json()["kernels"] == 1
        assert (await client.get("/api/status?token=bob")).json() == before


async def test_a_client_is_told_who_it_is_and_what_it_may_do() -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        asked = json.dumps({"kernels": ["read", "write", "execute", "fly"], "contents": ["read"]})
        answer = await client.get("/api/me", params={"token": "alice", "permissions": asked})
        assert answer.json() == {
            "identity": {
                "username": "alice",
                "name": "alice",
                "display_name": "alice",
                "initials": "A",
                "avatar_url": None,
                "color": None,
            },
            "permissions": {"kernels": ["read", "write", "execute"], "contents": [], "updatable_fields": []},
        }
        assert (await client.get("/api/me?token=alice")).json()["permissions"] == {"updatable_fields": []}


@pytest.mark.parametrize("asked", ["{", "[]", '{"kernels": "read"}', '{"kernels": [1]}', "[" * 5000, "%ff"])
async def test_permissions_that_make_no_sense_are_400(client: httpx.AsyncClient, asked: str) -> None:
    answer = await client.get(f"/api/me?permissions={asked}")
    assert (answer.status_code, answer.json()["reason"]) == (400, None)


# --- kernelspecs ------------------------------------------------------------------------------------------------------


async def test_there_is_a_kernelspec_for_each_kernel_and_its_logos_can_be_had() -> None:
    async with serving(languages=LANGUAGES) as face, httpx.AsyncClient(base_url=face.url) as client:
        specs = (await client.get("/api/kernelspecs")).json()
        assert (specs["default"], list(specs["kernelspecs"])) == ("python3", ["python3", "bash"])
        python, bash = specs["kernelspecs"].values()
        assert python["spec"]["argv"] == ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        assert (python["spec"]["language"], python["spec"]["display_name"]) == ("python", "Python 3 (ipykernel)")
        assert (bash["spec"]["language"], bash["resources"]) == ("bash", {})
        for name, spec in specs["kernelspecs"].items():
            assert spec["name"] == name
            assert (await client.get(f"/api/kernelspecs/{name}")).json() == spec
        types = {}
        for name, path in python["resources"].items():
            logo = await client.get(path)
            assert logo.content == python_logos()[path.rpartition("/")[2]]
            types[name] = logo.headers["Content-Type"]
            head = await client.head(path)
            assert (head.content, head.headers["Content-Length"]) == (b"", str(len(logo.content)))
        assert types == {"logo-32x32": "image/png", "logo-64x64": "image/png", "logo-svg": "image/svg+xml"}


async def test_paths_begin_with_that_of_the_public_url() -> None:
    async with serving(public_url="https://host.example/box") as face, httpx.AsyncClient(base_url=face.url) as client:
        spec = (await client.get("/api/kernelspecs/python3")).json()
        assert spec["resources"]["logo-svg"] == "/box/kernelspecs/python3/logo-svg.svg"
        made = await client.post("/api/kernels")
        assert made.headers["Location"] == f"/box/api/kernels/{made.json()['id']}"


@pytest.mark.parametrize(
    "path",
    [
        "/api/kernelspecs/nope",
        "/api/kernelspecs/python",
        "/api/kernelspecs/%2e%2e",
        "/api/kernelspecs/%ff",
        "/kernelspecs/python3/kernel.json",
        "/kernelspecs/python3/..%2f..%2f__init__.py",
        "/kernelspecs/python3/%2e%2e/resources/logo-svg.svg",
        "/kernelspecs/python3/..%2fresources%2flogo-svg.svg",
        "/kernelspecs/python3/%2fetc%2fpasswd",
        "/kernelspecs/python3/logo-svg.svg%00",
        "/kernelspecs/python3/logo-svg.svg/",
        "/kernelspecs/python3/",
        "/kernelspecs/nope/logo-svg.svg",
        "/kernelspecs/",
    ],
)
async def test_what_is_no_kernelspec_or_logo_is_404(face: Face, path: str) -> None:
    async with httpx.AsyncClient() as client:
        request = client.build_request("GET", face.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = await client.send(request)
    assert (answer.status_code, sorted(answer.json())) == (404, ["message", "reason"])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/contents", "/api/contents/a.ipynb", "/api/terminals", "/api/", "/api/kernels/"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "PATCH"])
async def test_what_there_is_not_is_404_in_jupyters_shape(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()) == (404, {"message": "Not Found", "reason": None})


@pytest.mark.parametrize("path", ["/hub/api", "/hub/api/x", "/hub", "/tree", "/tree/a", "/lab", "/login"])
async def test_there_is_no_hub_and_no_page(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_errors_have_jupyters_shape(method: str, path: str) -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        without = await client.request(method, path)
        assert (without.status_code, without.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (sorted(without.json()), without.json()["reason"]) == (["message", "reason"], "unauthorized")
        brew = await client.request("BREW", path)
        assert (brew.status_code, brew.json()["reason"], method in brew.headers["Allow"]) == (405, None, True)
        foreign = await client.request(method, path, headers={"Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["reason"]) == (403, "forbidden")
        caused = await client.request(method, f"{path}?token=alice", headers={"Sec-Fetch-Site": "cross-site"})
        assert caused.status_code == 403
        large = await client.request(method, f"{path}?token=alice", content=b"x" * 10_001)
        assert (large.status_code, large.json()["reason"]) == (413, "too_large")
        assert face.service.sessions == {}


async def test_when_to_come_back_is_still_told(face: Face, client: httpx.AsyncClient) -> None:
    for _ in range(16):
        await client.post("/api/kernels")
    full = await client.post("/api/kernels")
    assert (full.status_code, full.headers["Retry-After"]) == (429, "30")
    assert full.json()["reason"] == "too_many_requests"

    async def refuse(*_: object) -> None:
        raise Unavailable

    face.service.restart_session = refuse  # type: ignore[method-assign,assignment]
    kernel_id = (await client.get("/api/kernels")).json()[0]["id"]
    away = await client.post(f"/api/kernels/{kernel_id}/restart")
    assert (away.status_code, away.headers["Retry-After"], away.json()["reason"]) == (503, "2", "unavailable")


async def test_a_page_of_an_allowed_origin_may_use_all_of_it() -> None:
    origin = "https://lab.example.org"
    async with serving(allowed_origins=(origin,)) as face, httpx.AsyncClient(base_url=face.url) as client:
        asked = {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
        preflight = await client.options("/api/kernels/a-b-c-d-e", headers=asked)
        assert (preflight.status_code, preflight.headers["Access-Control-Allow-Origin"]) == (204, origin)
        assert "DELETE" in preflight.headers["Access-Control-Allow-Methods"]
        assert {"Authorization", "Content-Type"} <= set(preflight.headers["Access-Control-Allow-Headers"].split(", "))
        sent = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        assert (await client.post("/api/kernels", headers=sent)).headers["Access-Control-Allow-Origin"] == origin


# --- tokens -----------------------------------------------------------------------------------------------------------

EMPTY = ["", "token", "Bearer"]


@pytest.mark.parametrize(
    ("header", "query", "status"),
    [
        ("token alice", "", 200),
        ("Bearer alice", "", 200),
        ("token wrong", "", 401),
        ("Basic alice", "", 401),
        (None, "?token=alice", 200),
        (None, "?x=1&token=alice", 200),
        (None, "?token=%61lice", 200),
        (None, "?token=", 401),
        (None, "?token=wrong", 401),
        (None, "?token=%ff%00", 401),
        (None, "?token=" + "a" * 2000, 401),
        ("Bearer of-the-proxy", "?token=alice", 200),
        ("token alice", "?token=wrong", 401),
        ("token alice", "?token=", 200),
        *((header, "", 401) for header in EMPTY),
        *((header, "?token=alice", 200) for header in EMPTY),
    ],
)
async def test_a_token_comes_in_the_header_or_the_query(header: str | None, query: str, status: int) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        for method, path in ROUTES[:6]:
            assert (await client.request(method, path + query, headers=headers)).status_code == status


@pytest.mark.parametrize("header", EMPTY)
async def test_an_empty_token_is_none_where_none_is_needed(client: httpx.AsyncClient, header: str) -> None:
    answer = await client.get("/api/me", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["identity"]["username"]) == (200, "anonymous")


@pytest.mark.parametrize("header", [b"token ", b"bearer \t", b"  "])
async def test_spaces_are_no_token(face: Face, header: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"GET /api/kernels HTTP/1.1\r\nHost: localhost\r\nAuthorization: %b\r\n\r\n" % header)
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()


@pytest.mark.parametrize("path", ["/runs", "/sessions", "/sessions/s", "/runcode?code=1"])
async def test_elsewhere_the_query_names_nobody(path: str) -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        separator = "&" if "?" in path else "?"
        assert (await client.get(f"{path}{separator}token=alice")).status_code == 401


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """All that a gateway logs, in earnest."""
    root = logging.getLogger()
    before, stream = (root.handlers, root.level), io.StringIO()
    structlog_before = structlog.get_config()
    configure_logs(stream, level=logging.DEBUG)
    yield stream
    root.handlers, level = before
    root.setLevel(level)
    structlog.configure(**structlog_before)


async def test_a_token_is_not_written_down(written: io.StringIO) -> None:
    tokens = (Token(sha256=hashlib.sha256(b"s3cret").hexdigest(), tenant="alice"),)
    async with serving(tokens=tokens) as face, httpx.AsyncClient(base_url=face.url) as client:
        kernel_id = (await client.post("/api/kernels?token=s3cret")).json()["id"]
        face.service.create_session = None  # type: ignore[assignment,method-assign]
        answers = [
            await client.post(f"/api/kernels/{kernel_id}/restart?token=s3cret"),
            await client.post("/api/kernels?token=s3cret"),
            await client.get("/api/kernels/x/y?token=s3cret"),
            await client.get("/api/me?token=s3cret-wrong"),
            await client.get("/api/me?token=s3cret&permissions=%ff"),
        ]
        assert [answer.status_code for answer in answers] == [200, 500, 404, 401, 400]
        assert "s3cret" not in "".join(f"{answer.text} {answer.headers}" for answer in answers)
    lines = [line for line in written.getvalue().splitlines() if '"logger": "http' not in line]
    assert sum('"route": "/api/kernels"' in line for line in lines) == 3  # two requests, and a mistake
    assert "s3cret" not in "".join(lines)
