"""From the queries of `/runs` and `/runs/{id}/events` to what is asked. Pure, and every refusal names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.field_errors import near, shown
from gateway.http.parse.body import check_names, parse_query
from gateway.http.parse.run_request import sane_session_id
from gateway.http.parse.times import parse_time
from gateway.http.parse.urls import run_id_of
from sessions.errors import InvalidRequest, NotFound
from sessions.model import RunId, RunQuery, RunStatus, TenantId

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
_LARGEST_SEQ = (1 << 31) - 1
_COUNT = re.compile(r"[0-9]{1,18}")


class RunsQueryFields(msgspec.Struct, frozen=True, kw_only=True):
    """The query of `GET /runs`."""

    session_id: str | None = None
    """Only runs of this session."""
    status: RunStatus | None = None
    """Only runs of this status."""
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
    """How many at most."""
    before: str | None = None
    """Only runs older than the run of this id, or than this time: the last `run_id` of a page begins the next one."""


class EventsQueryFields(msgspec.Struct, frozen=True, kw_only=True):
    """The query of `GET /runs/{id}/events`."""

    after: Annotated[int, Meta(ge=0)] = 0
    """Leave out the events up to this `seq`. `Last-Event-ID` does the same; the larger of both counts."""


def runs_asked(query: str, tenant: TenantId) -> tuple[RunQuery, RunId | None]:
    """The runs asked for, and the run before which they were made, if one is named. Raises InvalidRequest.

    Empty fields count as not given.
    """
    fields = _fields(query, RunsQueryFields.__struct_fields__)
    limit = _count(fields, "limit", DEFAULT_LIMIT)
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f'"limit" must be a whole number from 1 to {MAX_LIMIT}.')
    session_id = sane_session_id(fields["session_id"]) if fields.get("session_id") else None
    asked = RunQuery(tenant, limit, session_id, _status(fields.get("status", "")))
    if not (before := fields.get("before")):
        return asked, None
    try:
        return asked, run_id_of(before)
    except NotFound:
        return replace(asked, created_before=parse_time(before, "before")), None


def events_after(query: str, last_event_id: str | None) -> int:
    """The `seq` after which events are asked for: the larger of `after` and `Last-Event-ID`.

    A browser's EventSource that reconnects sends its first URL again, and its position in the header.
    """
    after = _count(_fields(query, EventsQueryFields.__struct_fields__), "after", 0)
    last = _count({"Last-Event-ID": last_event_id or ""}, "Last-Event-ID", 0)
    return min(max(after, last), _LARGEST_SEQ)


def _fields(query: str, known: tuple[str, ...]) -> dict[str, str]:
    fields = parse_query(query)
    check_names(fields, known)
    return fields


def _count(fields: Mapping[str, str], name: str, default: int) -> int:
    text = fields.get(name, "").strip()
    if not text:
        return default
    if _COUNT.fullmatch(text) is None:
        raise InvalidRequest(f'"{name}" must be a whole number that is not negative.')
    return int(text)


def _status(text: str) -> RunStatus | None:
    try:
        return RunStatus(text) if text else None
    except ValueError as error:
        hint = near(text, list(RunStatus)) or f": use one of {', '.join(RunStatus)}."
        raise InvalidRequest(f'There is no status "{shown(text)}"{hint}') from error
