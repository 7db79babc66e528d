"""A JupyterLab's way into sessions that others have started: agents, `cellblock shell`, another JupyterLab.

With `--gateway-url` alone, jupyter_server knows only kernels that it has started itself. Beside JupyterLab, and without
anything of the server:

    jupyter lab --gateway-url=http://127.0.0.1:8000 --ServerApp.kernel_manager_class=gateway.lab.SharedKernels
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from jupyter_server.gateway.gateway_client import gateway_request
from jupyter_server.gateway.managers import GatewayMappingKernelManager
from tornado.web import HTTPError


class SharedKernels(GatewayMappingKernelManager):  # type: ignore[misc]  # jupyter_server need not be here
    """All kernels of the gateway that the token may see. It ends only those that it has started.

    The mutable state is which ones others have started.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._joined: set[str] = set()

    async def list_kernels(self, **kwargs: Any) -> list[dict[str, Any]]:
        """Join those that are new, and list all."""
        response = await gateway_request(self.kernels_url, method="GET")
        for model in json.loads(response.body):
            if model["id"] not in self._kernels:
                self._joined.add(model["id"])
                with suppress(HTTPError):  # it has ended since
                    await super().start_kernel(kernel_id=model["id"])
        models: list[dict[str, Any]] = await super().list_kernels(**kwargs)
        return models

    async def start_kernel(self, *, kernel_id: str | None = None, **kwargs: Any) -> str:
        """Start one that is ours, although it may have been listed before it was known as that."""
        started: str = await super().start_kernel(kernel_id=kernel_id, **kwargs)
        if kernel_id is None:
            self._joined.discard(started)
        return started

    async def shutdown_kernel(self, kernel_id: str, *arguments: Any, **kwargs: Any) -> None:
        """End one of ours, and leave any other: a notebook that moves to another kernel has its last one shut down."""
        if kernel_id in self._joined:
            self.remove_kernel(kernel_id)
        else:
            await super().shutdown_kernel(kernel_id, *arguments, **kwargs)

    async def shutdown_all(self, *arguments: Any, **kwargs: Any) -> None:
        """End ours."""
        for kernel_id in self._joined:
            self.remove_kernel(kernel_id)
        await super().shutdown_all(*arguments, **kwargs)
