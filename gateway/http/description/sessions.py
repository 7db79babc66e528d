"""`/sessions` and what is below it."""

from __future__ import annotations

from gateway.http.description.answers import (
    FileEntry,
    FileList,
    InterruptAnswer,
    RestartedSession,
    SessionAnswer,
    SessionList,
)
from gateway.http.description.operation import ANY, Answer, Body, Operation, Operations, json_answer
from gateway.http.description.parameters import FILE, KERNEL, SESSION
from gateway.http.parse.session_request import CreateSessionFields, RenewFields
from sessions.errors import Conflict, TooManyRequests, UnsupportedLanguage, UnsupportedMediaType

_NOTEBOOK = "application/x-ipynb+json"
_EXAMPLE = {
    "session_id": SESSION,
    "kernel_id": KERNEL,
    "language": "python",
    "state": "idle",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "last_used_at": "2026-01-31T12:00:00.000000Z",
    "expires_at": "2026-01-31T12:30:00.000000Z",
    "idle_timeout": 1800.0,
    "max_lifetime": 86400.0,
    "runs": 0,
    "usage": {"wall_ms": 0.0, "cpu_ms": 0.0, "memory_peak_bytes": 0},
}
_ENTRY = {"path": FILE, "bytes": 1024, "modified_at": "2026-01-31T12:00:00.000000Z"}

OPERATIONS: Operations = {
    "GET /sessions": Operation("List sessions", {200: json_answer(SessionList, "Your sessions, oldest first.")}),
    "POST /sessions": Operation(
        "Make a session",
        {201: json_answer(SessionAnswer, "The new session.", headers=("Location",), example=_EXAMPLE)},
        details="The first run with its `session_id` makes one too.",
        body=Body(
            CreateSessionFields, is_required=False, examples={"variables": {"variables": {"x": 1}, "idle_timeout": 600}}
        ),
        errors=(UnsupportedLanguage, UnsupportedMediaType, Conflict, TooManyRequests),
    ),
    "GET /sessions/{id}": Operation(
        "Get a session", {200: json_answer(SessionAnswer, "The session.", example=_EXAMPLE)}
    ),
    "PATCH /sessions/{id}": Operation(
        "Renew a session",
        {200: json_answer(SessionAnswer, "The session as it is now.")},
        details="`{}` renews it, as using it does.",
        body=Body(RenewFields, is_required=False, examples={"longer": {"idle_timeout": 900}}),
        errors=(UnsupportedMediaType,),
    ),
    "DELETE /sessions/{id}": Operation(
        "End a session", {204: Answer("It has ended, with its variables and files. What ran in it is cancelled.")}
    ),
    "POST /sessions/{id}/interrupt": Operation(
        "Interrupt a session", {202: json_answer(InterruptAnswer, "Ctrl-C was sent to what runs in it.")}
    ),
    "POST /sessions/{id}/restart": Operation(
        "Restart a session's kernel",
        {200: json_answer(RestartedSession, "The kernel is fresh: variables are gone, files stay.")},
        details="What runs is cancelled. When it does not restart within 30 s, the answer is 503: the sandbox is given "
        "up then, and the next run has a fresh one.",
        errors=(TooManyRequests,),
    ),
    "GET /sessions/{id}/notebook": Operation(
        "Get a session as a notebook",
        {
            200: Answer(
                "Its ended runs as `.ipynb` (nbformat 4.5).",
                {_NOTEBOOK: dict},
                ("Content-Disposition", "Content-Security-Policy"),
            )
        },
    ),
    "GET /sessions/{id}/files": Operation(
        "List the files of a session",
        {200: json_answer(FileList, "All files below its working directory.", example={"files": [_ENTRY]})},
        errors=(Conflict, TooManyRequests),
    ),
    "GET /sessions/{id}/files/{path}": Operation(
        "Download a file of a session",
        {
            200: Answer(
                "The file. A body that is shorter than its `Content-Length` was cut.",
                {ANY: None},
                ("Content-Disposition", "Content-Security-Policy", "Last-Modified"),
            )
        },
        errors=(Conflict, TooManyRequests),
    ),
    "PUT /sessions/{id}/files/{path}": Operation(
        "Upload a file to a session",
        {
            200: json_answer(FileEntry, "It replaces one.", example=_ENTRY),
            201: json_answer(FileEntry, "It is new.", headers=("Location",), example=_ENTRY),
        },
        details="Directories are made as needed. The file is there once all of it has come, and not before.",
        body=Body(None, (ANY,), examples={"text": "a,b\n1,2\n"}),
        errors=(Conflict, TooManyRequests),
    ),
    "DELETE /sessions/{id}/files/{path}": Operation(
        "Remove a file of a session", {204: Answer("It is gone.")}, errors=(Conflict, TooManyRequests)
    ),
}
