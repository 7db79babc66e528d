"""Text out of a sandbox: no control sequences, no lone surrogates, no path that leads anywhere else."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.sanitize import cut_utf8, relative_path, strip_ansi, well_formed, well_formed_json

any_text = st.text(st.characters(codec=None, categories=None))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;12;1mx\x1b[K", "x"),
        ("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\y", "xy"),
        ("\x1bMx\x1b=", "x"),
        ("\x1b\x1b[0m[31mx", "[31mx"),
        ("plain [31m text", "plain [31m text"),
    ],
)
def test_control_sequences_are_removed_and_nothing_else(text: str, expected: str) -> None:
    assert strip_ansi(text) == expected


@given(st.text(st.sampled_from("\x1b[]0;m\x07\\Kxé ")))
def test_no_escape_is_ever_left(text: str) -> None:
    assert "\x1b" not in strip_ansi(text)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("hostile", ["\x1b[" + "0" * 1_000_000, "\x1b]" * 300_000, "\x1b[" * 300_000])
def test_removing_takes_linear_time(hostile: str) -> None:
    assert "\x1b" not in strip_ansi(hostile)


@given(any_text)
def test_every_text_can_be_encoded_once_it_is_well_formed(text: str) -> None:
    assert well_formed(well_formed(text)) == well_formed(text)
    well_formed(text).encode()


@given(st.text())
def test_text_that_is_well_formed_is_left_alone(text: str) -> None:
    assert well_formed(text) == text


def test_a_surrogate_pair_becomes_its_character_and_a_lone_one_a_replacement() -> None:
    assert well_formed("\ud83d\ude00 \ude00") == "😀 \ufffd"


@given(json_values)
def test_every_json_value_becomes_one_that_can_be_encoded(value: object) -> None:
    json.dumps(well_formed_json(value), ensure_ascii=False).encode()


@given(st.text(), st.integers(-3, 50))
def test_cutting_keeps_the_longest_beginning_that_fits(text: str, limit_bytes: int) -> None:
    cut = cut_utf8(text, limit_bytes)
    assert text.startswith(cut)
    assert len(cut.encode()) <= max(0, limit_bytes)
    if cut != text:
        assert len(text[: len(cut) + 1].encode()) > limit_bytes


@pytest.mark.parametrize("path", ["a", "a/b.csv", "...", "a b/ü", ".hidden", "a\\b", "a" * 1024])
def test_a_path_below_the_directory_is_kept(path: str) -> None:
    assert relative_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "..", "../x", "a/../x", "a/./x", "a//b", "a/", ".", "a\0b", "a" * 1025, None, 5, b"a", ["a"]],
)
def test_a_path_that_leads_elsewhere_is_refused(path: object) -> None:
    assert relative_path(path) is None


@given(any_text)
def test_whatever_a_path_is_it_stays_below(path: str) -> None:
    kept = relative_path(path)
    if kept is not None:
        kept.encode()
        assert not kept.startswith("/")
        assert not {"", ".", ".."} & set(kept.split("/"))


def test_names_of_bytes_that_are_no_utf8_stay_distinct() -> None:
    names = [b"bad\xff.txt", b"bad\xfe.txt", "bä/\U0001f600.txt".encode()]
    assert [relative_path(os.fsdecode(name)) for name in names] == ["bad%FF.txt", "bad%FE.txt", "bä/\U0001f600.txt"]
