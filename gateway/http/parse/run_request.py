"""From named fields to a RunRequest: types, bounds, names, languages. Pure, and every refusal names the field."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from gateway.field_errors import shown
from gateway.http.parse.body import check_names, form_json, form_variables
from gateway.http.parse.code_text import plain_code, unescape_query_code
from gateway.http.parse.run_inputs import ENV_EXAMPLE, FETCH_EXAMPLE, FILES_EXAMPLE, Env, Fetch, Files, run_inputs
from sessions.errors import InvalidRequest, UnsupportedLanguage
from sessions.languages import PYTHON_KERNEL, traits_of
from sessions.model import RunRequest, SessionId, TenantId
from sessions.settings import Limits

DEFAULT_LANGUAGE = "python"
_MAX_NAME_CHARACTERS = 255  # normalizing takes quadratic time where a name is nothing but combining marks
SESSION_ID = r"[A-Za-z0-9._:-]{1,128}"
IDEMPOTENCY_KEY = r"[\x20-\x7e]{1,255}"
_SANE_SESSION_ID = re.compile(SESSION_ID)
_SANE_KEY = re.compile(IDEMPOTENCY_KEY)
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_JSON_FIELDS = {
    "files": f"a JSON object, as in {FILES_EXAMPLE}",
    "fetch": f"a JSON list, as in {FETCH_EXAMPLE}",
    "env": f"a JSON object, as in {ENV_EXAMPLE}",
}
"""Fields that are JSON strings in forms and queries, beside `variables`."""


class RunFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of `POST /runcode`, by type alone."""

    code: str
    """In Python what a notebook cell takes: magics, `!commands` and top-level `await` too. In Bash, a script."""
    languageType: str | None = None  # noqa: N815 - the name is the original API's
    """A configured language; `python` unless given."""
    language: str | None = None
    """Another name for `languageType`."""
    variables: dict[str, Any] | list[Any] | None = None
    """Set before the code runs, by name, as the language's own values; in Bash, environment variables. Of lists, only
    the empty one is taken."""
    session_id: str | None = None
    """The session to run in; it is made when there is none of that name."""
    timeout: float | None = None
    """Seconds, up to `limits.max_timeout`; `limits.timeout` unless given."""
    stream: bool | None = None
    """Answer with events as they come. `Accept: text/event-stream` asks for the same."""
    files: Files = None
    """Written below the working directory before the code runs, by path."""
    fetch: Fetch = None
    """Paths of files to bring back although the run did not change them."""
    env: Env = None
    """Environment variables for this run alone, of those that `languages.env_allowed` lists."""


def from_text(fields: Mapping[str, str]) -> RunFields:
    """Read the text fields of a form or query; empty ones count as not given. Raises InvalidRequest."""
    check_names(fields, RunFields.__struct_fields__)
    if "code" not in fields:
        raise InvalidRequest('The field "code" is required.')
    return RunFields(
        code=fields["code"],
        languageType=fields.get("languageType") or None,
        language=fields.get("language") or None,
        variables=form_variables(fields.get("variables", "")),  # type: ignore[arg-type]
        session_id=fields.get("session_id") or None,
        timeout=_number(fields.get("timeout", "")),
        stream=_boolean(fields.get("stream", "")),
        **{name: form_json(name, fields.get(name, ""), wanted) for name, wanted in _JSON_FIELDS.items()},
    )


