"""The configuration reference, docs/configuration.md, made from the sections: `python -m gateway.config.reference`.

It prints to standard output; a test compares the committed file with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, get_origin

import msgspec
from msgspec import Meta

from gateway.config.loader import VARIABLE_PREFIX, is_size
from gateway.config.sections import SECTIONS
from gateway.field_meanings import meanings
from sessions.settings import Seconds, Section

_HEADER = """\
# Configuration

Every key, with its default. The keys go into `config.yaml`, or into the environment under the name given here.
`python -m gateway.config.reference > docs/configuration.md` makes this page from `sessions/settings.py` and
`gateway/config/sections.py`.

A variable's value can be in a file: `CELLBLOCK_DATABASE_URL_FILE=/run/secrets/database_url` stands for
`CELLBLOCK_DATABASE_URL`, and so with each of them but those of `languages`. An empty file is refused.

Sizes are bytes, or numbers such as `512M` and `1.5G`, with K = 1024. Lists in the environment are YAML, or have commas.
`languages` (`CELLBLOCK_LANGUAGES`) maps what clients ask for to a Jupyter kernelspec of the kernel image; the default
is `{python: python3, bash: bash, javascript: deno, typescript: deno}`, and [languages.md](languages.md) says more. Its
key `env_allowed` (`CELLBLOCK_LANGUAGES_ENV_ALLOWED`) is no language: it lists the environment variables that `env` of a
request may set for its run, e.g. `[API_KEY]`; the default is none.
"""
_TYPES = {
    str: "text",
    int: "number",
    float: "decimal number",
    bool: "true or false",
    bool | None: "true, false or null",
}


def render() -> str:
    """The whole page, in Markdown."""
    return _HEADER + "".join(_section(title, section) for title, section in SECTIONS.items())


def _section(title: str, section: type[Section]) -> str:
    found = meanings(section)
    lines = [f"\n## {title}\n", "| Key | Type | Default | Bounds | Variable | Meaning |", "|---|---|---|---|---|---|"]
    lines += [
        "| " + " | ".join([*_cells(title, field), found[field.name]]) + " |"
        for field in msgspec.structs.fields(section)
    ]
    return "\n".join(lines) + "\n"


def _cells(title: str, field: msgspec.structs.FieldInfo) -> Iterator[str]:
    metas: list[Meta] = [meta for meta in getattr(field.type, "__metadata__", ()) if isinstance(meta, Meta)]
    size = is_size(field.type)
    kind = field.type.__origin__ if get_origin(field.type) is Annotated else field.type
    yield f"`{title}.{field.encode_name}`"
    yield "size" if size else "seconds" if _is_seconds(metas) else _TYPES.get(kind, "list")
    yield _default(field.default, is_size=size)
    yield ", ".join(_bounds(metas, is_size=size))
    yield f"`{VARIABLE_PREFIX}{title}_{field.encode_name}`".upper()


def _is_seconds(metas: list[Meta]) -> bool:
    return any(meta in metas for meta in Seconds.__metadata__)  # type: ignore[attr-defined]


def _default(value: Any, *, is_size: bool) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{_number(value, is_size=is_size)}`" if value != "" else "empty"


def _bounds(metas: list[Meta], *, is_size: bool) -> Iterator[str]:
    for meta in metas:
        for words, bound in (("above", meta.gt), ("at least", meta.ge), ("at most", meta.le)):
            if bound is not None:
                yield f"{words} {_number(bound, is_size=is_size)}"


def _number(value: Any, *, is_size: bool) -> str:
    """A size as a person would write it; other values as they are in YAML."""
    if is_size:
        for letter, unit in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
            if value % unit == 0:
                return f"{value // unit}{letter}"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(render())
