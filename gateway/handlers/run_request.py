"""From named fields to a RunRequest: types, bounds, names, languages. Pure, and every refusal names the field."""

from __future__ import annotations

import keyword
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.complaints import complaint, near, shown
from gateway.handlers.code_text import strip_fence, unescape_query_code
from gateway.handlers.fields import form_variables
from sessions.errors import InvalidRequest, UnsupportedLanguage
from sessions.model import Limits, RunRequest, TenantId

DEFAULT_LANGUAGE = "python"
_MAX_NAME_CHARACTERS = 255  # normalizing takes quadratic time where a name is nothing but combining marks
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


class RunFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of `POST /runcode`, by type alone."""

    code: str
    languageType: str | None = None  # noqa: N815 - the name is the original API's
    language: str | None = None
    variables: dict[str, Any] | list[Any] | None = None
    session_id: str | None = None
    timeout: float | None = None
    stream: bool | None = None


def from_json(value: Mapping[str, Any]) -> RunFields:
    """Check the types of a JSON object's fields. Raises InvalidRequest."""
    try:
        return msgspec.convert(value, RunFields, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_sentence(complaint(error, RunFields.__struct_fields__))) from error
    except (UnicodeError, OverflowError) as error:
        raise InvalidRequest("A field's name or number cannot be read.") from error


def from_text(fields: Mapping[str, str]) -> RunFields:
    """Read the text fields of a form or query; empty ones count as not given. Raises InvalidRequest."""
    known = RunFields.__struct_fields__
    for name in fields:
        if name not in known:
            raise InvalidRequest(_sentence(f'there is no field "{shown(name)}"{near(name, known)}'))
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
    )


def run_request(
    fields: RunFields, *, tenant: TenantId, languages: Mapping[str, str], limits: Limits, from_query: bool = False
) -> RunRequest:
    """Check what the types cannot say. Raises InvalidRequest and UnsupportedLanguage."""
    if fields.session_id is not None:
        raise InvalidRequest('Sessions are not available in this version: leave "session_id" out.')
    if fields.stream:
        raise InvalidRequest('Streaming is not available in this version: leave "stream" out.')
    language = _language(fields, languages)
    code = strip_fence(fields.code)
    if from_query and language == DEFAULT_LANGUAGE:
        code = unescape_query_code(code)
    return RunRequest(
        tenant=tenant,
        code=code,
        language=language,
        variables=_variables(fields.variables),
        timeout_s=_timeout(fields.timeout, limits),
    )


def _language(fields: RunFields, languages: Mapping[str, str]) -> str:
    given = {name.strip().lower() for name in (fields.languageType, fields.language) if name}
    if len(given) > 1:
        raise InvalidRequest('"languageType" and "language" differ: give one of them.')
    language = given.pop() if given else DEFAULT_LANGUAGE
    if language not in languages:
        raise UnsupportedLanguage(
            f'The language "{shown(language)}" is not configured here: use one of {", ".join(sorted(languages))}.'
        )
    return language


def _variables(variables: Mapping[str, Any] | list[Any] | None) -> Mapping[str, Any]:
    if variables is None or variables == []:
        return {}
    if isinstance(variables, list):
        raise InvalidRequest('"variables" must be an object, as in {"x": 1}, not a list.')
    named: dict[str, Any] = {}
    for given, value in variables.items():
        name = _python_name(given)
        if name in named:
            raise InvalidRequest(f'"variables" has two names that are the same "{shown(name)}" to Python: send one.')
        named[name] = value
    return named


def _python_name(given: str) -> str:
    """The name as Python reads it in source: NFKC, https://docs.python.org/3/reference/lexical_analysis.html."""
    if len(given) > _MAX_NAME_CHARACTERS:
        raise InvalidRequest(f'"variables" has a name of more than {_MAX_NAME_CHARACTERS} characters.')
    name = unicodedata.normalize("NFKC", given)
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidRequest(f'"variables" has the name "{shown(given)}", which cannot be a variable in Python.')
    return name


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


def _sentence(text: str) -> str:
    """Capital letter and full stop, unless it ends in a question."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith("?") else text + "."