def run_request(
    fields: RunFields,
    *,
    tenant: TenantId,
    languages: Mapping[str, str],
    limits: Limits,
    from_query: bool = False,
    allow_stdin: bool = False,
    idempotency_key: str | None = None,
    env_allowed: Collection[str] = (),
    traceparent: str | None = None,
) -> RunRequest:
    """Check what the types cannot say. Raises InvalidRequest and UnsupportedLanguage."""
    language = _language(fields, languages)
    kernel_name = languages[language]
    code = plain_code(fields.code, is_python=kernel_name == PYTHON_KERNEL)
    if from_query and kernel_name == PYTHON_KERNEL:
        code = unescape_query_code(code)
    return RunRequest(
        tenant=tenant,
        code=code,
        language=language,
        variables=named_variables(fields.variables, kernel_name),
        timeout_s=_timeout(fields.timeout, limits),
        session_id=None if fields.session_id is None else sane_session_id(fields.session_id),
        allow_stdin=allow_stdin,
        idempotency_key=None if idempotency_key is None else _sane_key(idempotency_key),
        inputs=run_inputs(fields.files, fields.fetch, fields.env, env_allowed),
        traceparent=traceparent,
    )


def sane_session_id(text: str) -> SessionId:
    """A session's id as clients may choose it. Raises InvalidRequest."""
    if _SANE_SESSION_ID.fullmatch(text) is None:
        raise InvalidRequest(
            '"session_id" must be 1 to 128 letters, digits, dots, underscores, colons and hyphens (ASCII).'
        )
    return SessionId(text)


def _sane_key(key: str) -> str:
    if _SANE_KEY.fullmatch(key) is None:
        raise InvalidRequest("An Idempotency-Key must be 1 to 255 printable ASCII characters.")
    return key


def _language(fields: RunFields, languages: Mapping[str, str]) -> str:
    given = {name.strip().lower() for name in (fields.languageType, fields.language) if name}
    if len(given) > 1:
        raise InvalidRequest('"languageType" and "language" differ: give one of them.')
    return configured_language(given.pop() if given else None, languages)


def configured_language(name: str | None, languages: Mapping[str, str]) -> str:
    """The language of this name, or the default one. Raises UnsupportedLanguage."""
    language = (name or "").strip().lower() or DEFAULT_LANGUAGE
    if language not in languages:
        raise UnsupportedLanguage(
            f'The language "{shown(language)}" is not configured here: use one of {", ".join(sorted(languages))}.'
        )
    return language


def named_variables(variables: Mapping[str, Any] | list[Any] | None, kernel_name: str) -> Mapping[str, Any]:
    """Variables under the names that the language of these kernels gives them. Raises InvalidRequest."""
    if variables is None or variables == []:
        return {}
    if isinstance(variables, list):
        raise InvalidRequest('"variables" must be an object, as in {"x": 1}, not a list.')
    traits = traits_of(kernel_name)
    if traits.variables is None:
        return variables  # the service refuses them
    named: dict[str, Any] = {}
    for given, value in variables.items():
        if len(given) > _MAX_NAME_CHARACTERS:
            raise InvalidRequest(f'"variables" has a name of more than {_MAX_NAME_CHARACTERS} characters.')
        name = traits.variables.name(given)
        if name is None:
            raise InvalidRequest(
                f'"variables" has the name "{shown(given)}", which cannot be a variable in {traits.title}.'
            )
        if name in named:
            raise InvalidRequest(
                f'"variables" has two names that are the same "{shown(name)}" to {traits.title}: send one.'
            )
        named[name] = value
    if (fault := traits.variables.fault(named)) is not None:
        raise InvalidRequest(f'"variables" {fault}.')
    return named


def _timeout(timeout: float | None, limits: Limits) -> float:
    if timeout is None:
        return limits.timeout_s
    if not math.isfinite(timeout) or timeout <= 0:
        raise InvalidRequest('"timeout" must be a positive number of seconds.')
    if timeout > limits.max_timeout_s:
        raise InvalidRequest(f'"timeout" must not be above {limits.max_timeout_s:g} seconds here.')
    return timeout


def _number(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InvalidRequest('"timeout" must be a positive number of seconds.') from error


def _boolean(text: str) -> bool | None:
    word = text.strip().lower()
    if not word or word == "null":
        return None
    if word not in _TRUE | _FALSE:
        raise InvalidRequest('"stream" must be true or false.')
    return word in _TRUE
