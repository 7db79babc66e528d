"""What is said about a field that is not as it should be, in msgspec's words and then in ours."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from gateway.field_errors import complaint
from gateway.http.parse.body import fields_of
from sessions.errors import InvalidRequest


class Fields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, Meta(pattern="^[a-z]+$")]
    count: Annotated[int, Meta(ge=1, le=8)] = 1
    time: Annotated[float, Meta(gt=0, lt=9.5)] | None = None
    items: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    by_name: dict[str, int] = {}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"name": "a", "nam": 1}, 'There is no field "nam", did you mean "name"?'),
        ({}, 'The field "name" is required.'),
        ({"name": "A"}, "\"name\" must match '^[a-z]+$'."),
        ({"name": "a", "count": "x"}, '"count" must be a whole number, not a string.'),
        ({"name": "a", "count": 0}, '"count" must be a whole number of at least 1.'),
        ({"name": "a", "count": 9}, '"count" must be a whole number of at most 8.'),
        ({"name": "a", "time": 0}, '"time" must be a number above 0.'),
        ({"name": "a", "time": 1e9}, '"time" must be a number below 9.5.'),
        ({"name": "a", "time": []}, '"time" must be a number or null, not a list.'),
        ({"name": "a", "items": [1, 0]}, '"items[1]" must be a whole number of at least 1.'),
        ({"name": "a", "by_name": {1: 1}}, '"by_name" must be a string, not a whole number.'),
        ({"name": "a", "by_name": {"b": None}}, '"by_name[...]" must be a whole number, not null.'),
    ],
)
def test_a_request_is_told_which_field_is_wrong_and_what_it_must_be(value: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fields_of(Fields, value)
    assert str(caught.value) == sentence


def test_a_value_without_a_name_is_called_the_value() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(0, Annotated[int, Meta(ge=1)])
    assert complaint(caught.value, ()) == "the value must be a whole number of at least 1"
