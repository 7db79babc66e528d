"""The quick way to read and write JSON says what the standard library says."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions import quick_json

any_text = st.text(st.characters(codec=None, categories=None) | st.sampled_from('\x00\ud800\udfff\ud83d\ude00\\"u'))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_what_the_standard_library_has_written_is_read(value: object, ascii_only: bool) -> None:  # noqa: FBT001
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert repr(quick_json.load(text)) == repr(json.loads(text))


@given(json_values)
def test_what_is_written_the_standard_library_reads(value: object) -> None:
    assert json.loads(quick_json.dump(value)) == value


def test_a_lone_surrogate_is_written_as_an_escape() -> None:
    assert quick_json.dump({"\ud800": "é"}) == b'{"\\ud800": "\\u00e9"}'
    assert quick_json.dump({"a": "é"}) == '{"a":"é"}'.encode()


@pytest.mark.parametrize("text", ["", "\ud800"])
def test_what_is_not_finite_is_written_as_null(text: str) -> None:
    assert json.loads(quick_json.dump({"x": [math.inf, {"y": math.nan}], "text": text})) == {
        "x": [None, {"y": None}],
        "text": text,
    }


ODD = [
    '"\\ud800"',
    '"\\ud83d\\ud83d\\ude00"',
    "1e400",
    "-0",
    "-0.0",
    '{"a":1,"a":2}',
    "9" * 30,
    "-" + "9" * 4300,
    " [ ] ",
]


@pytest.mark.parametrize("text", ODD)
def test_what_is_odd_is_read_as_the_standard_library_reads_it(text: str) -> None:
    assert repr(quick_json.load(text)) == repr(json.loads(text))


def test_numbers_that_json_has_not_are_read_all_the_same() -> None:
    assert math.isnan(quick_json.load("[NaN]")[0])
    assert quick_json.load("-Infinity") == -math.inf


WRONG = ["", "[1,]", "01", "'a'", '"\t"', '"\x01"', '"\\x"', "tru", "{} {}", "[1\x0c]", "9" * 4301]


@pytest.mark.parametrize("text", WRONG)
def test_errors_are_those_of_the_standard_library(text: str) -> None:
    with pytest.raises(ValueError) as expected:  # noqa: PT011 - whichever it is
        json.loads(text)
    with pytest.raises(type(expected.value)) as raised:
        quick_json.load(text)
    assert str(raised.value) == str(expected.value)


def test_what_is_too_deep_is_refused() -> None:
    with pytest.raises(RecursionError):
        quick_json.load("[" * 100_000)
