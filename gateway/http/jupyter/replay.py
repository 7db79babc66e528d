"""A run told to a Jupyter client from its events: to one that was away, or too slow to be told as it happened.

It begins with `clear_output`, so that nothing is shown twice to whoever has seen some of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from gateway.http.render.notebook import Shown, ShownImage, output_content, shown_image, shown_result
from sessions.errors import Gone, NotFound, StoreUnavailable
from sessions.jupyter import messages
from sessions.jupyter.messages import ClientMessage, make, run_ending
from sessions.model import ArtifactId, Event, EventType, RunId, TenantId
from sessions.service import Service


async def replay_run(
    service: Service, tenant: TenantId, run_id: RunId, client: str, *, retry_s: float
) -> AsyncIterator[ClientMessage]:
    """All that the run has shown, and what comes of it from now on, to its end; the reply, where this client asked.

    When the database goes away in between, it begins anew. Nothing is told of a run that was removed meanwhile.
    """
    while True:
        try:
            async for message in _replay(service, tenant, run_id, client):
                yield message
        except StoreUnavailable:
            await asyncio.sleep(retry_s)
        except (NotFound, Gone):
            return
        else:
            return


async def _replay(service: Service, tenant: TenantId, run_id: RunId, client: str) -> AsyncIterator[ClientMessage]:
    record = await service.get_run(tenant, run_id)
    jupyter = record.run.jupyter
    is_asker = jupyter is not None and jupyter.client == client
    header: Mapping[str, Any] = {"msg_id": run_id, "msg_type": "execute_request"} if jupyter is None else jupyter.header
    count = record.result.execution_count if record.result is not None else None
    yield messages.status("busy", header)
    if jupyter is None or jupyter.is_noted:
        yield make("execute_input", {"code": record.run.code, "execution_count": count or 0}, header)
    yield make("clear_output", {"wait": False}, header)
    retold = _Messages(service, header, count)
    last: EventType | None = None
    async with aclosing(service.follow(run_id, 0)) as batches:  # type: ignore[type-var]
        async for events in batches:
            question: Event | None = None
            for event in events:
                last = event.type
                if event.type is EventType.INPUT_REQUEST:
                    question = event
                elif (message := await retold.message(event)) is not None:
                    yield message
            # The last one; threads may have printed since. What has been answered is not asked again.
            if question is not None and is_asker and service.waits_for_input(run_id):
                yield retold.question(question)
    if last is not EventType.END:
        return  # this gateway is stopping: the next one goes on
    result = (await service.get_run(tenant, run_id)).result
    for message in run_ending(header, result, has_error=retold.has_error):
        if message.channel == "iopub" or is_asker:
            yield message


class _Messages:
    """Events as messages. Its state: the images so far, by name, and whether an error was told."""

    def __init__(self, service: Service, header: Mapping[str, Any], execution_count: int | None) -> None:
        self.has_error = False
        self._service = service
        self._header = header
        self._execution_count = execution_count
        self._images: dict[str, ShownImage] = {}

    async def message(self, event: Event) -> ClientMessage | None:
        """One event; None for those that a notebook does not show."""
        fields = event.fields
        match event.type:
            case EventType.STARTED:
                self._execution_count = fields.get("execution_count") or self._execution_count
            case EventType.STDOUT | EventType.STDERR:
                return self._make("stream", {"name": event.type.value, "text": fields["text"]})
            case EventType.IMAGE:
                self._images[fields["name"]] = shown_image(fields)
            case EventType.RESULT:
                shown = shown_result(fields, self._images, self._execution_count)
                return self._make(shown.kind, await self._content(shown))
            case EventType.UPDATE:
                shown = shown_result(fields, self._images, self._execution_count)
                return self._make("update_display_data", await self._content(shown))
            case EventType.CLEAR:
                return self._make("clear_output", {"wait": bool(fields.get("wait"))})
            case EventType.ERROR:
                self.has_error = True
                content = {"ename": fields["name"], "evalue": fields["value"], "traceback": list(fields["traceback"])}
                return self._make("error", content)
            case _:
                pass
        return None

    def question(self, event: Event) -> ClientMessage:
        """What an `input()` asks for."""
        content = {"prompt": event.fields["prompt"], "password": event.fields["password"]}
        return make("input_request", content, self._header, "stdin")

    async def _content(self, shown: Shown) -> dict[str, Any]:
        images = {}
        if shown.image is not None:
            try:
                artifact = await self._service.artifact(ArtifactId(shown.image.artifact_id))
                images[shown.image.artifact_id] = artifact.data
            except NotFound:
                pass  # retention has removed it meanwhile
        transient = {"display_id": shown.display_id} if shown.display_id is not None else {}
        return {**output_content(shown, images), "transient": transient}

    def _make(self, msg_type: str, content: Mapping[str, Any]) -> ClientMessage:
        return make(msg_type, content, self._header)
