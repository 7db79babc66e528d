"""Any string and any JSON value goes into a form that PostgreSQL takes, and comes back."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.column_types import dump_json, escape_text, unescape_text

any_text = st.text(st.characters(codec=None, categories=None) | st.sampled_from("\x00\x1a\ud800\udfff0af"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=20,
)


@given(any_text)
def test_every_string_survives_the_round_trip(text: str) -> None:
    stored = escape_text(text)
    assert "\x00" not in stored
    stored.encode()  # lone surrogates would make this raise
    assert unescape_text(stored) == text


@given(st.text())
def test_ordinary_text_is_stored_as_it_is(text: str) -> None:
    if "\x00" not in text and "\x1a" not in text:
        assert escape_text(text) is text


@pytest.mark.parametrize(
    ("text", "stored"),
    [("a\x00b", "a\x1a0000b"), ("\ud83d", "\x1ad83d"), ("\x1a", "\x1a001a"), ("\x1a0000", "\x1a001a0000")],
)
def test_what_postgres_refuses_has_a_documented_form(text: str, stored: str) -> None:
    assert escape_text(text) == stored


@given(json_values)
def test_every_json_value_survives_as_ascii(value: object) -> None:
    stored = dump_json(value)
    assert stored.isascii()
    assert "\x00" not in stored
    assert json.loads(stored) == value


def test_numbers_that_json_has_not_become_null() -> None:
    value = {"a": [math.nan, math.inf, 1.5], "b": {"c": -math.inf}, "d": (math.nan,)}
    assert json.loads(dump_json(value)) == {"a": [None, None, 1.5], "b": {"c": None}, "d": [None]}
