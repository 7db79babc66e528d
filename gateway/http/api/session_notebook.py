"""`GET /sessions/{id}/notebook`: the runs of a session, with their outputs and images, as one `.ipynb` file.

The handler fetches runs within bounds; render/notebook.py decides what a notebook looks like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from gateway.http.api.artifacts import disposition
from gateway.http.base.handler import BaseHandler
from gateway.http.base.limits import HttpBounds
from gateway.http.parse import urls
from gateway.http.render.answer import strict_json
from gateway.http.render.outputs import NotebookRun, Output, final_outputs, note
from sessions.errors import Gone, NotFound, TooLarge
from sessions.model import ArtifactId, Session


class SessionNotebookHandler(BaseHandler):
    """A download of what happened in a session.

    The mutable state, beside the base class's, is whether the client has disconnected. Fetching stops then, but a
    document that is being written is finished: until then its memory is in use, and the tenant's turn lasts.
    """

    _is_disconnected = False

    async def handle_request(self) -> None:
        session = self.context.service.get_session(self.tenant, urls.session_in(self.request.path)).session
        async with self.context.http.notebook(self.tenant):
            if self._is_disconnected:  # while it waited
                return
            runs, has_older = await self._runs(session)
            if self._is_disconnected:
                return
            kernel_name = self.context.config.languages.get(session.language, session.language)
            # Validation is slow, and must not block the event loop.
            document = await asyncio.to_thread(_document, runs, session.language, kernel_name, has_older)
            del runs
            await self.place.take(len(document))
        self.set_header("Content-Type", "application/x-ipynb+json")
        self.set_header("Content-Disposition", disposition(f"{session.session_id}.ipynb", inline=False))
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        await self.send(document)

    def on_connection_close(self) -> None:
        """Stop fetching: nobody waits for the notebook."""
        super().on_connection_close()
        self._is_disconnected = True

    async def _runs(self, session: Session) -> tuple[list[NotebookRun], bool]:
        """The newest runs, within the bounds, and whether there are older ones.

        Raises TooLarge when even their code is beyond the bounds. It is not all of them when the client has gone.
        """
        service, bounds = self.context.service, self.context.http.bounds
        summaries = await service.session_runs(self.tenant, session.session_id, bounds.notebook_runs + 1)
        runs: list[NotebookRun] = []
        left = _Budget(bounds)
        for summary in summaries[-bounds.notebook_runs :]:
            if self._is_disconnected:
                break
            try:
                record, events = await service.get_events(self.tenant, summary.run_id)
            except (NotFound, Gone):
                continue  # retention has removed it meanwhile
            if record.run.jupyter is not None and not record.run.jupyter.is_noted:
                continue  # a Jupyter client's own question, which no notebook shows
            left.charge_source(record.run.code, record.run.variables)
            shown = left.fitting(final_outputs(record, events))
            count = None if record.result is None else record.result.execution_count
            runs.append(NotebookRun(record.run, count, shown, await self._images(shown)))
        return runs, len(summaries) > bounds.notebook_runs

    async def _images(self, shown: Sequence[Output]) -> dict[str, bytes]:
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

    def __init__(self, bounds: HttpBounds) -> None:
        self._source_bytes = bounds.notebook_source_bytes
        self._image_bytes = bounds.notebook_shown_bytes
        self._other_bytes = bounds.notebook_shown_bytes

    def charge_source(self, code: str, variables: Mapping[str, object]) -> None:
        """Count what cannot be left out."""
        self._source_bytes -= len(code) + len(strict_json(dict(variables)))
        if self._source_bytes < 0:
            raise TooLarge("The code of this session is too large for one notebook: read its runs one by one at /runs.")

    def fitting(self, shown: Sequence[Output]) -> list[Output]:
        """The outputs that fit, and a note where some do not."""
        kept: list[Output] = []
        for output in shown:
            image_bytes = 0 if output.image is None else output.image.size_bytes
            if output.size_bytes <= self._other_bytes and image_bytes <= self._image_bytes:
                self._other_bytes -= output.size_bytes
                self._image_bytes -= image_bytes
                kept.append(output)
        if len(kept) < len(shown):
            left_out = len(shown) - len(kept)
            kept.append(note(f"{left_out} outputs were left out: the notebook would be too large"))
        return kept


def _document(runs: Sequence[NotebookRun], language: str, kernel_name: str, has_older: bool) -> bytes:  # noqa: FBT001
    from gateway.http.render import notebook  # nbformat is slow to import, and few gateways need it

    return strict_json(notebook.notebook(runs, language=language, kernel_name=kernel_name, has_older=has_older))
