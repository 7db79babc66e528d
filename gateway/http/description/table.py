"""Every description, by method and path. HEAD is that of GET, without a body."""

from __future__ import annotations

from typing import Any

from gateway.http.description import jupyter, runs, sessions, status
from gateway.http.description.answers import Health, Ready, ReadyError, Root
from gateway.http.description.operation import JSON, Answer, Operation, Operations, json_answer

_REVALIDATED = {304: Answer("You have it.", headers=("ETag",))}
_OURS: Operations = {
    "GET /healthz": Operation("Ask whether the process lives", {200: json_answer(Health, "It does.")}),
    "GET /readyz": Operation(
        "Ask whether a run would be taken",
        {
            200: json_answer(Ready, "It would."),
            503: json_answer(ReadyError, "It would not, for these reasons.", headers=("Retry-After",)),
        },
    ),
    "GET /": Operation(
        "List the routes",
        {200: Answer("Method and path of each.", {JSON: Root, "text/html": str}, ("Vary",))},
        details="Whoever prefers HTML, as browsers do, gets the playground: a page to run code with.",
    ),
    "GET /metrics": Operation(
        "Get the metrics", {200: Answer("In the text format of Prometheus.", {"text/plain": str})}
    ),
    "GET /openapi.json": Operation(
        "Get this description",
        {200: Answer("An OpenAPI document.", {JSON: dict[str, Any]}, ("ETag",))} | _REVALIDATED,
        headers=("If-None-Match",),
    ),
    "GET /docs": Operation(
        "Get this description as a page",
        {200: Answer("A page that needs no script and no other host.", {"text/html": str}, ("ETag",))} | _REVALIDATED,
        headers=("If-None-Match",),
    ),
}

OPERATIONS: Operations = {**runs.OPERATIONS, **sessions.OPERATIONS, **jupyter.OPERATIONS, **status.OPERATIONS, **_OURS}
