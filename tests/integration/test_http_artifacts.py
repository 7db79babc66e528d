"""Images and files, as a browser gets them."""

from __future__ import annotations

import asyncio
import uuid

import httpx
import pytest
from http_face import Face, stingy_connection, url_name

from sessions.errors import StoreUnavailable
from sessions.model import Artifact, ArtifactId, ArtifactKind

LARGE = bytes(range(251)) * 40_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


async def test_the_url_of_an_answer_gives_the_picture_back(face: Face, client: httpx.AsyncClient) -> None:
    ref = face.service.add("out/drei eck%2f三角.png", PNG, ArtifactKind.IMAGE, "image/png")
    face.service.next_result = {"images": {ref.name: ref}}
    url = (await client.post("/runcode", json={"code": "1"})).json()["images"][ref.name]
    answer = await client.get(url)
    assert answer.status_code == 200
    assert answer.content == PNG
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer.headers["Cache-Control"].startswith("private,")
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.headers["Content-Disposition"].startswith("inline; ")
    assert "filename*=UTF-8''drei%20eck%252f%E4%B8%89%E8%A7%92.png" in answer.headers["Content-Disposition"]


async def test_head_is_get_without_the_bytes(face: Face, client: httpx.AsyncClient) -> None:
    ref = face.service.add("a.png", PNG, ArtifactKind.IMAGE)
    asked = await client.head(f"/image/{url_name(ref)}")
    assert face.service.read_bytes < 100
    got = await client.get(f"/image/{url_name(ref)}")
    assert asked.status_code == 200
    assert asked.content == b""
    changing = {"date", "x-request-id"}
    assert {k: v for k, v in asked.headers.items() if k not in changing} == {
        k: v for k, v in got.headers.items() if k not in changing
    }


@pytest.mark.parametrize(
    ("header", "status"), [('"{}"', 304), ('W/"{}"', 304), ('"x", "{}"', 304), ("*", 304), ('"x"', 200), ("", 200)]
)
async def test_who_has_the_picture_gets_304(face: Face, client: httpx.AsyncClient, header: str, status: int) -> None:
    ref = face.service.add("a.png", PNG, ArtifactKind.IMAGE)
    headers = {"If-None-Match": header.format(ref.id)}
    answer = await client.get(f"/image/{url_name(ref)}", headers=headers)
    assert (answer.status_code, answer.headers["ETag"]) == (status, f'"{ref.id}"')
    assert answer.content == (PNG if status == 200 else b"")
    assert face.service.read_bytes == len(answer.content)


@pytest.mark.parametrize(
    ("name", "data", "content_type"),
    [
        ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "image/svg+xml"),
        ("x.png", b"<html><script>1</script>", "image/png"),
        ("x.png", b"", "image/png"),
    ],
)
async def test_what_is_no_picture_by_its_bytes_is_an_attachment(
    face: Face, client: httpx.AsyncClient, name: str, data: bytes, content_type: str
) -> None:
    ref = face.service.add(name, data, ArtifactKind.IMAGE, content_type)
    answer = await client.get(f"/image/{url_name(ref)}")
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["Content-Disposition"].startswith("attachment; ")
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize(
    ("declared", "sent"),
    [
        ("text/csv", "text/csv"),
        ("text/html\r\nSet-Cookie: a=b", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
async def test_a_file_is_an_attachment_of_its_declared_type(
    face: Face, client: httpx.AsyncClient, declared: str, sent: str
) -> None:
    ref = face.service.add("table.csv", b"a,b", ArtifactKind.FILE, declared)
    answer = await client.get(f"/file/{url_name(ref)}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, sent)
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="table.csv"')


@pytest.mark.parametrize(
    "path",
    [
        "/image/",
        "/image/x",
        "/image/..%2f..%2fetc%2fpasswd",
        "/image/%00",
        "/image/{id}",
        "/image/{id}_",
        "/image/{id}_b.png",
        "/image/{id}_a.png%00",
        "/image/{id}_a.png/",
        "/image/{id}_%ff",
        "/image/{other}_a.png",
        "/image/{hex}_a.png",
        "/image/{{{id}}}_a.png",
        "/image/urn:uuid:{id}_a.png",
        "/image/" + "9" * 5000,
        "/image/%ed%a0%80_a.png",
    ],
)
async def test_every_other_name_is_404(face: Face, client: httpx.AsyncClient, path: str) -> None:
    ref = face.service.add("a.png", PNG, ArtifactKind.IMAGE)
    names = {"id": ref.id, "other": str(uuid.uuid4()), "hex": ref.id.replace("-", "")}
    answer = await client.get(path.format(**names))
    assert (answer.status_code, answer.json()["error"]) == (404, "Image not found")
    assert answer.json()["code"] == "not_found"


async def test_images_and_files_are_kept_apart(face: Face, client: httpx.AsyncClient) -> None:
    image = face.service.add("a.png", PNG, ArtifactKind.IMAGE)
    file = face.service.add("a.csv", b"1", ArtifactKind.FILE)
    assert (await client.get(f"/file/{url_name(image)}")).json()["error"] == "File not found"
    assert (await client.get(f"/image/{url_name(file)}")).json()["error"] == "Image not found"


async def test_a_lost_database_is_503_not_404(face: Face, client: httpx.AsyncClient) -> None:
    async def unavailable(_: ArtifactId) -> None:
        raise StoreUnavailable

    face.service.artifact_ref = unavailable  # type: ignore[method-assign,assignment]
    answer = await client.get(f"/image/{uuid.uuid4()}_a.png")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_a_large_file_comes_whole(face: Face, client: httpx.AsyncClient) -> None:
    ref = face.service.add("a.bin", LARGE, ArtifactKind.FILE)
    answer = await client.get(f"/file/{url_name(ref)}")
    assert (answer.headers["Content-Length"], answer.content == LARGE) == (str(len(LARGE)), True)


async def test_no_more_is_read_than_the_client_takes(face: Face) -> None:
    ref = face.service.add("a.bin", bytes(32 << 20), ArtifactKind.FILE)
    with stingy_connection(face.port) as connection:
        connection.sendall(f"GET /file/{url_name(ref)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(30):
            while not face.service.read_bytes:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert face.service.read_bytes < 16 << 20  # what the buffers of the sockets took


async def test_a_file_that_is_removed_meanwhile_is_broken_off(face: Face, client: httpx.AsyncClient) -> None:
    ref = face.service.add("a.bin", bytes(32 << 20), ArtifactKind.FILE)
    url = f"/file/{url_name(ref)}"
    async with client.stream("GET", url) as answer:
        face.service.artifacts.clear()
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()
    assert (await client.get(url)).json()["code"] == "not_found"


async def test_a_file_whose_bytes_are_gone_is_not_there(face: Face, client: httpx.AsyncClient) -> None:
    ref = face.service.add("a.bin", LARGE, ArtifactKind.FILE)
    face.service.artifacts[ref.id] = Artifact(ref, b"")
    assert (await client.get(f"/file/{url_name(ref)}")).status_code == 404
