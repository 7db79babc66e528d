"""`files`, `fetch` and `env` of a request: what a run is given beside its code. Pure; every refusal names the field.

Values of `env` may be secrets: no message shows one.
"""

from __future__ import annotations

import binascii
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Meta

from gateway.field_errors import near, shown
from gateway.http.parse.body import Repetitive
from gateway.http.parse.file_paths import why_no_file
from kernel_image.safe_directory import HIDDEN_PREFIX
from sessions.errors import InvalidRequest
from sessions.inputs import MAX_FETCHED, RunInputs

FILES_EXAMPLE = '{"data.csv": {"text": "a,b\\n1,2\\n"}}'
FETCH_EXAMPLE = '["data.csv"]'
ENV_EXAMPLE = '{"LANG": "C.UTF-8"}'

_MAX_FILES = 1000
_CONTENT = {"type": "string"}
_FILE = {
    "oneOf": [
        {"type": "object", "properties": {kind: _CONTENT}, "required": [kind], "additionalProperties": False}
        for kind in ("text", "base64")
    ]
}
# Read by hand, so that refusals can say more than their types would.
Files = Annotated[
    Any,
    Meta(
        extra_json_schema={"type": ["object", "null"], "additionalProperties": _FILE, "maxProperties": _MAX_FILES},
        examples=[{"data.csv": {"text": "a,b\n1,2\n"}}],
    ),
]
Fetch = Annotated[
    Any,
    Meta(
        extra_json_schema={"type": ["array", "null"], "items": {"type": "string"}, "maxItems": MAX_FETCHED},
        examples=[["data.csv"]],
    ),
]
Env = Annotated[
    Any, Meta(extra_json_schema={"type": ["object", "null"], "additionalProperties": {"type": "string"}}, examples=[{}])
]
_MAX_NAME_BYTES = 255  # what file systems take between two slashes
_MAX_VALUE_BYTES = 32 << 10  # execve(2) refuses to start a process with one of 128 KiB
_MOST_SHOWN = 5
_WHITE_SPACE = b" \t\r\n"
_CONTENTS = ("text", "base64")


def run_inputs(files: Any, fetch: Any, env: Any, env_allowed: Collection[str]) -> RunInputs | None:
    """What a run is given; None when that is nothing. Raises InvalidRequest."""
    given = RunInputs(input_files(files), _fetched(fetch), _environment(env, env_allowed))
    return given if given.files or given.fetch or given.env else None


def input_files(files: Any) -> Mapping[str, bytes]:
    """The content of files by path. Raises InvalidRequest."""
    if files is None:
        return {}
    if not isinstance(files, dict):
        raise InvalidRequest(f'"files" must be an object, as in {FILES_EXAMPLE}.')
    if isinstance(files, Repetitive):
        raise InvalidRequest(f'"files" has "{shown(files.repeated)}" more than once.')
    if len(files) > _MAX_FILES:
        raise InvalidRequest(f'"files" holds more than {_MAX_FILES} files.')
    for path in files:
        _check_path("files", path)
    # What is below a directory follows it at once where nothing sorts before the separator; paths have no NUL.
    for above, below in pairwise(sorted(path.replace("/", "\0") for path in files)):
        if below.startswith(f"{above}\0"):
            path = shown(above.replace("\0", "/"))
            raise InvalidRequest(f'"files" has "{path}" as a file and as a directory: it can be one of them.')
    return {path: _content(path, content) for path, content in files.items()}


def _fetched(fetch: Any) -> tuple[str, ...]:
    if fetch is None:
        return ()
    if not isinstance(fetch, list) or not all(isinstance(path, str) for path in fetch):
        raise InvalidRequest(f'"fetch" must be a list of paths, as in {FETCH_EXAMPLE}.')
    if len(fetch) > MAX_FETCHED:
        raise InvalidRequest(f'"fetch" holds more than {MAX_FETCHED} paths.')
    for path in fetch:
        _check_path("fetch", path)
    if (twice := _repeated(fetch)) is not None:
        raise InvalidRequest(f'"fetch" has "{shown(twice)}" more than once.')
    return tuple(fetch)


def _environment(env: Any, allowed: Collection[str]) -> Mapping[str, str]:
    if env is None:
        return {}
    if not isinstance(env, dict):
        raise InvalidRequest(f'"env" must be an object of strings, as in {ENV_EXAMPLE}.')
    if unknown := [name for name in env if name not in allowed]:
        names = ", ".join(f'"{shown(name)}"' for name in unknown[:_MOST_SHOWN])
        more = f" and {len(unknown) - _MOST_SHOWN} more" if len(unknown) > _MOST_SHOWN else ""
        known = f": {', '.join(sorted(allowed))}" if allowed else ", which are none"
        raise InvalidRequest(f'"env" may hold the names that `languages.env_allowed` lists{known}; not {names}{more}.')
    for name, value in env.items():
        if not isinstance(value, str):
            raise InvalidRequest(f'"env" must hold strings: "{shown(name)}" is none.')
        if "\0" in value or len(_utf8(f'"env": the value of "{shown(name)}"', value)) > _MAX_VALUE_BYTES:
            raise InvalidRequest(f'"env": the value of "{shown(name)}" is over {_MAX_VALUE_BYTES} bytes, or has a NUL.')
    return env


def _check_path(field: str, path: str) -> None:
    why = why_no_file(path)
    if why is None:
        if f"/{HIDDEN_PREFIX}" in f"/{path}":
            why = f"Names that begin with {HIDDEN_PREFIX} are Cellblock's own."
        elif max(map(len, _utf8(f'"{field}": the path "{shown(path)}"', path).split(b"/"))) > _MAX_NAME_BYTES:
            why = f"Each part of a file's path has at most {_MAX_NAME_BYTES} bytes."
    if why is not None:
        raise InvalidRequest(f'"{field}" has the path "{shown(path)}". {why}')


def _content(path: str, content: Any) -> bytes:
    named = f'"files": the file "{shown(path)}"'
    if not isinstance(content, dict):
        raise InvalidRequest(f'{named} must be an object with "text" or "base64".')
    for key in content:
        if key not in _CONTENTS:
            raise InvalidRequest(
                f'{named} has a field "{shown(key)}"{near(key, _CONTENTS) or "; it has text or base64."}'
            )
    given = {key: value for key, value in content.items() if value is not None}
    if len(given) != 1:
        raise InvalidRequest(f'{named} must have either "text" or "base64".')
    ((kind, value),) = given.items()
    if not isinstance(value, str):
        raise InvalidRequest(f'{named}: "{kind}" must be a string.')
    return _utf8(f'{named}: "text"', value) if kind == "text" else _from_base64(named, value)


def _utf8(named: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{named} has a lone surrogate, which cannot be encoded as UTF-8.") from None


def _from_base64(named: str, text: str) -> bytes:
    """The line breaks that `base64` puts in are allowed."""
    try:
        return binascii.a2b_base64(text.encode("ascii").translate(None, _WHITE_SPACE), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidRequest(f'{named}: "base64" is not valid Base64.') from None


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
