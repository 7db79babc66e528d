"""The configuration: reading config.yaml and CELLBLOCK_* variables, and whether they make sense together.

It reads the file and the environment it is given, once, and starts nothing. The keys themselves are in
`gateway.config.sections`; what is built from them is `gateway.app`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta

from gateway.addresses import TOKEN_VARIABLE, URL_VARIABLE
from gateway.auth import Token
from gateway.config.sections import SECTIONS, AuthSection, Config
from gateway.field_errors import complaint, near, shown
from sessions.errors import Misconfigured
from sessions.settings import EngineSettings, Section

__all__ = ["Config", "Token", "load", "parse_size"]

DEFAULT_FILE = "config.yaml"
VARIABLE_PREFIX = "CELLBLOCK_"
FILE_VARIABLE = "CELLBLOCK_CONFIG"
ENGINES = ("auto", "docker", "process")
ZYGOTES = ("auto", "off")
ENV_ALLOWED = "env_allowed"
IN_FILE = "_FILE"
"""Behind the name of a variable: its value is in a file."""

_OTHER_VARIABLES = {FILE_VARIABLE, URL_VARIABLE, TOKEN_VARIABLE}
"""No keys: where the configuration is, and what clients read."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file, lay the environment over it, and check the whole.

    `path` None means CELLBLOCK_CONFIG, else ./config.yaml where there is one, else the built-in defaults.
    Raises Misconfigured with one sentence that names the key.
    """
    raw = _read(path, environ)
    for variable, value in sorted(environ.items()):
        if variable.startswith(VARIABLE_PREFIX) and variable not in _OTHER_VARIABLES:
            _apply_variable(raw, variable, value, environ)
    if (port := environ.get("PORT")) and "CELLBLOCK_SERVER_PORT" not in environ:
        raw.setdefault("server", {})["port"] = _parse_yaml("PORT", port)
    config = _convert(raw)
    _check(config)
    return config


def _read(path: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """The file's content as nested plain dicts, without judging the keys."""
    if path is None and environ.get(FILE_VARIABLE):
        path = Path(environ[FILE_VARIABLE])
    if path is None:
        path = Path(DEFAULT_FILE)
        if not path.exists():
            return {}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Misconfigured(f"The configuration file {path} cannot be read: {reason}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise Misconfigured(f"The configuration file {path} is not valid YAML: {_one_line(error)}.") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise Misconfigured(f"The configuration file {path} must hold sections such as `server:` at its top level.")
    # A section with everything commented out reads as null.
    return {str(title): ({} if section is None else section) for title, section in raw.items()}


def _apply_variable(raw: dict[str, Any], variable: str, value: str, environ: Mapping[str, str]) -> None:
    """Lay one CELLBLOCK_<SECTION>_<KEY> over `raw`, or one CELLBLOCK_<SECTION>_<KEY>_FILE, whose value is in a file."""
    title, _, key = variable.removeprefix(VARIABLE_PREFIX).lower().partition("_")
    if title in SECTIONS and key.endswith(IN_FILE.lower()):
        direct = variable[: -len(IN_FILE)]
        if direct in environ:
            raise Misconfigured(f"Both {shown(direct)} and {shown(variable)} are set: keep one of them.")
        value, key = _read_value(variable, value), key.removesuffix(IN_FILE.lower())
    if title == "languages":
        if key:
            given = _parse_value(tuple[str, ...], variable, value) if key == ENV_ALLOWED else value
            raw["languages"] = {**(raw.get("languages") or {}), key: given}
        else:
            raw["languages"] = _parse_yaml(variable, value)
        return
    section = SECTIONS.get(title)
    if section is None or key not in section.__struct_encode_fields__:
        raise Misconfigured(f"The environment variable {shown(variable)} means nothing{near(variable, _variables())}")
    kept = raw.setdefault(title, {})
    if not isinstance(kept, dict):
        raise Misconfigured(f'The section "{title}" must hold keys and values.')
    kept[key] = _parse_value(types_of_keys(section)[key], variable, value)


def _read_value(variable: str, path: str) -> str:
    """The value that a file holds: all of it, but for a line end behind it. Raises Misconfigured."""
    try:
        value = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Misconfigured(f"The file {path}, which {shown(variable)} names, cannot be read: {reason}.") from error
    if not value.strip():
        raise Misconfigured(f"The file {path}, which {shown(variable)} names, is empty: put the value into it.")
    return value


def types_of_keys(section: type[Section]) -> dict[str, Any]:
    """The type of each key of a section, by its name in the configuration."""
    return {field.encode_name: field.type for field in msgspec.structs.fields(section)}


def is_size(kind: object) -> bool:
    """Whether a key of this type is given in bytes, and may be written as a person would."""
    return any(isinstance(meta, Meta) and bool(meta.extra) for meta in getattr(kind, "__metadata__", ()))


def _parse_value(kind: Any, variable: str, value: str) -> Any:
    """The value of a variable: text for text keys, YAML for all others; `a, b` will do for a list."""
    if kind is str:
        return value
    parsed = _parse_yaml(variable, value)
    if getattr(kind, "__origin__", None) is tuple:
        if parsed is None:
            return []
        if not isinstance(parsed, list):
            return [item.strip() for item in value.split(",") if item.strip()]
    return parsed


def _parse_yaml(variable: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise Misconfigured(f"The environment variable {variable} is not valid YAML: {_one_line(error)}.") from error


def _variables() -> list[str]:
    """Every variable there is, for suggestions."""
    names = [
        f"{VARIABLE_PREFIX}{title}_{key}".upper()
        for title, section in SECTIONS.items()
        for key in section.__struct_encode_fields__
    ]
    languages = f"{VARIABLE_PREFIX}LANGUAGES"
    return [*names, *_OTHER_VARIABLES, languages, f"{languages}_{ENV_ALLOWED}".upper()]


def _convert(raw: Mapping[str, Any]) -> Config:
    """Give every section its type. Raises Misconfigured naming the key."""
    titles = [*SECTIONS, "languages"]
    sections: dict[str, Any] = {}
    for title, value in raw.items():
        section = SECTIONS.get(title)
        if title == "languages":
            sections |= _convert_languages(value)
        elif section is None:
            raise Misconfigured(f'The configuration has no section "{shown(title)}"{near(title, titles)}')
        elif not isinstance(value, dict):
            raise Misconfigured(f'The section "{title}" must hold keys and values.')
        else:
            sections[title] = _convert_section(title, section, value)
    return Config(**sections)


def _convert_section(title: str, section: type[Section], value: Mapping[Any, Any]) -> Section:
    kinds = types_of_keys(section)
    prepared = {str(key): _prepare(f"{title}.{key}", kinds.get(str(key)), item) for key, item in value.items()}
    try:
        return msgspec.convert(prepared, section)
    except msgspec.ValidationError as error:
        known = section.__struct_encode_fields__ + (Token.__struct_fields__ if section is AuthSection else ())
        message = complaint(error, known, prefix=f"{title}.")
        raise Misconfigured(f"The configuration is not valid: {message}") from error


def _convert_languages(value: Any) -> dict[str, Any]:
    """`languages`, and `env_allowed`, which is a key among them and no language. Either may be left out."""
    if not isinstance(value, dict) or ENV_ALLOWED not in value:
        return {"languages": _convert_names(value)}
    names = {key: item for key, item in value.items() if key != ENV_ALLOWED}
    allowed = value[ENV_ALLOWED]
    if allowed is None:
        allowed = []
    if not isinstance(allowed, list) or not all(isinstance(name, str) for name in allowed):
        raise Misconfigured(f'"languages.{ENV_ALLOWED}" must be a list of names, as in [API_KEY, LANG].')
    for name in allowed:
        if _ENV_NAME.fullmatch(name) is None:
            raise Misconfigured(
                f'"languages.{ENV_ALLOWED}" holds "{shown(name)}": give letters, digits and underscores (ASCII), no '
                "digit first."
            )
    return {ENV_ALLOWED: tuple(dict.fromkeys(allowed)), **({"languages": _convert_names(names)} if names else {})}


def _convert_names(value: Any) -> dict[str, str]:
    try:
        languages = msgspec.convert(value, dict[str, str])
    except msgspec.ValidationError as error:
        raise Misconfigured(
            "`languages` must map names to Jupyter kernelspec names, as in `python: python3`."
        ) from error
    if not languages:
        raise Misconfigured("`languages` must name at least one language, as in `python: python3`.")
    return {name.lower(): kernel_name for name, kernel_name in languages.items()}


def _prepare(key: str, kind: object, value: Any) -> Any:
    """Understand human sizes, bare token hashes and YAML's own idea of `off`, which msgspec's types do not say."""
    if key == "engine.zygote" and isinstance(value, bool):
        return "on" if value else "off"
    if key == "auth.tokens":
        if value is None:
            return []
        if isinstance(value, list):
            return [{"sha256": item} if isinstance(item, str) else item for item in value]
    if isinstance(value, str) and is_size(kind):
        return parse_size(value, key)
    return value


def parse_size(text: str, key: str) -> int:
    """Bytes of "512M", "1.5 GiB", "64kb" or "4096". Raises Misconfigured naming `key`."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgt])(?:i?b)?|b)?\s*", text, re.IGNORECASE)
    if match is None:
        raise Misconfigured(f'"{key}" must be a size in bytes such as 512M or 1048576, not "{shown(text)}".')
    exponent = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * 1024**exponent)


def _check_engine(engine: EngineSettings) -> None:
    if engine.name not in ENGINES:
        raise Misconfigured(f'"engine.name" must be auto, docker or process{near(engine.name, ENGINES)}')
    if engine.zygote not in ZYGOTES:
        raise Misconfigured(f'"engine.zygote" must be auto or off{near(engine.zygote, ZYGOTES)}')


def _check(config: Config) -> None:
    """What no single key can tell. Raises Misconfigured."""
    server, auth, engine = config.server, config.auth, config.engine
    _check_engine(engine)
    if not config.is_loopback and not auth.is_required:
        raise Misconfigured(
            f"`server.host` is {server.host}, which other machines can reach, and no token is required: set "
            "`auth.required: true` and make one with `cellblock token create`, or listen on 127.0.0.1."
        )
    if not config.is_loopback and engine.name == "process":
        raise Misconfigured(
            f"The process engine isolates nothing, so it listens on loopback only: set `server.host` to 127.0.0.1 "
            f"instead of {server.host}, or use the docker engine."
        )
    if config.limits.timeout_s > config.limits.max_timeout_s:
        raise Misconfigured('"limits.timeout" must not be above "limits.max_timeout".')
    if config.pool.size > config.pool.max:
        raise Misconfigured('"pool.size" must not be above "pool.max".')
    if server.public_url and not _is_web_address(server.public_url, path_allowed=True):
        raise Misconfigured('"server.public_url" must be an address such as https://cells.example.org.')
    for origin in server.allowed_origins:
        if not _is_web_address(origin, path_allowed=False):
            raise Misconfigured(
                f'"server.allowed_origins" holds "{shown(origin)}": give each as https://chat.example.org, no path.'
            )


def _is_web_address(text: str, *, path_allowed: bool) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    plain = not parts.query and not parts.fragment and "@" not in parts.netloc
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and (path_allowed or not parts.path)


def _one_line(error: Exception) -> str:
    """A YAML error without its code extract, which may hold a token."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or type(error).__name__
    return f"{problem} (line {mark.line + 1})" if mark is not None else str(problem)
