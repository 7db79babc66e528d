"""Replays a run from its events to a Jupyter client that was away, or too slow to receive it live.

A replay begins with `clear_output`, so that a client that has seen a part of the run shows nothing twice. It lasts as
long as the run; what belongs to no run is sent meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

from gateway.http.base.outgoing import Place
from gateway.http.render.outputs import Output, OutputMessages, output_content
from sessions.errors import Gone, NotFound, StoreUnavailable
from sessions.jupyter import messages
from sessions.jupyter.messages import ClientMessage, make, run_ending
from sessions.model import ArtifactId, Event, EventType, RunId, TenantId
from sessions.service import Service


async def replay_run(
    service: Service, tenant: TenantId, run_id: RunId, client: str, *, retry_s: float, place: Place | None = None
) -> AsyncIterator[ClientMessage]:
    """All output of the run so far, then live output to its end; the reply only for the client that asked.

    The replay starts again, after `retry_s`, when the database fails. A run that was removed yields nothing. Room for
    what is large is taken in `place` before that is read.
    """
    while True:
        try:
            if place is not None:
                await place.make(await service.run_bytes(run_id))
            async for message in _replay(service, tenant, run_id, client, place):
                yield message
        except StoreUnavailable:
            await asyncio.sleep(retry_s)
        except (NotFound, Gone):
            return
        else:
            return


async def with_others(
    replay: AsyncIterator[ClientMessage], next_ahead: Callable[[], Awaitable[ClientMessage | None]]
) -> AsyncIterator[tuple[ClientMessage, bool]]:
    """The messages of a replay, and between them, as they come, those that go ahead of its rest.

    Each comes with whether it is the replay's; the next of those is read when the caller is done with it.
    """
    of_replay = asyncio.ensure_future(_next(replay))
    ahead = asyncio.ensure_future(next_ahead())
    waiting: set[asyncio.Future[ClientMessage | None]] = {of_replay, ahead}
    try:
        while True:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if ahead in done and (other := ahead.result()) is not None:
                ahead = asyncio.ensure_future(next_ahead())
                waiting.add(ahead)
                yield other, False
            if of_replay in done:
                if (message := of_replay.result()) is None:
                    if ahead.done() and (other := ahead.result()) is not None:  # it came while the last one was sent
                        yield other, False
                    return
                yield message, True
                of_replay = asyncio.ensure_future(_next(replay))
                waiting.add(of_replay)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _next(replay: AsyncIterator[ClientMessage]) -> ClientMessage | None:
    return await anext(replay, None)


async def _replay(
    service: Service, tenant: TenantId, run_id: RunId, client: str, place: Place | None
) -> AsyncIterator[ClientMessage]:
    record = await service.get_run(tenant, run_id)
    jupyter = record.run.jupyter
    is_asker = jupyter is not None and jupyter.client == client
    header: Mapping[str, Any] = {"msg_id": run_id, "msg_type": "execute_request"} if jupyter is None else jupyter.header
    count = record.result.execution_count if record.result is not None else None
    yield messages.status("busy", header)
    if jupyter is None or jupyter.is_noted:
        yield make("execute_input", {"code": record.run.code, "execution_count": count or 0}, header)
    del record
    yield make("clear_output", {"wait": False}, header)
    outputs, has_error = OutputMessages(count), False
    last: EventType | None = None
    async with aclosing(service.follow(run_id, 0)) as batches:  # type: ignore[type-var]
        async for events in batches:
            question: Event | None = None
            for event in events:
                last = event.type
                if event.type is EventType.INPUT_REQUEST:
                    question = event
                elif (output := outputs.output(event)) is not None:
                    has_error |= output.msg_type == "error"
                    yield await _message(service, output, header, place)
            # The last question; threads may have printed since. An answered question is not asked again.
            if question is not None and is_asker and service.waits_for_input(run_id):
                content = {name: question.fields[name] for name in ("prompt", "password")}
                yield make("input_request", content, header, "stdin")
    if last is not EventType.END:
        return  # this gateway is stopping: the next one goes on
    result = (await service.get_run(tenant, run_id)).result
    for message in run_ending(header, result, has_error=has_error):
        if message.channel == "iopub" or is_asker:
            yield message


async def _message(service: Service, output: Output, header: Mapping[str, Any], place: Place | None) -> ClientMessage:
    """An output as a message, with its image, unless retention has removed that."""
    images = {}
    if output.image is not None:
        if place is not None:
            await place.make(2 * output.image.size_bytes)
        with suppress(NotFound):
            images[output.image.artifact_id] = (await service.artifact(ArtifactId(output.image.artifact_id))).data
    content = output_content(output, images)
    if "data" in content:
        content["transient"] = {"display_id": output.display_id} if output.display_id is not None else {}
    return make(output.msg_type, content, header)
