"""Where Jupyter's REST API is: the routes of jupyter_server that there are here, and 404 for the others."""

from __future__ import annotations

from gateway.http.base.handler import BaseHandler
from gateway.http.jupyter.channels import JupyterChannels
from gateway.http.jupyter.handler import JupyterUnknownHandler
from gateway.http.jupyter.kernels import (
    KernelHandler,
    KernelInterruptHandler,
    KernelRestartHandler,
    KernelsHandler,
)
from gateway.http.jupyter.kernelspecs import KernelSpecFileHandler, KernelSpecHandler, KernelSpecsHandler
from gateway.http.jupyter.server_info import IdentityHandler, StatusHandler, VersionHandler
from gateway.http.jupyter.sessions import JupyterSessionHandler, JupyterSessionsHandler

JUPYTER_ROUTES: tuple[tuple[str, type[BaseHandler]], ...] = (
    (r"/api", VersionHandler),
    (r"/api/status", StatusHandler),
    (r"/api/me", IdentityHandler),
    (r"/api/kernelspecs", KernelSpecsHandler),
    (r"/api/kernelspecs/[^/]+", KernelSpecHandler),
    (r"/kernelspecs/[^/]+/[^/]+", KernelSpecFileHandler),
    (r"/api/kernels", KernelsHandler),
    (r"/api/kernels/[^/]+", KernelHandler),
    (r"/api/kernels/[^/]+/interrupt", KernelInterruptHandler),
    (r"/api/kernels/[^/]+/restart", KernelRestartHandler),
    (r"/api/kernels/[^/]+/channels", JupyterChannels),
    (r"/api/sessions", JupyterSessionsHandler),
    (r"/api/sessions/[^/]+", JupyterSessionHandler),
    (r"/(?:api|kernelspecs)/.*", JupyterUnknownHandler),
)
