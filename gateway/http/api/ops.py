"""`/healthz`, `/readyz`, `/`, and the answer to every route that does not exist."""

from __future__ import annotations

from typing import Any, ClassVar

from gateway.http.base.handler import BaseHandler
from sessions.errors import NotFound, Unavailable


class HealthHandler(BaseHandler):
    """The process is alive; nothing else is asked."""

    is_probe: ClassVar[bool] = True

    async def handle_request(self) -> None:
        await self.send_json({"status": "ok"})


class ReadyHandler(BaseHandler):
    """Whether code can be run now; 503 with `reasons` when not."""

    is_probe: ClassVar[bool] = True

    async def handle_request(self) -> None:
        readiness = self.context.service.readiness()
        if not readiness.ready:
            raise Unavailable(" ".join(readiness.reasons) or None)
        shape = {"status": "ready", "engine": readiness.engine, "warm": readiness.warm}
        await self.send_json(shape | ({"warnings": list(readiness.warnings)} if readiness.warnings else {}))

    def complete_error(self, shape: dict[str, Any]) -> dict[str, Any]:
        if shape["code"] == Unavailable.code:
            return {**shape, "reasons": list(self.context.service.readiness().reasons)}
        return shape


class RootHandler(BaseHandler):
    """What there is to see."""

    async def handle_request(self) -> None:
        await self.send_json({"name": "cellblock", "routes": self.settings["listed_routes"]})


class UnknownRouteHandler(BaseHandler):
    """Every other path."""

    async def handle_request(self) -> None:
        raise NotFound("There is nothing at this address: see / for the routes.")
