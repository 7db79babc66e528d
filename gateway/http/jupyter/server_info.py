"""`/api`, `/api/status` and `/api/me`: what Jupyter clients ask of a server before they use it."""

from __future__ import annotations

from typing import Any

from gateway.http.jupyter.handler import JupyterHandler
from gateway.http.jupyter.models import identity_model
from gateway.http.parse.body import parse_json
from gateway.http.parse.times import iso
from sessions.errors import InvalidJSON, InvalidRequest

_JUPYTER_SERVER_API = "2.21.1"
"""The version of jupyter_server that these answers follow: clients infer from it what they may ask."""

_RESOURCES = frozenset({"api", "kernels", "kernelspecs", "sessions"})
_ACTIONS = frozenset({"read", "write", "execute"})


class VersionHandler(JupyterHandler):
    """Which API this is. Clients ask before they have a token."""

    async def handle_request(self) -> None:
        await self.send_json({"version": _JUPYTER_SERVER_API})


class StatusHandler(JupyterHandler):
    """How much the tenant has here."""

    async def handle_request(self) -> None:
        views = self.context.service.list_sessions(self.tenant)
        started_at = self.context.started_at
        await self.send_json(
            {
                "started": iso(started_at),
                "last_activity": iso(max((view.last_activity for view in views), default=started_at)),
                "kernels": len(views),
                "connections": sum(view.connections for view in views),
            }
        )


class IdentityHandler(JupyterHandler):
    """Who the client is, and what it may do."""

    async def handle_request(self) -> None:
        permissions = _permissions(self.get_query_argument("permissions", ""))
        await self.send_json({"identity": identity_model(self.tenant), "permissions": permissions})


def _permissions(asked: str) -> dict[str, list[str]]:
    """Whoever has a token may do everything with what there is. Raises InvalidRequest."""
    mistake = 'permissions should be a JSON dict of {"resource": ["action",]}'
    try:
        resources: Any = parse_json(asked.encode()) if asked else {}
    except InvalidJSON as error:
        raise InvalidRequest(mistake) from error
    if not isinstance(resources, dict):
        raise InvalidRequest(mistake)
    permissions: dict[str, list[str]] = {}
    for resource, actions in resources.items():
        if not isinstance(actions, list) or not all(isinstance(action, str) for action in actions):
            raise InvalidRequest(mistake)
        permissions[resource] = [action for action in actions if resource in _RESOURCES and action in _ACTIONS]
    return {**permissions, "updatable_fields": []}
