"""`GET /sessions/{id}/notebook`: the runs of a session, with their outputs and images, as one `.ipynb` file.

It fetches, and bounds what is fetched; what a notebook looks like is notebook.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.handlers import addresses, notebook
from gateway.handlers.answer import strict_json
from gateway.handlers.artifacts import disposition
from gateway.handlers.base import BaseHandler
from gateway.handlers.notebook import NotebookRun, Shown
from sessions.errors import NotFound, TooLarge
from sessions.model import ArtifactId, SessionId

MAX_SHOWN_BYTES = 64 << 20
"""Images, and apart from them all other outputs, may take so much of one notebook; later ones leave a note."""

MAX_SOURCE_BYTES = 64 << 20


class SessionNotebookHandler(BaseHandler):
    """A download of what happened in a session. One is made at a time: `context.notebooks`."""

    route: ClassVar[str] = "/sessions/{id}/notebook"

    async def answer(self) -> None:
        """Make it, and send it."""
        session_id = addresses.session_in(self.request.path)
        language = self.context.service.get_session(self.tenant, session_id).session.language
        async with self.context.notebooks:
            runs = await self._runs(session_id)
            kernel_name = self.context.languages.get(language, language)
            # Validation takes its time, and the event loop belongs to everybody.
            document = await asyncio.to_thread(_document, runs, language, kernel_name)
        self.set_header("Content-Type", "application/x-ipynb+json")
        self.set_header("Content-Disposition", disposition(f"{session_id}.ipynb", inline=False))
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        await self.send(document)

    async def _runs(self, session_id: SessionId) -> list[NotebookRun]:
        """All runs, within the bounds. Raises TooLarge when even their code is beyond them."""
        runs = []
        left = _Budget()
        async for record, events in self.context.service.session_runs(self.tenant, session_id):
            left.charge_source(record.run.code, record.run.variables)
            shown = left.fitting(notebook.shown_by(record, events))
            runs.append(NotebookRun(record, shown, await self._images(shown)))
        return runs

    async def _images(self, shown: Sequence[Shown]) -> dict[str, bytes]:
        images = {}
        for output in shown:
            if output.image is not None:
                try:
                    artifact = await self.context.service.artifact(ArtifactId(output.image.artifact_id))
                except NotFound:
                    continue  # retention has removed it meanwhile
                images[output.image.artifact_id] = artifact.data
        return images


class _Budget:
    """How many bytes the rest of a notebook may still take. Its state is those three numbers."""

    def __init__(self) -> None:
        self._source_bytes = MAX_SOURCE_BYTES
        self._image_bytes = MAX_SHOWN_BYTES
        self._other_bytes = MAX_SHOWN_BYTES

    def charge_source(self, code: str, variables: Mapping[str, object]) -> None:
        """Count what cannot be left out."""
        self._source_bytes -= len(code) + len(strict_json(dict(variables)))
        if self._source_bytes < 0:
            raise TooLarge("The code of this session is too large for one notebook: read its runs one by one at /runs.")

    def fitting(self, shown: Sequence[Shown]) -> list[Shown]:
        """The outputs that fit, and a note where some do not."""
        kept: list[Shown] = []
        for output in shown:
            image_bytes = 0 if output.image is None else output.image.size_bytes
            if output.size_bytes <= self._other_bytes and image_bytes <= self._image_bytes:
                self._other_bytes -= output.size_bytes
                self._image_bytes -= image_bytes
                kept.append(output)
        if len(kept) < len(shown):
            left_out = len(shown) - len(kept)
            kept.append(notebook.note(f"{left_out} outputs were left out: the notebook would be too large"))
        return kept


def _document(runs: Sequence[NotebookRun], language: str, kernel_name: str) -> bytes:
    return strict_json(notebook.notebook(runs, language=language, kernel_name=kernel_name))
