"""The page at `/docs`, made of nothing but the OpenAPI document: HTML and one style sheet, no script, no other host."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from gateway.http.reference.style import STYLE
from gateway.http.reference.text import curl, fields, inline, paragraphs, parameters, table, type_of

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Document = Mapping[str, Any]


def page(document: Document) -> str:
    """The whole page."""
    info = document["info"]
    title = escape(info["title"])
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: HTTP reference</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#content">To the content</a>'
        f"<header><h1>{title} <small>{escape(info['version'])}</small></h1>{paragraphs(info['description'])}"
        f'<p>For programs: <a href="openapi.json">openapi.json</a>, OpenAPI {document["openapi"]}.</p></header>'
        f'<div class="columns"><nav aria-label="Contents">{"".join(_contents(document))}</nav>'
        f'<main id="content">{"".join(_main(document))}</main></div></body></html>\n'
    )


def _operations(document: Document, tag: str) -> Iterator[tuple[str, str, Document]]:
    """Path, method and description of what has this tag. HEAD is told of with GET."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"] and method != "head":
                yield path, method, operation


def _contents(document: Document) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2><ul>"
        for path, method, operation in _operations(document, tag["name"]):
            yield f'<li><a href="#{operation["operationId"]}">{_method(method)} {escape(path)}</a></li>'
        yield "</ul>"
    yield '<h2>Below</h2><ul><li><a href="#errors">Errors</a></li><li><a href="#types">Types</a></li></ul>'


def _method(method: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span>'


def _main(document: Document) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>{paragraphs(tag['description'])}"
        for path, method, operation in _operations(document, tag["name"]):
            yield from _operation(document, path, method, operation)
    yield '<h2 id="errors">Errors</h2>'
    yield from _errors(document)
    yield '<h2 id="types">Types</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield f'<h3 id="type-{name}"><a href="#type-{name}">{name}</a></h3>{paragraphs(schema.get("description", ""))}'
        yield fields(schema) if "properties" in schema else f"<p>{type_of(schema)}</p>"


def _operation(document: Document, path: str, method: str, operation: Document) -> Iterator[str]:
    name = operation["operationId"]
    yield f'<section aria-labelledby="{name}"><h3 id="{name}"><a href="#{name}">{_method(method)}'
    yield f'<code>{escape(path)}</code></a></h3><p class="summary">{inline(operation["summary"])}</p>'
    yield paragraphs(operation.get("description", ""))
    if not operation["security"]:
        yield "<p>No token is needed.</p>"
    given = [_resolved(document, parameter) for parameter in operation["parameters"]]
    yield f"<h4>Parameters</h4>{parameters(given)}"
    if "requestBody" in operation:
        yield f"<h4>Body</h4>{_body(operation['requestBody'])}"
    if "x-websocket" in operation:
        said = operation["x-websocket"]
        yield f"<h4>Messages</h4><p>Send {_types(said['send'])}. What comes is {_types(said['receive'])}.</p>"
    yield f"<h4>Answers</h4>{_answers(operation)}"
    if "101" not in operation["responses"]:
        yield f"<h4>Example</h4>{_listing(curl(document, path, method))}"
        yield from _example_answer(operation)
    yield "</section>"


def _body(body: Document) -> str:
    kinds = {type_of(media["schema"]) if media["schema"] else "bytes" for media in body["content"].values()}
    names = ", ".join(f"<code>{escape(name)}</code>" for name in body["content"])
    return f"<p>{' or '.join(kinds)}, as {names}{'' if body['required'] else '; it may be left out'}.</p>"


def _types(schemas: list[Document]) -> str:
    return " or ".join(type_of(schema) for schema in schemas)


def _answers(operation: Document) -> str:
    """What is particular to it, and links to the refusals."""
    responses: Mapping[str, Document] = operation["responses"]
    own = table(
        ("Status", "Type", "Meaning", "Headers"),
        (
            (
                f"<code>{status}</code>",
                "<br>".join(_media(name, media) for name, media in response.get("content", {}).items()),
                paragraphs(response["description"]),
                _headers(response),
            )
            for status, response in responses.items()
            if "$ref" not in response
        ),
    )
    refusals = ", ".join(
        f'<a href="#error-{status}">{status}</a>' for status, response in responses.items() if "$ref" in response
    )
    return f"{own}<p>Refused with {refusals}.</p>"


def _headers(response: Document) -> str:
    return ", ".join(f"<code>{name}</code>" for name in response["headers"] if name != "X-Request-Id")


def _media(name: str, media: Document) -> str:
    if "x-item" in media:
        return f"<code>{escape(name)}</code> of {type_of(media['x-item'])}"
    return type_of(media["schema"]) if name == "application/json" else f"<code>{escape(name)}</code>"


def _example_answer(operation: Document) -> Iterator[str]:
    for status, response in operation["responses"].items():
        for media in response.get("content", {}).values():
            if "example" in media:
                text = json.dumps(media["example"], ensure_ascii=False, indent=2)
                yield f"<p>The answer, {status}:</p>{_listing(text)}"
                return


def _listing(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text, quote=False)}</code></pre>'


def _errors(document: Document) -> Iterator[str]:
    yield '<p>A refusal is an <a href="#type-Error">Error</a>, or on the routes of Jupyter a '
    yield '<a href="#type-JupyterError">JupyterError</a>. Every answer has <code>X-Request-Id</code>.</p>'
    refusals = {
        name.removeprefix("Error"): response
        for name, response in document["components"]["responses"].items()
        if name.startswith("Error")
    }
    yield table(
        ("Status", "Codes", "Headers"),
        (
            (f'<code id="error-{status}">{status}</code>', paragraphs(response["description"]), _headers(response))
            for status, response in refusals.items()
        ),
    )


def _resolved(document: Document, value: Document) -> Document:
    """What a reference stands for."""
    while "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value
