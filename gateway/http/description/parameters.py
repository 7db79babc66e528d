"""The parts of paths, and the headers of requests and answers, by name. Their forms are the parsers' own."""

from __future__ import annotations

from typing import Any

from gateway.http.parse.run_request import IDEMPOTENCY_KEY, SESSION_ID

RUN_ID = "3ec4e160-aff0-4a08-8af8-da50ace9e93a"
SESSION = "chat-42"
KERNEL = "2f4b6f0e-6a53-4b0a-9c3f-0d5b8f6f2d11"
NOTEBOOK = "8a1c7f52-90cb-4a1b-8d1f-4b7a3f0f5c77"
IMAGE = "6c1f0b3e-3f0d-4c58-8a57-1f2f7f0c9b60"
OTHER = "b0a7f2c4-7b1c-4a7e-9d55-0a6a5f0d8e21"
FILE = "table.csv"

_UUID = {"type": "string", "format": "uuid"}


def _of(description: str, example: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": description, "schema": schema or {"type": "string"}, "example": example}


_ARTIFACT = "`<uuid>_<name>`, as it stands in an answer. The UUID is the key."
PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "/runs/{id}": _of("The run's `run_id`.", RUN_ID, _UUID),
    "/sessions/{id}": _of("The session's `session_id`.", SESSION, {"type": "string", "pattern": f"^{SESSION_ID}$"}),
    "/sessions/{id}/files/{path}": _of(
        "The file's path below the working directory, percent-encoded UTF-8 of 1 to 1,024 characters without empty "
        'parts, ".", ".." and NUL. Slashes stand as they are.',
        FILE,
        {"type": "string", "minLength": 1, "maxLength": 1024},
    ),
    "/image/{artifact}": _of(_ARTIFACT, f"{IMAGE}_figure-1.png"),
    "/file/{artifact}": _of(_ARTIFACT, f"{OTHER}_{FILE}"),
    "/status/{file}": _of("Its name, as the page has it.", "status.js"),
    "/api/kernelspecs/{name}": _of("The kernelspec's name.", "python3"),
    "/kernelspecs/{name}": _of("The kernelspec's name.", "python3"),
    "/kernelspecs/{name}/{file}": _of("The name of a logo, as `resources` has it.", "logo-64x64.png"),
    "/api/kernels/{id}": _of("The kernel's `id`, or a `session_id`.", KERNEL),
    "/api/sessions/{id}": _of("The Jupyter session's `id`.", NOTEBOOK),
}
"""What a path's last part is, by the path up to there."""

REQUEST_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "Your own name for this request, which the answer and the log repeat. Any other form of it is "
        "ignored, and a new one is made.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "Idempotency-Key": {
        "description": "Repeats a request without fear: the same key and fields give the same run, its stored answer "
        "or the running one followed to its end. Other fields under the same key are a 409.",
        "schema": {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY}$"},
    },
    "Last-Event-ID": {
        "description": "Leaves out the events up to this `seq`, as `after` does. A browser's EventSource sends it.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "If-None-Match": {
        "description": "An `ETag` that you have: the answer is 304 if it is still the one.",
        "schema": {"type": "string"},
    },
    "Sec-WebSocket-Protocol": {
        "description": "What the client speaks, if it says so: `v1.runcode.cellblock`, or "
        "`v1.kernel.websocket.jupyter.org` for a kernel. A browser, which cannot send `Authorization`, adds its "
        "token as `base64url.bearer.authorization.cellblock.<token>`, in Base64 with the URL-safe alphabet and without "
        "padding.",
        "schema": {"type": "string"},
    },
}

ANSWER_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"description": "The id of this request, in the log too.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}},
    "Allow": {"description": "The methods of this route.", "schema": {"type": "string"}},
    "Location": {"description": "Where the new one is.", "schema": {"type": "string", "format": "uri-reference"}},
    "ETag": {"description": "The version of what is sent, for `If-None-Match`.", "schema": {"type": "string"}},
    "Content-Disposition": {
        "description": "Whether it is shown or saved, and under which name.",
        "schema": {"type": "string"},
    },
    "Content-Security-Policy": {
        "description": "What a browser may do with it: nothing, where it comes from a run.",
        "schema": {"type": "string"},
    },
    "Vary": {"description": "The headers of the request that the answer depends on.", "schema": {"type": "string"}},
    "Last-Modified": {"description": "When the file was written last.", "schema": {"type": "string"}},
    "Sec-WebSocket-Protocol": {
        "description": "The sub-protocol that was chosen, if any; never the one with a token.",
        "schema": {"type": "string"},
    },
}
