"""Every route, written once: the application, the `Allow` headers and the list at `GET /` come from this table.

What a route does is its handler's.
"""

from __future__ import annotations

from tornado.web import Application

from gateway.http.api.artifacts import FileHandler, ImageHandler
from gateway.http.api.ops import HealthHandler, ReadyHandler, RootHandler, UnknownRouteHandler
from gateway.http.api.runcode import RunCodeHandler
from gateway.http.api.runcode_ws import RunCodeSocket
from gateway.http.api.runs import RunCancelHandler, RunEventsHandler, RunHandler, RunsHandler
from gateway.http.api.session_files import SessionFileHandler, SessionFilesHandler
from gateway.http.api.session_notebook import SessionNotebookHandler
from gateway.http.api.sessions import SessionHandler, SessionInterruptHandler, SessionRestartHandler, SessionsHandler
from gateway.http.base.access_log import log_access
from gateway.http.base.context import Context
from gateway.http.base.route import Exposure, Route
from gateway.http.jupyter.channels import JupyterChannels
from gateway.http.jupyter.handler import JupyterUnknownHandler
from gateway.http.jupyter.kernels import KernelHandler, KernelInterruptHandler, KernelRestartHandler, KernelsHandler
from gateway.http.jupyter.kernelspecs import KernelSpecFileHandler, KernelSpecHandler, KernelSpecsHandler
from gateway.http.jupyter.server_info import IdentityHandler, StatusHandler, VersionHandler
from gateway.http.jupyter.sessions import JupyterSessionHandler, JupyterSessionsHandler

_GET = ("GET", "HEAD")
_POST = ("POST",)
_ALL = UnknownRouteHandler.SUPPORTED_METHODS


def _open(path: str, handler: type, summary: str) -> Route:
    """A route that needs no token and changes nothing."""
    return Route(path, handler, _GET, summary, Exposure.OPEN, needs_token=False)


def _artifact(path: str, handler: type, summary: str) -> Route:
    """A route whose unguessable path is the key, and which any page may embed."""
    return Route(path, handler, _GET, summary, Exposure.EMBEDDABLE, needs_token=False)


def _missing(path: str, handler: type) -> Route:
    """Addresses without a route, in the error shape of `handler`."""
    return Route(path, handler, _ALL, "not found", Exposure.OPEN, needs_token=False, is_listed=False)


ROUTES = (
    # --- Cellblock
    Route("/runcode", RunCodeHandler, ("GET", "POST"), "Run code; wait for its end, or stream its events."),
    Route("/runcode/ws", RunCodeSocket, ("GET",), "Run code over a WebSocket, with input() and interrupts."),
    Route("/runs", RunsHandler, _GET, "List runs, newest first."),
    Route("/runs/{id}", RunHandler, _GET, "Show a run."),
    Route("/runs/{id}/events", RunEventsHandler, _GET, "Stream the events of a run."),
    Route("/runs/{id}/cancel", RunCancelHandler, _POST, "Cancel a run."),
    Route("/sessions", SessionsHandler, (*_GET, "POST"), "List sessions, or create one."),
    Route("/sessions/{id}", SessionHandler, (*_GET, "PATCH", "DELETE"), "Show, renew or end a session."),
    Route("/sessions/{id}/interrupt", SessionInterruptHandler, _POST, "Interrupt what runs in a session."),
    Route("/sessions/{id}/restart", SessionRestartHandler, _POST, "Give a session a fresh kernel."),
    Route("/sessions/{id}/notebook", SessionNotebookHandler, _GET, "Download a session as a notebook."),
    Route("/sessions/{id}/files", SessionFilesHandler, _GET, "List the files of a session."),
    Route("/sessions/{id}/files/{path}", SessionFileHandler, (*_GET, "PUT", "DELETE"), "Read, write or remove a file."),
    _artifact("/image/{artifact}", ImageHandler, "An image that a run made."),
    _artifact("/file/{artifact}", FileHandler, "A file that a run made."),
    # --- Jupyter
    _open("/api", VersionHandler, "The version of Jupyter's REST API."),
    Route("/api/status", StatusHandler, _GET, "Count kernels and connections."),
    Route("/api/me", IdentityHandler, _GET, "Show the identity and permissions of the client."),
    Route("/api/kernelspecs", KernelSpecsHandler, _GET, "List kernelspecs."),
    Route("/api/kernelspecs/{name}", KernelSpecHandler, _GET, "Show a kernelspec."),
    Route("/kernelspecs/{name}/{file}", KernelSpecFileHandler, _GET, "The logo of a kernelspec."),
    Route("/api/kernels", KernelsHandler, (*_GET, "POST"), "List kernels, or start one."),
    Route("/api/kernels/{id}", KernelHandler, (*_GET, "DELETE"), "Show or end a kernel."),
    Route("/api/kernels/{id}/interrupt", KernelInterruptHandler, _POST, "Interrupt a kernel."),
    Route("/api/kernels/{id}/restart", KernelRestartHandler, _POST, "Restart a kernel."),
    Route("/api/kernels/{id}/channels", JupyterChannels, ("GET",), "Exchange Jupyter messages over a WebSocket."),
    Route("/api/sessions", JupyterSessionsHandler, (*_GET, "POST"), "List Jupyter sessions, or open one."),
    Route("/api/sessions/{id}", JupyterSessionHandler, (*_GET, "PATCH", "DELETE"), "Show, change or end one."),
    _missing("/api/{path}", JupyterUnknownHandler),
    _missing("/kernelspecs/{path}", JupyterUnknownHandler),
    # --- operation
    _open("/healthz", HealthHandler, "Whether the process lives."),
    _open("/readyz", ReadyHandler, "Whether a run would be accepted."),
    _open("/", RootHandler, "List the routes."),
)
_UNKNOWN = _missing("unknown", UnknownRouteHandler)


def listed_routes() -> list[str]:
    """The public routes as `GET /` shows them, such as `GET /runs/{id}`. HEAD goes without saying."""
    return [
        f"{method} {route.path}" for route in ROUTES if route.is_listed for method in route.methods if method != "HEAD"
    ]


def make_application(context: Context) -> Application:
    """All routes, each handler with the same context."""
    return Application(
        [(route.pattern, route.handler, {"context": context, "route": route}) for route in ROUTES],
        default_handler_class=_UNKNOWN.handler,
        default_handler_args={"context": context, "route": _UNKNOWN},
        log_function=log_access,
        listed_routes=listed_routes(),
    )
