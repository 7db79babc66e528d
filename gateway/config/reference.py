"""The configuration reference, docs/configuration.md, made from the sections: `python -m gateway.config.reference`.

It prints to standard output; a test compares the committed file with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Meta

from gateway.config.loader import VARIABLE_PREFIX
from gateway.config.sections import SECTIONS, Seconds, Section, bare_type, is_size

_HEADER = """\
# Configuration

Every key, with its default. The keys go into `config.yaml`, or into the environment under the name given here.
`python -m gateway.config.reference > docs/configuration.md` makes this page from `gateway/config/sections.py`.

Sizes are bytes, or numbers such as `512M` and `1.5G`, with K = 1024. Lists in the environment are YAML, or have commas.
`languages` (`CELLBLOCK_LANGUAGES`) maps what clients ask for to a Jupyter kernelspec of the kernel image; the default
is `{python: python3}`.
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
    return _HEADER + "".join(_section(section) for section in SECTIONS.values())


def _section(section: type[Section]) -> str:
    lines = [
        f"\n## {section.title}\n",
        "| Key | Type | Default | Bounds | Variable | Meaning |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cells(section, field)) + " |" for field in msgspec.structs.fields(section)]
    return "\n".join(lines) + "\n"


def _cells(section: type[Section], field: msgspec.structs.FieldInfo) -> Iterator[str]:
    metas: list[Meta] = [meta for meta in getattr(field.type, "__metadata__", ()) if isinstance(meta, Meta)]
    size = is_size(field.type)
    yield f"`{section.title}.{field.name}`"
    yield "size" if size else "seconds" if _is_seconds(metas) else _TYPES.get(bare_type(field.type), "list")
    yield _default(field.default, is_size=size)
    yield ", ".join(_bounds(metas, is_size=size))
    yield f"`{VARIABLE_PREFIX}{section.title}_{field.name}`".upper()
    yield next(meta.description for meta in metas if meta.description)


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
