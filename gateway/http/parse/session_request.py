"""From the bodies of `POST /sessions` and `PATCH /sessions/{id}` to what is asked of the service. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from tornado.httputil import HTTPHeaders

from gateway.http.parse.body import check_media_type, fields_of, is_form, parse_json_object
from gateway.http.parse.run_inputs import Files, input_files
from gateway.http.parse.run_request import configured_language, named_variables, sane_session_id
from sessions.errors import InvalidRequest, UnsupportedMediaType
from sessions.model import SessionRequest, TenantId
from sessions.settings import SessionLimits


class RenewFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of `PATCH /sessions/{id}`, by type alone. Seconds."""

    idle_timeout: float | None = None
    """The session ends so many seconds after its last use; up to `sessions.max_lifetime`."""
    max_lifetime: float | None = None
    """The session ends so many seconds after it was made; up to `sessions.max_lifetime`."""


class CreateSessionFields(RenewFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of `POST /sessions`, by type alone."""

    session_id: str | None = None
    """An id of your choice; one is made up unless given."""
    language: str | None = None
    """A configured language; `python` unless given."""
    variables: dict[str, Any] | list[Any] | None = None
    """Set at once, as those of `POST /runcode` are."""
    files: Files = None
    """Written below the working directory at once, by path."""
    env: Any = None
    """Refused: it is for one run, in `POST /runcode`."""


def session_request(
    value: Mapping[str, Any], *, tenant: TenantId, languages: Mapping[str, str], limits: SessionLimits
) -> SessionRequest:
    """Check a body. Raises InvalidRequest and UnsupportedLanguage."""
    fields = fields_of(CreateSessionFields, value)
    if fields.env is not None:
        raise InvalidRequest('"env" is for one run, and not for a session: send it with each run that needs it.')
    idle_timeout_s, max_lifetime_s = _time_outs(fields, limits)
    language = configured_language(fields.language, languages)
    return SessionRequest(
        tenant=tenant,
        session_id=None if fields.session_id is None else sane_session_id(fields.session_id),
        language=language,
        variables=named_variables(fields.variables, languages[language]),
        idle_timeout_s=limits.idle_timeout_s if idle_timeout_s is None else idle_timeout_s,
        max_lifetime_s=limits.max_lifetime_s if max_lifetime_s is None else max_lifetime_s,
        files=input_files(fields.files),
    )


def renewal(value: Mapping[str, Any], limits: SessionLimits) -> tuple[float | None, float | None]:
    """The idle time-out and the longest life in a body, in seconds, where they are given. Raises InvalidRequest."""
    return _time_outs(fields_of(RenewFields, value), limits)


def optional_object(headers: HTTPHeaders, body: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no body. Raises InvalidJSON and UnsupportedMediaType."""
    if not body:
        return {}
    if is_form(check_media_type(headers)):
        raise UnsupportedMediaType("Send the body as application/json, without a content encoding.")
    return parse_json_object(body)


def _time_outs(fields: RenewFields, limits: SessionLimits) -> tuple[float | None, float | None]:
    for name, seconds in (("idle_timeout", fields.idle_timeout), ("max_lifetime", fields.max_lifetime)):
        if seconds is None:
            continue
        if not math.isfinite(seconds) or seconds <= 0:
            raise InvalidRequest(f'"{name}" must be a positive number of seconds.')
        if seconds > limits.max_lifetime_s:
            raise InvalidRequest(f'"{name}" must not be above {limits.max_lifetime_s:g} seconds here.')
    return fields.idle_timeout, fields.max_lifetime
