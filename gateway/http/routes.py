"""Every route, written once: the application, `Allow` headers, `GET /` and `GET /openapi.json` come from this table.

What a route does is its handler's; what is said of it, description/'s.
"""

from __future__ import annotations

from tornado.web import Application

from gateway.http.api.artifacts import FileHandler, ImageHandler
from gateway.http.api.batch import BatchHandler
from gateway.http.api.metrics import MetricsHandler
from gateway.http.api.ops import HealthHandler, ReadyHandler, UnknownRouteHandler
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
from gateway.http.pages.handlers import PlaygroundHandler, StaticHandler
from gateway.http.reference.handlers import DocsHandler, OpenApiHandler, Reference
from gateway.http.status_page.handlers import StatusFileHandler, StatusJsonHandler, StatusPageHandler
from gateway.http.status_page.history import History

_GET = ("GET", "HEAD")
_POST = ("POST",)
_ALL = UnknownRouteHandler.SUPPORTED_METHODS


def _open(path: str, handler: type) -> Route:
    """A route that needs no token and changes nothing."""
    return Route(path, handler, _GET, Exposure.OPEN, needs_token=False)


def _artifact(path: str, handler: type) -> Route:
    """A route whose unguessable path is the key, and which any page may embed."""
    return Route(path, handler, _GET, Exposure.EMBEDDABLE, needs_token=False)


def _missing(path: str, handler: type) -> Route:
    """Addresses without a route, in the error shape of `handler`."""
    return Route(path, handler, _ALL, Exposure.OPEN, needs_token=False, is_listed=False)


ROUTES = (
    # --- Cellblock
    Route("/runcode", RunCodeHandler, ("GET", "POST")),
    Route("/runcode/batch", BatchHandler, _POST),
    Route("/runcode/ws", RunCodeSocket, ("GET",)),
    Route("/runs", RunsHandler, _GET),
    Route("/runs/{id}", RunHandler, _GET),
    Route("/runs/{id}/events", RunEventsHandler, _GET),
    Route("/runs/{id}/cancel", RunCancelHandler, _POST),
    Route("/sessions", SessionsHandler, (*_GET, "POST")),
    Route("/sessions/{id}", SessionHandler, (*_GET, "PATCH", "DELETE")),
    Route("/sessions/{id}/interrupt", SessionInterruptHandler, _POST),
    Route("/sessions/{id}/restart", SessionRestartHandler, _POST),
    Route("/sessions/{id}/notebook", SessionNotebookHandler, _GET),
    Route("/sessions/{id}/files", SessionFilesHandler, _GET),
    Route("/sessions/{id}/files/{path}", SessionFileHandler, (*_GET, "PUT", "DELETE")),
    _artifact("/image/{artifact}", ImageHandler),
    _artifact("/file/{artifact}", FileHandler),
    # --- Jupyter
    _open("/api", VersionHandler),
    Route("/api/status", StatusHandler, _GET),
    Route("/api/me", IdentityHandler, _GET),
    Route("/api/kernelspecs", KernelSpecsHandler, _GET),
    Route("/api/kernelspecs/{name}", KernelSpecHandler, _GET),
    Route("/kernelspecs/{name}/{file}", KernelSpecFileHandler, _GET),
    Route("/api/kernels", KernelsHandler, (*_GET, "POST")),
    Route("/api/kernels/{id}", KernelHandler, (*_GET, "DELETE")),
    Route("/api/kernels/{id}/interrupt", KernelInterruptHandler, _POST),
    Route("/api/kernels/{id}/restart", KernelRestartHandler, _POST),
    Route("/api/kernels/{id}/channels", JupyterChannels, ("GET",)),
    Route("/api/sessions", JupyterSessionsHandler, (*_GET, "POST")),
    Route("/api/sessions/{id}", JupyterSessionHandler, (*_GET, "PATCH", "DELETE")),
    _missing("/api/{path}", JupyterUnknownHandler),
    _missing("/kernelspecs/{path}", JupyterUnknownHandler),
    # --- operation
    _open("/healthz", HealthHandler),
    _open("/readyz", ReadyHandler),
    _open("/openapi.json", OpenApiHandler),
    _open("/docs", DocsHandler),
    Route("/metrics", MetricsHandler, _GET),
    Route("/status.json", StatusJsonHandler, _GET),
    # --- pages
    _open("/status", StatusPageHandler),
    _open("/status/{file}", StatusFileHandler),
    _open("/", PlaygroundHandler),
    Route("/static/{version}/{path}", StaticHandler, _GET, Exposure.OPEN, needs_token=False, is_listed=False),
)
_UNKNOWN = _missing("unknown", UnknownRouteHandler)


def listed_routes() -> list[str]:
    """The public routes as `GET /` shows them, such as `GET /runs/{id}`. HEAD goes without saying."""
    return [
        f"{method} {route.path}" for route in ROUTES if route.is_listed for method in route.methods if method != "HEAD"
    ]


def make_application(context: Context, history: History) -> Application:
    """All routes, each handler with the same context."""
    return Application(
        [(route.pattern, route.handler, {"context": context, "route": route}) for route in ROUTES],
        default_handler_class=_UNKNOWN.handler,
        default_handler_args={"context": context, "route": _UNKNOWN},
        log_function=log_access,
        listed_routes=listed_routes(),
        reference=Reference(ROUTES, context),
        history=history,
    )
