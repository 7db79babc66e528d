"""The OpenAPI document, from the table of routes and what the other modules say of each: one dictionary, JSON-ready.

https://spec.openapis.org/oas/v3.1.1.html. What it cannot say is in extensions: `x-item`, the type of what a stream
consists of, and `x-websocket`, the types of messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gateway.http.base.errors import INTERNAL_SENTENCE, STATUS_OF_CODE
from gateway.http.base.route import Route
from gateway.http.base.websocket import SocketHandler
from gateway.http.description.answers import Error
from gateway.http.description.jupyter_answers import JupyterError
from gateway.http.description.operation import FORMS, JSON, Answer, Body, Operation, Stream
from gateway.http.description.parameters import ANSWER_HEADERS, PATH_PARAMETERS, REQUEST_HEADERS
from gateway.http.description.schemas import Schemas, is_text
from gateway.http.description.table import OPERATIONS
from gateway.http.jupyter.handler import JupyterHandler
from sessions.errors import CellblockError

_INTRODUCTION = """\
Runs code in sandboxes, and keeps sessions for those who want them.

Bodies are JSON in UTF-8, but for the content of files. Times are ISO 8601 in UTC with microseconds, sizes are bytes, \
durations seconds. Every route takes `OPTIONS` too, and tells its methods in `Allow`; another method is a 405."""
_TAGS = {
    "Run code": "Code in, its answer or its events out.",
    "Runs": "Runs, past and present, and what they have made.",
    "Sessions": "Kernels that you keep, with their variables and files.",
    "Jupyter": "What Jupyter clients ask of a server. Kernels are sessions.",
    "Operation": "Health, and what there is.",
}
_TAG_OF_PATH = {
    "runcode": "Run code",
    "runs": "Runs",
    "image": "Runs",
    "file": "Runs",
    "sessions": "Sessions",
    "api": "Jupyter",
    "kernelspecs": "Jupyter",
}
_ALWAYS = ("invalid_request", "forbidden", "too_large", "internal", "unavailable")
"""What any request may be refused with."""

_HEADERS_OF_STATUS = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}
_PARAMETER = re.compile(r"\{(\w+)\}")


def document(routes: Iterable[Route], *, version: str, server_url: str, needs_token: bool) -> dict[str, Any]:
    """The whole document."""
    listed = [route for route in routes if route.is_listed]
    schemas = Schemas(_kinds())
    queries = Schemas({operation.query for operation in OPERATIONS.values() if operation.query is not None})
    paths = {
        route.path: {
            method.lower(): _operation(route, method, schemas, queries, needs_token) for method in route.methods
        }
        for route in listed
    }
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Cellblock",
            "version": version,
            "description": _INTRODUCTION,
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": server_url or "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": dict(_error_responses(schemas)),
            "parameters": {"X-Request-Id": _header_parameter("X-Request-Id")},
            "headers": ANSWER_HEADERS,
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _said(route: Route, method: str) -> Operation:
    """What is said of a method; where nothing is, which no test lets pass, what its handler says of itself."""
    said = OPERATIONS.get(f"{'GET' if method == 'HEAD' else method} {route.path}")
    return said or Operation((route.handler.__doc__ or "").partition("\n")[0], {})


_SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of `auth.tokens`. `Authorization: token <token>` is the same.",
    },
    "query": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The token, on the routes of Jupyter. It counts before the header; an empty one counts as none.",
    },
    "subprotocol": {
        "type": "apiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": "For browsers, on WebSockets: `base64url.bearer.authorization.cellblock.<token>`, beside the "
        "name of what is spoken.",
    },
}


def _kinds() -> Iterator[Any]:
    yield from (Error, JupyterError)
    for operation in OPERATIONS.values():
        for answer in operation.answers.values():
            for kind in answer.content.values():
                yield kind.of if isinstance(kind, Stream) else kind
        if operation.body is not None:
            yield operation.body.type
        yield from operation.sends.values()
        yield from operation.receives


# --- one operation ----------------------------------------------------------------------------------------------------


def _operation(
    route: Route,
    method: str,
    schemas: Schemas,
    queries: Schemas,
    needs_token: bool,  # noqa: FBT001
) -> dict[str, Any]:
    said = _said(route, method)
    is_jupyter = issubclass(route.handler, JupyterHandler)
    shown: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", route.path)]),
        "tags": [_TAG_OF_PATH.get(route.path.split("/")[1], "Operation")],
        "summary": said.summary if method != "HEAD" else f"{said.summary}: the headers alone",
    }
    if said.details:
        shown["description"] = said.details
    shown["parameters"] = list(_parameters(route, said, queries))
    if said.body is not None:
        shown["requestBody"] = _body(said.body, schemas)
    shown["responses"] = _responses(route, method, said, schemas)
    if said.sends or said.receives:
        shown["x-websocket"] = {
            "send": [schemas.of(kind) for kind in said.sends.values()],
            "receive": [schemas.of(kind) for kind in said.receives],
        }
    wanted: list[dict[str, Any]] = [{"bearer": []}, {"query": []}] if is_jupyter else [{"bearer": []}]
    if issubclass(route.handler, SocketHandler):
        wanted.append({"subprotocol": []})
    shown["security"] = wanted if needs_token and route.needs_token else []
    return shown


def _parameters(route: Route, said: Operation, queries: Schemas) -> Iterator[dict[str, Any]]:
    for match in _PARAMETER.finditer(route.path):
        described = PATH_PARAMETERS.get(route.path[: match.end()], {"schema": {"type": "string"}})
        yield {"name": match[1], "in": "path", "required": True, **described}
    for name, schema, is_required in queries.fields(said.query) if said.query is not None else ():
        shown: dict[str, Any] = {"name": name, "in": "query", "required": is_required}
        if "description" in schema:
            shown["description"] = schema["description"]
        plain = {key: value for key, value in schema.items() if key != "description"}
        example = {"example": said.example[name]} if name in said.example else {}
        if is_text(plain):
            yield {**shown, "schema": plain, **example}
        else:
            yield {**shown, "content": {JSON: {"schema": plain, **example}}}
    yield from map(_header_parameter, said.headers)
    yield {"$ref": "#/components/parameters/X-Request-Id"}


def _header_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, **REQUEST_HEADERS[name]}


def _body(body: Body, schemas: Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {"schema": schemas.of(body.type)} for media_type in body.media_types}
    first = content[body.media_types[0]]
    if body.examples:
        first["examples"] = {name: {"value": value} for name, value in body.examples.items()}
    for media_type in FORMS:
        if media_type in content:
            texts = {name: is_text(schema) for name, schema, _ in schemas.fields(body.type)}
            content[media_type]["encoding"] = {
                name: {"contentType": JSON} for name, is_plain in texts.items() if not is_plain
            }
    return {"required": body.is_required, "content": content}


# --- answers ----------------------------------------------------------------------------------------------------------


def _responses(route: Route, method: str, said: Operation, schemas: Schemas) -> dict[str, Any]:
    answers = {str(status): _answer(answer, method, schemas) for status, answer in said.answers.items()}
    kind = JupyterError if issubclass(route.handler, JupyterHandler) else Error
    errors = {
        str(status): {"$ref": f"#/components/responses/{kind.__name__}{status}"}
        for status in {STATUS_OF_CODE.get(code, 500) for code in _codes(route, said)}
    }
    return dict(sorted((errors | answers).items()))


def _codes(route: Route, said: Operation) -> Iterator[str]:
    yield from _ALWAYS
    if route.needs_token:
        yield "unauthorized"
    if "{" in route.path:
        yield "not_found"
    for error in said.errors:
        yield error.code


def _answer(answer: Answer, method: str, schemas: Schemas) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": answer.meaning, "headers": _headers(answer.headers)}
    if method == "HEAD" or not answer.content:
        return shown
    shown["content"] = {media_type: _media(kind, schemas) for media_type, kind in answer.content.items()}
    if answer.example is not None:
        next(iter(shown["content"].values()))["example"] = answer.example
    return shown


def _media(kind: Any, schemas: Schemas) -> dict[str, Any]:
    if isinstance(kind, Stream):
        return {"schema": {"type": "string"}, "x-item": schemas.of(kind.of)}
    return {"schema": schemas.of(kind)}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _error_responses(schemas: Schemas) -> Iterator[tuple[str, Any]]:
    """Every refusal, as ours and as Jupyter's, by name."""
    sentences = error_sentences()
    for kind in (Error, JupyterError):
        for status in sorted({*STATUS_OF_CODE.values(), 500} - {504}):
            of_status = [
                f"`{code}`: {text}" for code, text in sentences.items() if STATUS_OF_CODE.get(code, 500) == status
            ]
            yield (
                f"{kind.__name__}{status}",
                {
                    "description": "\n\n".join(of_status),
                    "headers": _headers(_HEADERS_OF_STATUS.get(status, ())),
                    "content": {JSON: {"schema": schemas.of(kind)}},
                },
            )


def error_sentences() -> Mapping[str, str]:
    """What each `code` says unless the error has a sentence of its own."""
    found = {"internal": INTERNAL_SENTENCE, "method_not_allowed": "This route does not take this method."}
    for error in _tree(CellblockError):
        if error.code in STATUS_OF_CODE:
            found.setdefault(error.code, (error.__doc__ or "").strip())
    return found


def _tree(error: type[CellblockError]) -> Iterator[type[CellblockError]]:
    yield error
    for child in error.__subclasses__():
        yield from _tree(child)
