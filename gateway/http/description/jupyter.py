"""What Jupyter clients ask for."""

from __future__ import annotations

from msgspec import Struct

from gateway.http.description.jupyter_answers import (
    JupyterError,
    JupyterSession,
    Kernel,
    KernelNotAvailable,
    KernelSpec,
    KernelSpecs,
    Me,
    Status,
    Version,
)
from gateway.http.description.operation import ANY, Answer, Body, Operation, Operations, json_answer
from gateway.http.description.parameters import KERNEL
from gateway.http.jupyter.request import JupyterSessionFields, KernelFields
from sessions.errors import Conflict, TooManyRequests

_KERNEL = {
    "id": KERNEL,
    "name": "python3",
    "last_activity": "2026-01-31T12:00:00.000000Z",
    "execution_state": "idle",
    "connections": 0,
}
_NOT_AVAILABLE = json_answer(KernelNotAvailable, "There is no such kernelspec.")


class PermissionsQuery(Struct):
    """The query of `GET /api/me`."""

    permissions: str | None = None
    """What is asked, as JSON: `{"kernels": ["read"]}`."""


class ChannelsQuery(Struct):
    """The query of `GET /api/kernels/{id}/channels`."""

    session_id: str | None = None
    """The client's name for itself: who comes back with it is told what it has missed."""


OPERATIONS: Operations = {
    "GET /api": Operation(
        "Get the version of the API",
        {200: json_answer(Version, "The version of the jupyter_server whose answers these are like.")},
    ),
    "GET /api/status": Operation("Get how much you have here", {200: json_answer(Status, "What you have.")}),
    "GET /api/me": Operation(
        "Get who you are",
        {200: json_answer(Me, "Your tenant.")},
        query=PermissionsQuery,
        example={"permissions": '{"kernels": ["read"]}'},
    ),
    "GET /api/kernelspecs": Operation("List kernelspecs", {200: json_answer(KernelSpecs, "All of them.")}),
    "GET /api/kernelspecs/{name}": Operation("Get a kernelspec", {200: json_answer(KernelSpec, "The kernelspec.")}),
    "GET /kernelspecs/{name}/{file}": Operation(
        "Get a logo of a kernelspec", {200: Answer("The picture.", {ANY: None})}
    ),
    "GET /api/kernels": Operation(
        "List kernels", {200: json_answer(list[Kernel], "Your sessions, each as a kernel.", example=[_KERNEL])}
    ),
    "POST /api/kernels": Operation(
        "Start a kernel",
        {
            201: json_answer(Kernel, "The kernel.", headers=("Location",), example=_KERNEL),
            500: json_answer(JupyterError, "There is no such kernelspec; or a mistake of ours."),
        },
        body=Body(KernelFields, is_required=False, examples={"python": {"name": "python3"}}),
        errors=(Conflict, TooManyRequests),
    ),
    "GET /api/kernels/{id}": Operation("Get a kernel", {200: json_answer(Kernel, "The kernel.")}),
    "DELETE /api/kernels/{id}": Operation("End a kernel", {204: Answer("It has ended, with its variables and files.")}),
    "POST /api/kernels/{id}/interrupt": Operation(
        "Interrupt a kernel", {204: Answer("Ctrl-C was sent to what it runs.")}
    ),
    "POST /api/kernels/{id}/restart": Operation(
        "Restart a kernel", {200: json_answer(Kernel, "The kernel has a fresh process.")}, errors=(TooManyRequests,)
    ),
    "GET /api/kernels/{id}/channels": Operation(
        "Talk with a kernel over a WebSocket",
        {
            101: Answer(
                "A WebSocket of Jupyter's messages: https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html.",
                headers=("Sec-WebSocket-Protocol",),
            )
        },
        query=ChannelsQuery,
        headers=("Sec-WebSocket-Protocol",),
        errors=(TooManyRequests,),
    ),
    "GET /api/sessions": Operation(
        "List Jupyter sessions", {200: json_answer(list[JupyterSession], "Which notebook has which kernel.")}
    ),
    "POST /api/sessions": Operation(
        "Open a Jupyter session",
        {
            201: json_answer(JupyterSession, "The session of this path, new or not.", headers=("Location",)),
            501: _NOT_AVAILABLE,
        },
        body=Body(
            JupyterSessionFields,
            examples={"notebook": {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}},
        ),
        errors=(Conflict, TooManyRequests),
    ),
    "GET /api/sessions/{id}": Operation("Get a Jupyter session", {200: json_answer(JupyterSession, "The session.")}),
    "PATCH /api/sessions/{id}": Operation(
        "Rename a Jupyter session, or move it to another kernel",
        {200: json_answer(JupyterSession, "The session as it is now."), 501: _NOT_AVAILABLE},
        details="The kernel that it had ends, unless other Jupyter sessions have it.",
        body=Body(JupyterSessionFields, examples={"rename": {"path": "b.ipynb"}}),
        errors=(Conflict, TooManyRequests),
    ),
    "DELETE /api/sessions/{id}": Operation(
        "End a Jupyter session", {204: Answer("It has ended, and its kernel, unless other Jupyter sessions have that.")}
    ),
}
