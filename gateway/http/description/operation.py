"""What is said of one method of one route, beyond what follows from the table of routes. Pure records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sessions.errors import CellblockError

JSON = "application/json"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
ANY = "*/*"
"""Bytes of any type."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One status. `content` is the type of the body by media type; None stands for bytes."""

    meaning: str
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    example: Any = None


@dataclass(frozen=True, slots=True)
class Stream:
    """A body that is a sequence of values of this type: server-sent events, or lines of JSON."""

    of: Any


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body, of one type in any of the media types; None stands for bytes. `examples` by what they show."""

    type: Any
    media_types: tuple[str, ...] = (JSON,)
    is_required: bool = True
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """What is particular to a route's method.

    `query` is a struct whose fields are the parameters. `headers` names those of the request, and `errors` the refusals
    that do not follow from the route. On a WebSocket, `sends` has the types of messages by their `op`, and `receives`
    those of what comes. `example` has values of the query.
    """

    summary: str
    answers: Mapping[int, Answer]
    details: str = ""
    query: type | None = None
    headers: tuple[str, ...] = ()
    body: Body | None = None
    errors: tuple[type[CellblockError], ...] = ()
    sends: Mapping[str, type] = field(default_factory=dict)
    receives: tuple[Any, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)


def json_answer(kind: Any, meaning: str, *, headers: tuple[str, ...] = (), example: Any = None) -> Answer:
    """An answer in JSON, of this type."""
    return Answer(meaning, {JSON: kind}, headers, example)


Operations = Mapping[str, Operation]
"""By method and path, such as `GET /runs/{id}`."""
