"""From texts, schemas and operations of the document to pieces of HTML, and to calls of curl. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

_LOCAL = "http://127.0.0.1:8000"
_CODE = re.compile(r"`([^`]+)`")


def inline(text: str) -> str:
    """A sentence, with what stands in backquotes as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text, quote=False))


def paragraphs(text: str) -> str:
    """Paragraphs, with an empty line between them."""
    return "".join(f"<p>{inline(part)}</p>" for part in text.split("\n\n") if part)


def type_of(schema: Mapping[str, Any]) -> str:  # noqa: PLR0911 - one for each kind of schema
    """A type in a few words; those that have a name are links."""
    match schema:
        case {"$ref": str() as reference}:
            name = escape(reference.rpartition("/")[2])
            return f'<a href="#type-{name}">{name}</a>'
        case {"anyOf": list() as options}:
            return " or ".join(dict.fromkeys(type_of(option) for option in options))
        case {"enum": list() as values}:
            return ", ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
        case {"const": value}:
            return f"<code>{escape(json.dumps(value))}</code>"
        case {"type": "array"}:
            return f"list of {type_of(schema.get('items', {}))}"
        case {"type": "object", "additionalProperties": dict() as values}:
            return f"object of {type_of(values)}"
        case {"type": str() as kind}:
            return f"{kind}{''.join(f', {form}' for form in _forms(schema))}"
        case _:
            return "anything"


def _forms(schema: Mapping[str, Any]) -> Iterator[str]:
    """What a value must be beyond its type."""
    if "format" in schema:
        yield escape(schema["format"])
    elif "pattern" in schema:
        yield f"like <code>{escape(schema['pattern'])}</code>"
    for name, words in (("exclusiveMinimum", "above"), ("minimum", "at least"), ("maximum", "at most")):
        if name in schema:
            yield f"{words} {schema[name]}"
    for name, words in (("minLength", "at least"), ("maxLength", "at most")):
        if name in schema:
            yield f"{words} {schema[name]} characters"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose cells are HTML. On small screens each cell has its title beside it."""
    titles = list(titles)
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(f"<tr>{''.join(_cells(titles, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(titles: list[str], row: Iterable[str]) -> Iterator[str]:
    for number, (title, cell) in enumerate(zip(titles, row, strict=True)):
        if number == 0:
            yield f'<th scope="row">{cell}</th>'
        elif cell:
            yield f'<td data-title="{title}"><div>{cell}</div></td>'
        else:
            yield "<td></td>"


def fields(schema: Mapping[str, Any]) -> str:
    """The fields of an object."""
    required = schema.get("required", ())
    return table(
        ("Field", "Type", "Meaning"),
        (
            (
                _name(name, is_required=name in required),
                type_of(field),
                inline(field.get("description", "")) + _default(field),
            )
            for name, field in schema["properties"].items()
        ),
    )


def parameters(given: Iterable[Mapping[str, Any]]) -> str:
    """The parameters of an operation."""
    return table(
        ("Parameter", "In", "Type", "Meaning"),
        (
            (
                _name(parameter["name"], is_required=parameter["required"]),
                parameter["in"],
                type_of(_schema(parameter)) + (", as JSON" if "content" in parameter else ""),
                inline(parameter.get("description", "")) + _default(_schema(parameter)),
            )
            for parameter in given
        ),
    )


def _name(name: str, *, is_required: bool) -> str:
    mark = ' <span class="required">required</span>' if is_required else ""
    return f"<code>{escape(name)}</code>{mark}"


def _schema(parameter: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its schema, whether it stands as it is or as JSON."""
    schema: Mapping[str, Any] = (parameter if "schema" in parameter else parameter["content"]["application/json"])[
        "schema"
    ]
    return schema


def _default(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return "" if default is None else f" <code>{escape(json.dumps(default))}</code> unless given."


# --- curl -------------------------------------------------------------------------------------------------------------


def curl(document: Mapping[str, Any], path: str, method: str) -> str:
    """A call of the operation with its examples, as one types it."""
    operation = document["paths"][path][method]
    server = document["servers"][0]["url"]
    words, query = ["curl"], []
    for parameter in operation["parameters"]:
        if parameter.get("in") == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(str(parameter.get("example", "x"))))
        example = parameter.get("example", parameter.get("content", {}).get("application/json", {}).get("example"))
        if parameter.get("in") == "query" and example is not None:
            text = example if isinstance(example, str) else json.dumps(example)
            query += ["--data-urlencode", f"{parameter['name']}={text}"]
    sent = list(_body(operation))
    if query:
        words += ["-G"]
    elif method not in ("get", "put") and not (method == "post" and sent):
        words += ["-X", method.upper()]
    words += [(_LOCAL if server == "/" else server) + path]
    if operation["security"]:
        words += ["-H", "Authorization: Bearer <token>"]
    return shlex.join([*words, *query, *sent])


def _body(operation: Mapping[str, Any]) -> Iterator[str]:
    for media_type, media in operation.get("requestBody", {}).get("content", {}).items():
        for example in media.get("examples", {}).values():
            if media_type == "application/json":
                yield from ("-H", f"Content-Type: {media_type}", "-d", json.dumps(example["value"]))
            else:
                yield from ("--data-binary", example["value"], "-X", "PUT")
            return
