"""From a request's body or query to named fields: JSON, URL-encoded and multipart forms.

It knows formats, not what the fields mean; that is `run_request`'s business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

import msgspec
from tornado.httputil import HTTPFile, HTTPHeaders, HTTPInputError, parse_body_arguments

from gateway.field_errors import complaint, near, shown
from sessions import quick_json
from sessions.errors import InvalidJSON, InvalidRequest, UnsupportedMediaType
from sessions.sanitize import has_too_many_values, is_deeper

MAX_DEPTH = 100
"""The deepest nesting that is accepted, since later code may walk it recursively."""

MAX_JSON_VALUES = 250_000
MAX_JSON_CONTAINERS = 100_000
"""All values, and the lists and objects among them: decoding so many blocks the event loop for 0.1 to 0.2 s."""

MAX_FORM_FIELDS = 100
_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_FILES = re.compile('"' + "".join(rf"(?:{letter}|\\u00{ord(letter):02x})" for letter in "files") + '"', re.IGNORECASE)
"""The name `files` in a JSON text, however it is written."""

_Fields = TypeVar("_Fields", bound=msgspec.Struct)


def check_media_type(headers: HTTPHeaders) -> str:
    """The body's media type without parameters. Raises UnsupportedMediaType when we do not read it.

    A missing Content-Type means JSON.
    """
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType("Send the body without a Content-Encoding: compressed bodies are not read here.")
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower() or "application/json"
    if media_type in ("application/json", _URLENCODED, _MULTIPART) or media_type.endswith("+json"):
        return media_type
    raise UnsupportedMediaType


def is_form(media_type: str) -> bool:
    """Whether every field arrives as text."""
    return media_type in (_URLENCODED, _MULTIPART)


def fields_of(kind: type[_Fields], value: Mapping[str, Any]) -> _Fields:
    """Check the names and types of a JSON object's fields against a struct. Raises InvalidRequest."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_sentence(complaint(error, kind.__struct_fields__))) from error
    except (UnicodeError, OverflowError) as error:
        raise InvalidRequest("A field's name or number cannot be read.") from error


def check_names(fields: Mapping[str, str], known: Collection[str]) -> None:
    """Refuse fields of a form or query that do not exist. Raises InvalidRequest."""
    for name in fields:
        if name not in known:
            raise InvalidRequest(_sentence(f'there is no field "{shown(name)}"{near(name, known)}'))


def _sentence(text: str) -> str:
    """Capital letter and full stop, unless it ends in a question."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith("?") else text + "."


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object as `parse_json` does. Raises InvalidJSON."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidJSON('The body must be one JSON object such as {"code": "print(1)"}.')
    return value


def parse_json(body: bytes) -> Any:
    """Parse any JSON strictly, except for lone surrogates and NUL, which Python code may contain.

    Raises InvalidJSON.
    """
    try:
        text = body.decode("utf-8-sig")
        return _parse_json(text, has_files=_FILES.search(text) is not None)
    except UnicodeDecodeError as error:
        raise InvalidJSON("The body is not UTF-8: send one JSON object, encoded as UTF-8.") from error
    except _JSONMistake as error:
        raise InvalidJSON(f"The body {error}: send one JSON object.") from error


def form_variables(text: str) -> Mapping[str, Any] | list[Any] | None:
    """The `variables` field of a form or query: a JSON string. Raises InvalidRequest."""
    value = form_json("variables", text, 'a JSON object, as in {"x": 1}')
    if value is not None and not isinstance(value, dict | list):
        raise InvalidRequest('"variables" must be a JSON object, as in {"x": 1}.')
    return value


def form_json(name: str, text: str, wanted: str) -> Any:
    """A field of a form or query that is a JSON string; an empty one is null. Raises InvalidRequest."""
    if not text.strip():
        return None
    try:
        return _parse_json(text, has_files=name == "files")
    except _JSONMistake as error:
        raise InvalidRequest(f'"{name}" {error}: send {wanted}.') from error


class _JSONMistake(Exception):
    """What is wrong with a JSON text, as the end of a sentence."""


class Repetitive(dict[str, Any]):
    """An object in which a name is `repeated`. The last of the values is here."""

    repeated: str


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    repetitive = Repetitive(members)
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            repetitive.repeated = name
            break
        seen.add(name)
    return repetitive


def _parse_json(text: str, *, has_files: bool = False) -> Any:
    """Decode JSON of bounded cost. Raises _JSONMistake.

    Where it `has_files`, an object whose names are not all different is a `Repetitive`.
    """
    if has_too_many_values(text, max_values=MAX_JSON_VALUES, max_containers=MAX_JSON_CONTAINERS):
        raise _JSONMistake(
            f"holds more than {MAX_JSON_VALUES} values, or more than {MAX_JSON_CONTAINERS} lists and objects"
        )
    try:
        value = _NOTING.decode(text) if has_files else quick_json.load(text, _STRICT)
    except json.JSONDecodeError as error:
        raise _JSONMistake(f"is not valid JSON at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _JSONMistake("is nested too deeply") from error
    except ValueError as error:  # a number of more than 4,300 digits
        raise _JSONMistake("holds a number of too many digits") from error
    if is_deeper(value, MAX_DEPTH):
        raise _JSONMistake(f"is nested more than {MAX_DEPTH} levels deep")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _JSONMistake(f"holds {name}, which is no JSON (null or a string is)")


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)
_NOTING = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_of)


def parse_query(query: str) -> dict[str, str]:
    """Fields of a query string. Raises InvalidRequest."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS)
    except UnicodeDecodeError as error:
        raise InvalidRequest("The query is not percent-encoded UTF-8.") from error
    except ValueError as error:
        raise InvalidRequest("There are too many fields in the query.") from error
    return _each_once(pairs)


def parse_form(media_type: str, content_type: str, body: bytes) -> dict[str, str]:
    """Fields of a form; the content of an uploaded file counts as its field's text. Raises InvalidRequest."""
    if body.lstrip()[:1] == b"{":
        raise InvalidRequest(
            f"The body looks like JSON but is declared as {media_type}: send the header "
            "`Content-Type: application/json` (curl: -H 'Content-Type: application/json')."
        )
    if media_type == _URLENCODED:
        try:
            return parse_query(body.decode("ascii"))
        except UnicodeDecodeError as error:
            raise InvalidRequest("The form is not percent-encoded UTF-8.") from error
    arguments: dict[str, list[bytes]] = {}
    files: dict[str, list[HTTPFile]] = {}
    try:
        parse_body_arguments(content_type, body, arguments, files)
        pairs = [(name, value.decode()) for name, values in arguments.items() for value in values]
        pairs += [(name, file.body.decode()) for name, several in files.items() for file in several]
    except UnicodeDecodeError as error:
        raise InvalidRequest("The form holds text that is not UTF-8.") from error
    except (HTTPInputError, ValueError) as error:
        raise InvalidRequest("The multipart form is malformed.") from error
    return _each_once(pairs)


def _each_once(pairs: list[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f'The field "{name[:60]}" is given more than once.')
        fields[name] = value
    return fields
