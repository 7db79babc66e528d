"""`/api/kernels`: the tenant's sessions, as a Jupyter client sees kernels. Messages go over a WebSocket, not here."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import quote

from gateway.field_errors import shown
from gateway.http.jupyter.handler import JupyterHandler
from gateway.http.jupyter.models import kernel_model
from gateway.http.jupyter.request import kernel_choice
from gateway.http.parse.urls import segment
from sessions.errors import NotFound, UnsupportedLanguage
from sessions.model import SessionView


class KernelsHandler(JupyterHandler):
    """The tenant's kernels."""

    async def handle_request(self) -> None:
        service = self.context.service
        if self.request.method != "POST":
            await self.send_json([kernel_model(view) for view in service.list_sessions(self.tenant)])
            return
        choice, name = kernel_choice(self.model(), self.context.config.languages)
        try:
            view = self._there(choice.kernel_id) or await self.context.notebooks.start_kernel(self.tenant, choice)
        except UnsupportedLanguage as error:
            self.error_code = error.code
            missing = {"message": f"No such kernel named {shown(name)}", "reason": None}
            await self.send_json(missing, HTTPStatus.INTERNAL_SERVER_ERROR)  # jupyter_server's status for it
            return
        kernel_id = quote(view.session.public_kernel_id, safe="")
        self.set_header("Location", f"{self.base_path}/api/kernels/{kernel_id}")
        await self.send_json(kernel_model(view), HTTPStatus.CREATED)

    def _there(self, kernel_id: str | None) -> SessionView | None:
        """The existing kernel with the chosen id, which is used, as with jupyter_server."""
        try:
            return None if kernel_id is None else self.context.service.session_of_kernel(self.tenant, kernel_id)
        except NotFound:
            return None


class OneKernelHandler(JupyterHandler):
    """A route below one kernel."""

    def kernel(self) -> SessionView:
        """The session that the path names, by either id. Raises NotFound."""
        kernel_id = segment(self.request.path, 3)
        try:
            return self.context.service.session_of_kernel(self.tenant, kernel_id)
        except NotFound as error:
            raise NotFound(f"Kernel does not exist: {shown(kernel_id)}") from error


class KernelHandler(OneKernelHandler):
    """One kernel."""

    async def handle_request(self) -> None:
        view = self.kernel()
        if self.request.method != "DELETE":
            await self.send_json(kernel_model(view))
            return
        await self.context.service.delete_session(self.tenant, view.session.session_id)
        await self.send_nothing()


class KernelInterruptHandler(OneKernelHandler):
    """Ctrl-C for what runs on a kernel."""

    async def handle_request(self) -> None:
        await self.context.service.interrupt_session(self.tenant, self.kernel().session.session_id)
        await self.send_nothing()


class KernelRestartHandler(OneKernelHandler):
    """A fresh process for a kernel."""

    async def handle_request(self) -> None:
        view = await self.context.service.restart_session(self.tenant, self.kernel().session.session_id)
        await self.send_json(kernel_model(view))
