"""From types to JSON schemas: msgspec's, with the sentences below the fields, and the forms that types do not tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import msgspec

from gateway.field_meanings import meanings
from gateway.http.base.errors import STATUS_OF_CODE
from gateway.http.description.answers import Error
from gateway.http.description.events import Event, SocketError
from gateway.http.parse.run_request import IDEMPOTENCY_KEY, SESSION_ID
from gateway.http.parse.socket_messages import MESSAGES

Schema = dict[str, Any]

REF = "#/components/schemas/"
CODES = (*STATUS_OF_CODE, "internal")
_NAMED: Mapping[str, Any] = {"Event": Event}
"""Types that are no classes, and have a name all the same."""

_FORMS: Mapping[str, Schema] = {
    "session_id": {"pattern": f"^{SESSION_ID}$"},
    "idempotency_key": {"pattern": f"^{IDEMPOTENCY_KEY}$"},
    "timeout": {"exclusiveMinimum": 0},
    "idle_timeout": {"exclusiveMinimum": 0},
    "max_lifetime": {"exclusiveMinimum": 0},
}
_MESSAGE_ID = {
    "anyOf": [{"type": "string", "maxLength": 128}, {"type": "number"}, {"type": "null"}],
    "description": "Yours: what is sent about this message has it.",
}


class Schemas:
    """The schemas of these types. The mutable state, `components`, is complete when it is made."""

    def __init__(self, kinds: Iterable[Any]) -> None:
        all_kinds = [kind for kind in dict.fromkeys((*kinds, *_NAMED.values())) if kind is not None]
        outer, self.components = msgspec.json.schema_components(all_kinds, ref_template=f"{REF}{{name}}")
        self._outer: dict[Any, Schema] = dict(zip(all_kinds, outer, strict=True))
        for struct in dict.fromkeys(struct for kind in all_kinds for struct in structs_in(kind)):
            _complete(self.components[struct.__name__], struct)
        for name, kind in _NAMED.items():
            self.components[name] = {"title": name, **self._outer[kind]}
            self._outer[kind] = {"$ref": f"{REF}{name}"}

    def of(self, kind: Any) -> Schema:
        """The schema of one of the types; None stands for bytes, which have none."""
        return {} if kind is None else self._outer[kind]

    def fields(self, struct: type[msgspec.Struct]) -> Iterator[tuple[str, Schema, bool]]:
        """Name and schema of each field, without null, and whether it is required."""
        component = self.components[struct.__name__]
        for name, schema in component["properties"].items():
            yield name, without_null(schema), name in component["required"]


def structs_in(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs of which this type is made."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from structs_in(field.type)
    for part in get_args(kind):
        yield from structs_in(part)


def without_null(schema: Schema) -> Schema:
    """The same for a query, where nothing is null."""
    kept = {name: value for name, value in schema.items() if name != "default" or value is not None}
    options = [option for option in kept.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del kept["anyOf"]
        return {**kept, **options[0]}
    return {**kept, "anyOf": options} if options else kept


def is_text(schema: Schema) -> bool:
    """Whether a form or query can have the value as it is: no list and no object."""
    return not any(option.get("type") in ("array", "object") for option in (schema, *schema.get("anyOf", ())))


def _complete(component: Schema, struct: type[msgspec.Struct]) -> None:
    properties = component["properties"]
    for name, meaning in meanings(struct).items():
        properties[name].setdefault("description", meaning)
    for name, form in _FORMS.items():
        if name in properties:
            _narrow(properties[name], form)
    if issubclass(struct, Error | SocketError):
        properties["code"]["enum"] = list(CODES)
    for op, message in MESSAGES.items():
        if message is struct:
            component["properties"] = {
                "op": {"const": op, "description": "What to do."},
                "id": _MESSAGE_ID,
            } | properties
            component["required"] = ["op", *component["required"]]


def _narrow(schema: Schema, form: Schema) -> None:
    for option in (schema, *schema.get("anyOf", ())):
        if option.get("type") in ("string", "number"):
            option.update(form)
