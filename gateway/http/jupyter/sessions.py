"""`/api/sessions`: which notebook, console or other client has which kernel."""

from __future__ import annotations

from http import HTTPStatus

from gateway.field_errors import shown
from gateway.http.jupyter.handler import JupyterHandler
from gateway.http.jupyter.models import session_model
from gateway.http.jupyter.request import changed_session, opened_session
from gateway.http.parse.urls import segment
from sessions.errors import NotFound, UnsupportedLanguage


class _SessionRouteHandler(JupyterHandler):
    """A route where a kernel may be asked for."""

    async def send_not_available(self, kernel_name: str, **messages: str) -> None:
        """Say that a kernel of that name cannot be had, as jupyter_server does."""
        self.error_code = UnsupportedLanguage.code
        name = shown(kernel_name)
        said = {field: message.format(name=name) for field, message in messages.items()}
        await self.send_json(said, HTTPStatus.NOT_IMPLEMENTED)


class JupyterSessionsHandler(_SessionRouteHandler):
    """The tenant's Jupyter sessions."""

    async def handle_request(self) -> None:
        sessions = self.context.notebooks
        if self.request.method != "POST":
            await self.send_json([session_model(notebook) for notebook in sessions.of_tenant(self.tenant)])
            return
        given, choice, kernel_name = opened_session(self.model(), self.context.config.languages)
        try:
            notebook = await sessions.open(self.tenant, given["path"], given.get("name"), given["type"], choice)
        except UnsupportedLanguage:
            await self.send_not_available(
                kernel_name,
                message="The '{name}' kernel is not available. Please pick another suitable kernel instead, or "
                "install that kernel.",
                short_message="{name} not found",
            )
            return
        model = session_model(notebook)
        self.set_header("Location", f"{self.base_path}/api/sessions/{model['id']}")
        await self.send_json(model, HTTPStatus.CREATED)


class JupyterSessionHandler(_SessionRouteHandler):
    """One Jupyter session."""

    async def handle_request(self) -> None:
        jupyter_id, sessions = segment(self.request.path, 3), self.context.notebooks
        try:
            match self.request.method:
                case "PATCH":
                    await self._change(jupyter_id)
                case "DELETE":
                    await sessions.delete(self.tenant, jupyter_id)
                    await self.send_nothing()
                case _:
                    await self.send_json(session_model(sessions.get(self.tenant, jupyter_id)))
        except NotFound as error:
            raise NotFound(f"Session not found: session_id='{shown(jupyter_id)}'") from error

    async def _change(self, jupyter_id: str) -> None:
        changes, choice, kernel_name = changed_session(self.model(), self.context.config.languages)
        try:
            notebook = await self.context.notebooks.change(self.tenant, jupyter_id, changes, choice)
        except UnsupportedLanguage:
            await self.send_not_available(
                kernel_name,
                message="The '{name}' kernel could not be started: No such kernel named {name}",
                short_message="Error starting kernel {name}",
            )
            return
        await self.send_json(session_model(notebook))
