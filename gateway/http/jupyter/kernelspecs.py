"""`/api/kernelspecs`, and the logos that kernelspecs name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gateway.field_errors import shown
from gateway.http.jupyter.handler import JupyterHandler
from gateway.http.jupyter.models import PYTHON, default_language, kernelspecs
from gateway.http.parse.urls import segment
from sessions.errors import NotFound

_CONTENT_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


class KernelSpecsHandler(JupyterHandler):
    """All kernelspecs."""

    async def handle_request(self) -> None:
        languages = self.context.config.languages
        specs = kernelspecs(languages, python_logos(), self.base_path)
        await self.send_json({"default": languages[default_language(languages)], "kernelspecs": specs})


class KernelSpecHandler(JupyterHandler):
    """One kernelspec."""

    async def handle_request(self) -> None:
        name = segment(self.request.path, 3)
        spec = kernelspecs(self.context.config.languages, python_logos(), self.base_path).get(name)
        if spec is None:
            raise NotFound(f"Kernel spec {shown(name)} not found")
        await self.send_json(spec)


class KernelSpecFileHandler(JupyterHandler):
    """A file that belongs to a kernelspec."""

    async def handle_request(self) -> None:
        """Send it, if it is one of those that are known: no path is made of what the client says."""
        name, file = segment(self.request.path, 2), segment(self.request.path, 3)
        logo = python_logos().get(file) if self.context.config.languages.get(PYTHON) == name else None
        if logo is None:
            raise NotFound("Not Found")
        self.set_header("Content-Type", _CONTENT_TYPES[Path(file).suffix])
        self.set_header("Cache-Control", "private, max-age=86400")
        await self.send(logo)


@cache
def python_logos() -> Mapping[str, bytes]:
    """Those of ipykernel, by file name. It need not be imported for them."""
    spec = find_spec("ipykernel")
    directories = spec.submodule_search_locations if spec is not None else None
    return {
        path.name: path.read_bytes()
        for directory in directories or ()
        for path in Path(directory, "resources").glob("logo-*")
        if path.suffix in _CONTENT_TYPES
    }
