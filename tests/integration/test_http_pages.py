"""The playground at `/`: who gets it, what a browser lets it do, and the files that it consists of."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import httpx
import pytest
from http_face import serving

from gateway.http.pages.accept import prefers_page
from gateway.http.pages.static_files import static_files

NAVIGATION = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
STATIC = Path(__file__).parents[2] / "gateway" / "http" / "pages" / "static"
TEXT_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (NAVIGATION, True),
        ("text/html", True),
        ("TEXT/HTML ; q=0.5", True),
        ("text/html, application/json", True),
        ("application/json;q=0.9, text/html", True),
        ("application/json, text/html", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0", False),
        ("text/html;q=lots", False),
        ("text/*", False),
        ("*/*", False),
        ("application/json", False),
        ("", False),
        (",;,q=1", False),
    ],
)
async def test_browsers_get_the_page_and_programs_the_list(accept: str, is_page: bool) -> None:  # noqa: FBT001 - a table
    assert prefers_page(accept) is is_page
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.get("/", headers={"Accept": accept})
        head = await client.head("/", headers={"Accept": accept})
        assert answer.headers["Content-Type"].startswith("text/html" if is_page else "application/json")
        assert (head.headers["Content-Type"], head.content) == (answer.headers["Content-Type"], b"")
        assert {name.strip() for name in answer.headers["Vary"].split(",")} == {"Accept", "Origin"}
        if not is_page:
            assert answer.json().keys() == {"name", "routes"}


async def test_a_program_that_says_nothing_gets_the_list() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        del client.headers["Accept"]
        assert (await client.get("/")).json()["name"] == "cellblock"


async def test_the_page_may_use_nothing_but_its_own_files_and_its_own_gateway() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url, headers={"Accept": NAVIGATION}) as client:
        first, second = await client.get("/"), await client.get("/")
    policy = dict(part.split(" ", 1) for part in first.headers["Content-Security-Policy"].split("; "))
    nonce = re.fullmatch(r"'self' 'nonce-([\w-]{22})'", policy.pop("style-src"))
    assert nonce is not None
    assert nonce[1] not in second.headers["Content-Security-Policy"]
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data: blob:",
        "frame-src": "'none'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "frame",
    }
    assert first.headers["Cache-Control"] == "no-store"
    assert first.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert re.findall(r'nonce="([^"]*)"', first.text) == [nonce[1]]
    assert re.findall(r"<script\b[^>]*>(.*?)</script>", first.text, re.DOTALL) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|{{", first.text)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', first.text)
    assert not [address for address in addresses if re.match(r"\w+:|/", address)]  # it may be below a proxy's path


async def test_static_files_are_kept_for_ever_under_their_version() -> None:
    static = static_files()
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        for path in sorted(static.files):
            answer = await client.get(f"/static/{static.version}/{path}")
            assert answer.status_code == 200, path
            assert answer.content == (STATIC / path).read_bytes()
            assert answer.headers["Content-Type"].partition(";")[0] == TEXT_TYPES[Path(path).suffix]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            headers = {"If-None-Match": answer.headers["ETag"]}
            again = await client.get(f"/static/{static.version}/{path}", headers=headers)
            assert (again.status_code, again.content) == (304, b"")
    assert {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.js")} <= static.files.keys()


@pytest.mark.parametrize(
    "path",
    [
        "{version}/../static_files.py",
        "{version}/%2e%2e/static_files.py",
        "{version}/..%2fstatic_files.py",
        "{version}//etc/passwd",
        "{version}/main.js/",
        "{version}/%6dain.js",
        "{version}/",
        "{version}",
        "0123456789abcdef/main.js",
        "/main.js",
        "",
    ],
)
async def test_nothing_else_is_served_as_a_static_file(path: str) -> None:
    async with serving() as face:
        address = f"/static/{path.format(version=static_files().version)}"
        async with httpx.AsyncClient() as client:
            request = client.build_request("GET", face.url)
            request.url = request.url.copy_with(raw_path=address.encode())
            answer = await client.send(request)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "Cache-Control" not in answer.headers or answer.headers["Cache-Control"] == "no-store"


async def test_a_page_of_another_site_cannot_read_them() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        address = f"/static/{static_files().version}/main.js"
        assert (await client.get(address, headers={"Origin": "https://evil.example"})).status_code == 403
        assert (await client.get(address)).headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_editor_is_the_one_that_was_built_from_the_pinned_versions() -> None:
    """scripts/codemirror/build.sh makes it anew."""
    third_party = STATIC / "third_party"
    digest, name = (third_party / "codemirror.js.sha256").read_text().split()
    assert hashlib.sha256((third_party / name).read_bytes()).hexdigest() == digest
    licenses = (third_party / "codemirror.licenses.txt").read_text()
    pinned = re.findall(
        r'"(@codemirror/[\w-]+|@lezer/[\w-]+)": "([\d.]+)"',
        (Path(__file__).parents[2] / "scripts" / "codemirror" / "package.json").read_text(),
    )
    assert len(pinned) > 5
    for package, version in pinned:
        assert f"  {package} {version} (MIT)\n" in licenses


def test_scripts_of_the_page_import_files_that_are_there() -> None:
    for script in STATIC.rglob("*.js"):
        if script.parent.name != "third_party":
            text = script.read_text()
            for target in re.findall(r'^(?:import|export|\} from) ?.*?"(\.[^"]+)";$', text, re.MULTILINE):
                assert (script.parent / target).resolve().is_file(), (script.name, target)
            assert len(text.splitlines()) < 400, script.name
            assert not re.search(r"innerHTML\s*=|outerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(", text), (
                script
            )
