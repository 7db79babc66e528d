"""Results, figures and files of a run: numbered as they stand, within limits, and honest about what is missing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from test_media import GIF, PIXEL_GIF, SCANNED_JPEG, png

from sessions.model import Artifact, ArtifactKind
from sessions.output.displays import Displays
from sessions.settings import Limits

LIMITS = Limits(output_bytes=100, image_bytes=200, image_count=3, file_bytes=50, file_count=2, image_pixels=1000)
PNG = png(3, 4)


def collection(**limits: int) -> Displays:
    merged = {name: getattr(LIMITS, name) for name in ("output_bytes", "image_bytes", "image_count", "file_bytes")}
    merged |= {"file_count": LIMITS.file_count, "image_pixels": LIMITS.image_pixels, **limits}
    return Displays(Limits(**merged))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def show(into: Displays, data: Any = None, display_id: str | None = None) -> dict[str, Any]:
    return into.show({"image/png": encoded(PNG)} if data is None else data, display_id)[0]


def add(into: Displays, path: object, data: bytes) -> Artifact | None:
    return into.add_piece({"path": path, "bytes": len(data), "offset": 0}, (data,))


def test_a_figure_becomes_an_artifact_and_leaves_its_name() -> None:
    run = collection()
    shown, artifacts = run.show({"text/plain": "<Figure>", "image/png": encoded(PNG)}, None)
    assert shown == {"text/plain": "<Figure>", "image": "figure-1.png"}
    (artifact,) = artifacts
    assert artifact.data == PNG
    ref = artifact.ref
    assert (ref.kind, ref.name, ref.content_type) == (ArtifactKind.IMAGE, "figure-1.png", "image/png")
    assert run.images() == {"figure-1.png": ref}
    assert run.results() == (shown,)


def test_figures_are_numbered_in_order_and_from_one_again_after_a_clear() -> None:
    run = collection()
    assert [show(run)["image"], show(run)["image"]] == ["figure-1.png", "figure-2.png"]
    run.clear()
    assert show(run)["image"] == "figure-1.png"
    assert list(run.images()) == ["figure-1.png"]


def test_an_updated_figure_keeps_its_number_everywhere_it_is_shown() -> None:
    run = collection()
    show(run, display_id="d")
    show(run)
    show(run, {"text/plain": "same"}, display_id="d")
    shown, artifacts = run.update({"image/gif": encoded(GIF)}, "d")
    assert shown == {"image": "figure-1.gif"}
    assert run.results() == (shown, {"image": "figure-2.png"}, shown)
    assert run.images() == {"figure-1.gif": artifacts[0].ref, "figure-2.png": run.images()["figure-2.png"]}


def test_an_update_of_what_is_not_shown_is_nothing() -> None:
    run = collection()
    show(run, {"text/plain": "x"}, display_id="d")
    assert run.update({"text/plain": "y"}, "other") == ({}, [])
    run.clear()
    assert run.update({"text/plain": "y"}, "d") == ({}, [])


JPEG_DATA = encoded(SCANNED_JPEG)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"image/png": encoded(PNG), "image/jpeg": JPEG_DATA}, "figure-1.png"),
        ({"image/jpeg": JPEG_DATA, "image/png": encoded(PNG)}, "figure-1.png"),
        ({"image/svg+xml": "<svg/>", "image/png": encoded(PNG), "text/plain": "x"}, "figure-1.png"),
        ({"image/jpeg": JPEG_DATA}, "figure-1.jpg"),
        ({"image/png": encoded(b"none"), "image/jpeg": JPEG_DATA}, "figure-1.jpg"),
        ({"image/png": encoded(png(9999, 9999)), "image/svg+xml": "<svg/>"}, "figure-1.svg"),
    ],
)
def test_a_display_is_one_picture(data: dict[str, Any], name: str) -> None:
    run = collection()
    shown, artifacts = run.show(data, None)
    assert shown["image"] == name
    assert [artifact.ref.name for artifact in artifacts] == list(run.images()) == [name]
    assert run.dropped() == {}


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("fake.gif", b"GIF89a, and then prose that is no picture"),
        ("cut.png", PNG[:-4]),
        ("cut.jpg", SCANNED_JPEG[:-2]),
        ("empty.webp", b""),
        ("page.svg", b"<html><svg></svg></html>"),
    ],
)
def test_an_image_file_that_is_none_is_a_file(path: str, data: bytes) -> None:
    run = collection(file_bytes=100)
    add(run, path, data)
    assert (run.images(), list(run.files()), run.dropped()) == ({}, [path], {})


def test_a_display_whose_pictures_are_all_invalid_is_told_once() -> None:
    run = collection()
    assert show(run, {"image/png": "?", "image/jpeg": "?", "text/plain": "x"}) == {"text/plain": "x"}
    assert run.notices() == ["a figure was dropped: it is not what it says it is"]


def test_an_svg_comes_as_text_and_is_a_figure() -> None:
    assert show(collection(), {"image/svg+xml": "<svg/>"}) == {"image": "figure-1.svg"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("not base64!", "it is not what it says it is"),
        (encoded(b"<html>"), "it is not what it says it is"),
        (encoded(b"\x89PNG\r\n\x1a\n"), "it is not what it says it is"),
        (None, "it is not what it says it is"),
        (encoded(png(100, 100)), "it has too many pixels"),
        (encoded(PNG + b"x" * 200), "it is over the size limit"),
    ],
)
def test_a_figure_that_breaks_a_rule_is_dropped_and_why_is_said(value: object, why: str) -> None:
    run = collection()
    assert show(run, {"image/png": value, "text/plain": "alt"}) == {"text/plain": "alt"}
    assert run.images() == {}
    assert run.notices() == [f"a figure was dropped: {why}"]
    assert "images" in run.dropped()


def test_what_a_picture_is_decides_its_ending() -> None:
    assert show(collection(), {"image/png": encoded(GIF)}) == {"image": "figure-1.gif"}


def test_no_more_images_than_allowed_are_kept_figures_and_files_together() -> None:
    run = collection()
    show(run)
    assert add(run, "a.png", PNG) is not None
    show(run)
    assert show(run) == {}
    assert add(run, "b.png", PNG) is None
    assert list(run.images()) == ["figure-1.png", "figure-2.png", "a.png"]
    assert run.dropped()["images"] > len(PNG)


def test_replacing_one_figure_for_ever_does_not_store_for_ever() -> None:
    run = collection()
    show(run, display_id="d")
    made = sum(len(run.update({"image/png": encoded(PNG)}, "d")[1]) for _ in range(1000))
    assert made < 10 * LIMITS.image_count


def test_results_share_the_output_limit_and_plain_text_is_cut_to_fit() -> None:
    run = collection()
    assert show(run, {"text/html": "h" * 60}) == {"text/html": "h" * 60}
    assert show(run, {"text/html": "h" * 60, "text/plain": "p" * 60}) == {"text/plain": "p" * 40}
    assert run.dropped() == {"results": 80}
    assert run.notices() == [
        "a result of type text/html was dropped: it is over the size limit",
        "a result of type text/plain was dropped: it is over the size limit",
    ]


def test_notices_are_few_and_count_the_rest() -> None:
    run = collection(file_count=0)
    for number in range(10):
        add(run, f"f{number}", b"x")
    assert len(run.notices()) == 4
    assert run.notices()[-1] == "7 more files were dropped"


def test_a_file_comes_together_from_its_pieces() -> None:
    run = collection()
    pieces = [run.add_piece({"path": "d/t.csv", "bytes": 5, "offset": o}, (d,)) for o, d in ((0, b"12"), (2, b"345"))]
    assert pieces[0] is None
    assert pieces[1] is not None
    assert pieces[1].data == b"12345"
    assert run.files()["d/t.csv"].content_type == "text/csv"


@pytest.mark.parametrize(
    "second",
    [
        {"path": "other", "bytes": 5, "offset": 2},
        {"path": "f", "bytes": 5, "offset": 3},
        {"path": "f", "bytes": 5, "offset": None},
        {"path": "f", "bytes": "5", "offset": 2},
        {"path": "f", "bytes": 10**9, "offset": 2},
        {"path": "../f", "bytes": 5, "offset": 2},
    ],
)
def test_a_piece_that_does_not_fit_is_no_file(second: dict[str, object]) -> None:
    run = collection()
    run.add_piece({"path": "f", "bytes": 5, "offset": 0}, (b"12",))
    assert run.add_piece(second, (b"345",)) is None
    assert run.files() == {}


def test_a_piece_longer_than_the_file_is_cut() -> None:
    artifact = collection().add_piece({"path": "f", "bytes": 3, "offset": 0}, (b"12345",))
    assert artifact is not None
    assert artifact.data == b"123"


def test_an_empty_file_is_a_file() -> None:
    run = collection()
    assert add(run, "empty", b"") is not None
    assert run.files()["empty"].size_bytes == 0


def test_a_file_is_an_image_when_its_name_and_its_bytes_say_so() -> None:
    run = collection()
    add(run, "real.png", PNG)
    add(run, "fake.png", b"<script>")
    add(run, "hidden.txt", GIF)
    assert list(run.images()) == ["real.png"]
    assert {name: ref.content_type for name, ref in run.files().items()} == {
        "fake.png": "image/png",
        "hidden.txt": "text/plain",
    }


def test_a_file_with_a_figures_name_does_not_replace_it() -> None:
    run = collection()
    show(run)
    add(run, "figure-1.png", PIXEL_GIF)
    assert list(run.images()) == ["figure-1.png", "./figure-1.png"]


def test_files_that_were_not_sent_are_named() -> None:
    run = collection()
    run.skip(
        [
            {"path": "big.bin", "bytes": 900, "why": "bytes"},
            {"path": "x.png", "bytes": 5, "why": "count"},
            {"path": "../../etc", "bytes": "many", "why": ["odd"]},
        ]
    )
    assert run.dropped() == {"files": 900, "images": 5}
    assert run.notices() == [
        "big.bin was dropped: it is over the size limit",
        "x.png was dropped: there are too many",
        "a file was dropped: it could not be read",
    ]


def test_a_copy_of_a_file_is_kept_without_its_content() -> None:
    run = collection()
    first = add(run, "a.csv", b"1,2")
    copy = run.add_piece({"path": "b.txt", "bytes": 3, "offset": 0, "same_as": "a.csv"}, (b"",))
    assert first is not None
    assert copy is not None
    assert (copy.data, copy.sha256, copy.ref.size_bytes) == (b"", first.sha256, 3)
    assert copy.ref.content_type == "text/plain"
    assert set(run.files()) == {"a.csv", "b.txt"}


def test_a_copy_of_what_was_dropped_or_never_came_is_dropped() -> None:
    run = collection()
    for original in ("none", 7, ["a"]):
        assert run.add_piece({"path": "b.txt", "bytes": 3, "offset": 0, "same_as": original}, (b"",)) is None
    assert run.files() == {}
    assert "files" in run.dropped()


def test_all_copies_count_as_files() -> None:
    run = collection(file_count=2)
    add(run, "a.csv", b"1,2")
    for name in "bcd":
        run.add_piece({"path": name, "bytes": 3, "offset": 0, "same_as": "a.csv"}, (b"",))
    assert set(run.files()) == {"a.csv", "b"}


def test_files_and_figures_share_one_budget_and_the_same_content_counts_once() -> None:
    run = collection(files_bytes=len(PNG) + 3)
    show(run)
    show(run)
    assert add(run, "a.csv", b"1,2") is not None
    assert add(run, "copy.csv", b"1,2") is not None
    assert add(run, "b.csv", b"3") is None
    assert show(run, {"image/gif": encoded(GIF)}) == {}
    assert (len(run.images()), set(run.files())) == (2, {"a.csv", "copy.csv"})
    assert any("together" in line for line in run.notices())


def test_what_is_left_of_the_budget_and_the_originals_outlive_the_gateway() -> None:
    run = collection(files_bytes=4)
    first = add(run, "a.csv", b"1,2")
    assert first is not None
    successor = collection(files_bytes=4)
    successor.replay_artifact(first.ref)
    successor.resume(json.loads(json.dumps(run.state())))
    copy = successor.add_piece({"path": "b.csv", "bytes": 3, "offset": 0, "same_as": "a.csv"}, (b"",))
    assert copy is not None
    assert copy.sha256 == first.sha256
    assert add(successor, "c.csv", b"34") is None
