"""`/healthz`, `/readyz`, `/`, and the answer to every route that does not exist."""

from __future__ import annotations

from typing import Any, ClassVar

from gateway.http.base.exposure import Exposure
from gateway.http.base.handler import BaseHandler
from sessions.errors import NotFound, Unavailable

_ROUTES = (
    "POST /runcode",
    "GET /runcode",
    "GET /runcode/ws",
    "GET /runs",
    "GET /runs/{id}",
    "GET /runs/{id}/events",
    "POST /runs/{id}/cancel",
    "GET /sessions",
    "POST /sessions",
    "GET /sessions/{id}",
    "PATCH /sessions/{id}",
    "DELETE /sessions/{id}",
    "POST /sessions/{id}/interrupt",
    "POST /sessions/{id}/restart",
    "GET /sessions/{id}/notebook",
    "GET /sessions/{id}/files",
    "GET /sessions/{id}/files/{path}",
    "PUT /sessions/{id}/files/{path}",
    "DELETE /sessions/{id}/files/{path}",
    "GET /api",
    "GET /api/status",
    "GET /api/me",
    "GET /api/kernelspecs",
    "GET /api/kernelspecs/{name}",
    "GET /kernelspecs/{name}/{file}",
    "GET /api/kernels",
    "POST /api/kernels",
    "GET /api/kernels/{id}",
    "DELETE /api/kernels/{id}",
    "POST /api/kernels/{id}/interrupt",
    "POST /api/kernels/{id}/restart",
    "GET /api/sessions",
    "POST /api/sessions",
    "GET /api/sessions/{id}",
    "PATCH /api/sessions/{id}",
    "DELETE /api/sessions/{id}",
    "GET /image/…",
    "GET /file/…",
    "GET /healthz",
    "GET /readyz",
)


class HealthHandler(BaseHandler):
    """The process is alive; nothing else is asked."""

    route: ClassVar[str] = "/healthz"
    exposure: ClassVar[Exposure] = Exposure.OPEN
    needs_token: ClassVar[bool] = False
    is_probe: ClassVar[bool] = True

    async def answer(self) -> None:
        """Say so."""
        await self.send_json({"status": "ok"})


class ReadyHandler(BaseHandler):
    """Whether code can be run now; 503 with `reasons` when not."""

    route: ClassVar[str] = "/readyz"
    exposure: ClassVar[Exposure] = Exposure.OPEN
    needs_token: ClassVar[bool] = False
    is_probe: ClassVar[bool] = True

    async def answer(self) -> None:
        """Say so, with the engine's name and how many kernels are warm."""
        readiness = self.context.service.readiness()
        if not readiness.ready:
            raise Unavailable(" ".join(readiness.reasons) or None)
        await self.send_json({"status": "ready", "engine": readiness.engine, "warm": readiness.warm})

    def complete_error(self, shape: dict[str, Any]) -> dict[str, Any]:
        """Add the reasons one by one."""
        if shape["code"] == Unavailable.code:
            return {**shape, "reasons": list(self.context.service.readiness().reasons)}
        return shape


class RootHandler(BaseHandler):
    """What there is to see."""

    route: ClassVar[str] = "/"
    exposure: ClassVar[Exposure] = Exposure.OPEN
    needs_token: ClassVar[bool] = False

    async def answer(self) -> None:
        """List the routes."""
        await self.send_json({"name": "cellblock", "routes": list(_ROUTES)})


class UnknownRouteHandler(BaseHandler):
    """Every other path."""

    route: ClassVar[str] = "unknown"
    methods: ClassVar[tuple[str, ...]] = BaseHandler.SUPPORTED_METHODS
    exposure: ClassVar[Exposure] = Exposure.OPEN
    needs_token: ClassVar[bool] = False

    async def answer(self) -> None:
        """Say that there is nothing."""
        raise NotFound("There is nothing at this address: see / for the routes.")
