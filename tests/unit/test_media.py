"""What an image really is, whatever its sender says; with pictures that Pillow and matplotlib would make by hand."""

from __future__ import annotations

import mimetypes
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.output import media


def png(width: int, height: int) -> bytes:
    """A PNG that says it has this size; its pixels are never looked at."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GIF = b"GIF89a" + struct.pack("<HH", 3, 4) + b"\x00\x00\x00;"
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    b"\xff\xc0\x00\x0b\x08\x00\x04\x00\x03\x01\x01\x11\x00\xff\xd9"
)
WEBP = b"RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f\x02\xc0\x00\x00" + b"\x00" * 8


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (png(1, 1), "image/png"),
        (GIF, "image/gif"),
        (JPEG, "image/jpeg"),
        (WEBP, "image/webp"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        (b"\xef\xbb\xbf <?xml version='1.0'?>\n<!-- c -->\n<svg/>", "image/svg+xml"),
        (b"<html><body>no", None),
        (b"text that mentions <svg", None),
        (b"\x89PNG", None),
        (b"RIFF....WAVEfmt ", None),
        (b"", None),
    ],
)
def test_the_bytes_say_what_an_image_is(data: bytes, content_type: str | None) -> None:
    assert media.sniff(data) == content_type


@pytest.mark.parametrize(
    ("data", "pixels"), [(png(60_000, 60_000), 3_600_000_000), (png(2, 3), 6), (GIF, 12), (JPEG, 12), (WEBP, 12)]
)
def test_pixels_are_counted_from_the_header(data: bytes, pixels: int) -> None:
    content_type = media.sniff(data)
    assert content_type is not None
    assert media.count_pixels(data, content_type) == pixels


def test_an_svg_has_no_pixels() -> None:
    assert media.count_pixels(b"<svg/>", "image/svg+xml") == 0


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", png(0, 5), b"RIFF....WEBP"])
def test_an_image_without_a_readable_header_has_no_size(data: bytes) -> None:
    content_type = media.sniff(data)
    assert content_type is not None
    assert media.count_pixels(data, content_type) is None


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF....WEBP", b""]), st.binary())
def test_no_bytes_make_the_judgement_fail(magic: bytes, rest: bytes) -> None:
    content_type = media.sniff(magic + rest)
    if content_type is not None:
        pixels = media.count_pixels(magic + rest, content_type)
        assert pixels is None or pixels >= 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/t.csv", "text/csv"),
        ("x.pdf", "application/pdf"),
        ("x.unknown-thing", "application/octet-stream"),
        ("x", "application/octet-stream"),
        ("t.csv.gz", "application/gzip"),
        ("t.tar.gz", "application/gzip"),
        ("t.tgz", "application/gzip"),
        ("t.csv.bz2", "application/x-bzip2"),
        ("t.tar.xz", "application/x-xz"),
        ("t.zip", "application/zip"),
        ("t.json", "application/json"),
        ("t.parquet", "application/vnd.apache.parquet"),
        ("t.ipynb", "application/x-ipynb+json"),
        ("t.XLSX", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("t.yml", "application/yaml"),
        ("t.md", "text/markdown"),
        ("t.tsv", "text/tab-separated-values"),
        ("t.webp", "image/webp"),
        ("t.svg", "image/svg+xml"),
        ("data:text/html,x", "application/octet-stream"),
        ("http:x.csv", "text/csv"),
    ],
)
def test_other_files_are_known_by_their_name(name: str, expected: str) -> None:
    assert media.guess(name) == expected


def test_the_hosts_own_table_of_types_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mimetypes.types_map, ".csv", "application/of-this-host")
    assert media.guess("a.csv") == "text/csv"


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 2_500_000,
        b"\xff\xd8" + b"\xff" * 10_000_000,
        b"\xff\xd8" + b"\xff\xd0" * 5_000_000,
        b"\xff\xd8\xff\xe1\x00\x40Exif\0\0" + bytes(10_000_000),
    ],
    ids=["segments", "fill bytes", "markers", "zeros"],
)
def test_a_picture_of_endless_parts_takes_no_time(data: bytes) -> None:
    started_s = time.process_time()
    assert media.count_pixels(data, "image/jpeg") is None
    assert time.process_time() - started_s < 0.1


def test_a_photo_with_megabytes_before_its_size_is_a_picture_all_the_same() -> None:
    exif = b"\xff\xe1\xff\xffExif\0\0" + bytes(0xFFFF - 8)
    colours = (b"\xff\xe2\xff\xffICC_PROFILE\0" + bytes(0xFFFF - 14)) * 64
    assert media.count_pixels(JPEG[:20] + exif + colours + JPEG[20:], "image/jpeg") == 12


PIXEL_GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00"
    + b"\0" * 6
    + b"\x21\xf9\x04\x01\0\0\0\0"
    + (b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0\x3b")
)
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x7f"
SCANNED_JPEG = JPEG[:-2] + SCAN + JPEG[-2:]
PADDED_WEBP = WEBP + b"\0"
SVG = b"<?xml version='1.0'?><!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'x.dtd'><svg><g>&nbsp;</g></svg>"


@pytest.mark.parametrize(
    "data",
    [png(2, 3), PIXEL_GIF, PIXEL_GIF + b"more", SCANNED_JPEG, PADDED_WEBP, SVG, b"<s:svg xmlns:s='http://x'></s:svg>"],
)
def test_an_image_is_whole(data: bytes) -> None:
    content_type = media.sniff(data) or "image/svg+xml"
    assert media.is_whole(data, content_type)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a and then prose, which is long enough for a header",
        b"GIF89a",
        b"GIF87a;",
        PIXEL_GIF[:-3],
        png(2, 3)[:-12],
        png(2, 3)[:20],
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        SCANNED_JPEG[:-2],
        JPEG[:12],
        b"\xff\xd8\xff" + b"prose" * 10,
        WEBP[:-1],
        b"RIFF\x04\x00\x00\x00WEBP",
        SVG[:-3],
        b"<html><body><svg></svg></body></html>",
        b"<p>an <svg> in prose",
        b"<!DOCTYPE html><svg></svg>prose",
    ],
)
def test_an_image_is_not_whole(data: bytes) -> None:
    content_type = media.sniff(data)
    assert content_type is not None
    assert not media.is_whole(data, content_type)


@given(st.sampled_from([png(2, 3), PIXEL_GIF, SCANNED_JPEG, PADDED_WEBP, SVG]), st.data())
def test_damage_anywhere_raises_nothing(whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=5)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    content_type = media.sniff(bytes(damaged))
    assert content_type is None or media.is_whole(bytes(damaged), content_type) in (True, False)


@pytest.mark.parametrize(
    "data",
    [
        PIXEL_GIF[:-2] + b"\x01\x01" * 5_000_000 + b"\0;",
        PIXEL_GIF[:-1] + b"\x21\xff\0" * 3_300_000 + b";",
        png(2, 3)[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 870_000 + png(2, 3)[33:],
    ],
    ids=["blocks", "extensions", "chunks"],
)
def test_an_image_of_endless_parts_is_a_file(data: bytes) -> None:
    started_s = time.process_time()
    assert not media.is_whole(data, str(media.sniff(data)))
    assert time.process_time() - started_s < 0.25


def test_a_long_animation_is_whole() -> None:
    frame = PIXEL_GIF[19:-1]
    assert media.is_whole(PIXEL_GIF[:19] + frame * 30_000 + b";", "image/gif")


def test_entities_of_a_document_are_not_expanded() -> None:
    bomb = b"<!DOCTYPE svg [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '" + b"&a;" * 1000 + b"'>]><svg>" + b"&b;" * 1000
    before = time.monotonic()
    assert not media.is_whole(bomb, "image/svg+xml")
    assert media.is_whole(bomb + b"</svg>", "image/svg+xml")
    assert time.monotonic() - before < 1
