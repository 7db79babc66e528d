"""From the body of `POST /runcode/batch` to its items, of which each is checked by itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.field_errors import shown
from gateway.http.parse.body import fields_of, parse_json_object
from gateway.http.parse.run_request import RunFields
from sessions.errors import InvalidRequest
from sessions.sanitize import well_formed

ItemId = str | int
"""What a client calls an item; its answer carries it unchanged. By default it is the item's place, from 0."""

MAX_ITEMS = 1000
_MAX_ID_CHARACTERS = 128


class BatchFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of the body."""

    runs: list[Any]


class ItemFields(RunFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item but for its `id`: the fields of `POST /runcode`, and one that is a header there."""

    idempotency_key: str | None = None
    """As the header `Idempotency-Key` of `POST /runcode`."""


@dataclass(frozen=True, slots=True)
class GivenItem:
    """An item as it was sent: its id, and what else it says, still unchecked."""

    id: ItemId
    value: Any

    def fields(self) -> ItemFields:
        """Its fields, by type. Raises InvalidRequest."""
        if not isinstance(self.value, dict):
            raise InvalidRequest('An item of "runs" must be an object, as in {"code": "print(1)"}.')
        fields = fields_of(ItemFields, self.value)
        if fields.stream is not None:
            raise InvalidRequest('"stream" is no field of an item: the answers of a batch come as its runs end.')
        return fields


def given_items(body: bytes) -> list[GivenItem]:
    """The items, with an id for each. Raises InvalidJSON; InvalidRequest where no answer could be told from another."""
    runs = fields_of(BatchFields, parse_json_object(body)).runs
    if not 1 <= len(runs) <= MAX_ITEMS:
        raise InvalidRequest(f'"runs" must hold 1 to {MAX_ITEMS} items, not {len(runs)}.')
    items = [GivenItem(_item_id(value, place), value) for place, value in enumerate(runs)]
    seen: set[ItemId] = set()
    for item in items:
        if item.id in seen:
            raise InvalidRequest(
                f'Two items of "runs" have the id {_written(item.id)}: each needs one of its own '
                "(an item without one has its place, from 0)."
            )
        seen.add(item.id)
    return items


def _item_id(value: Any, place: int) -> ItemId:
    """Take the `id` out of an item."""
    given = value.pop("id", None) if isinstance(value, dict) else None
    if given is None:
        return place
    # An answer has U+FFFD for each lone surrogate: two ids could become one.
    if isinstance(given, str) and len(given) <= _MAX_ID_CHARACTERS and well_formed(given) == given:
        return given
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < 10 ** (_MAX_ID_CHARACTERS - 1):
        return given
    raise InvalidRequest(
        f'The "id" of runs[{place}] must be a string of up to {_MAX_ID_CHARACTERS} characters, none of them a lone '
        "surrogate, or a whole number."
    )


def _written(identifier: ItemId) -> str:
    return str(identifier) if isinstance(identifier, int) else f'"{shown(identifier)}"'
