"""An answer that is the events of a run, as they come: server-sent events, or NDJSON.

One piece is on its way at a time, so that a slow client costs no memory. A client that vanishes ends its stream, and
never its run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import structlog
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError

from gateway.http.base.handler import BaseHandler
from gateway.http.base.outgoing import Place, bytes_of
from gateway.http.render import events
from gateway.http.render.answer import run_answer
from sessions.model import EventType, RunId
from sessions.service import Service

_PIECE_BYTES = 64 << 10
_NOT_WANTED = re.compile(r"q=0(\.0*)?")
_log = structlog.get_logger("cellblock.http")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EventFormat:
    """How events are written. NDJSON has nothing to say in silence."""

    content_type: str
    write: Callable[[events.WireEvent], bytes]
    keep_alive: bytes


SSE = EventFormat("text/event-stream; charset=utf-8", events.sse_frame, b": keep-alive\n\n")
NDJSON = EventFormat("application/x-ndjson; charset=utf-8", events.ndjson_line, b"")


class StreamingHandler(BaseHandler):
    """A request that may be answered with events, or piece by piece with something else.

    Its state: `_streaming`, the task that sends them, and whether the stream was ended from outside.
    """

    ends_early: ClassVar[bool] = False

    _streaming: asyncio.Task[None] | None = None
    _is_ended = False

    async def stream_events(self, run_id: RunId, after: int, form: EventFormat) -> None:
        """Answer with the events of a run, up to its end. Enter `context.http.streams.holding` before."""
        await self.stream(form.content_type, self._send_events(run_id, after, form), run_id=run_id)

    async def stream(self, content_type: str, sending: Coroutine[Any, Any, None], **logged: Any) -> None:
        """Answer with what `sending` sends, piece by piece. Enter `context.http.streams.holding` before."""
        self.set_header("Content-Type", content_type)
        self.set_header("X-Accel-Buffering", "no")  # nginx would collect events until it has a few KiB
        self.place.waits_long = self.patience.may_pause = True
        self._streaming = asyncio.ensure_future(sending)
        self._release()  # shutdown waits for answers, and this one may take as long as its run
        try:
            if not self._is_ended:
                await asyncio.wait([self._streaming])
        finally:
            self._streaming.cancel()
        if self._streaming.done() and not self._streaming.cancelled():
            self._judge(self._streaming.exception(), logged)
        if self.request.version == "HTTP/1.0":
            self.disconnect()  # nothing else tells such a client where the answer ends

    def end_stream(self) -> None:
        """End the answer after what has been sent."""
        self._is_ended = True
        if self._streaming is not None:
            self._streaming.cancel()

    turn_away = end_stream

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.end_stream()

    async def _send_events(self, run_id: RunId, after: int, form: EventFormat) -> None:
        await self.send_piece()
        if self.request.method == "HEAD":
            return
        arriving = wire_events(self.context.service, run_id, after, self.base_url, self.place)
        async with aclosing(with_silences(arriving, self.context.http.bounds.keep_alive_s)) as batches:
            async for batch in batches:
                if batch is not None:
                    await self._send_batch(batch, form)
                elif form.keep_alive:
                    await self.send_piece(form.keep_alive)

    async def _send_batch(self, batch: list[events.WireEvent], form: EventFormat) -> None:
        """Send events in pieces that are neither many nor large: a replay can be one batch of all there is."""
        piece = bytearray()
        for event in batch:
            await self.place.make(bytes_of(event))
            piece += form.write(event)
            event.clear()
            if len(piece) >= _PIECE_BYTES:
                await self.place.take(len(piece))
                await self.send_piece(bytes(piece))
                piece.clear()
                self.place.leave()
        if piece:
            await self.send_piece(bytes(piece))
        self.place.leave()  # the next batch may be long in coming

    def _judge(self, error: BaseException | None, logged: Mapping[str, Any]) -> None:
        """What a stream that ended by itself did not bring, the client must not take for the end."""
        if error is None or isinstance(error, StreamClosedError):
            return
        if not isinstance(error, TimeoutError):
            _log.warning("stream broken off", **self.log_fields, **logged, exc_info=error)
        self.disconnect()


async def wire_events(
    service: Service, run_id: RunId, after: int, base_url: str, place: Place
) -> AsyncGenerator[list[events.WireEvent]]:
    """The events of a run above `after`, in batches as they are committed, up to and with `end`.

    Room for the answer in `end` is taken before it is read.

    Raises what `Service.follow` and `Service.result` raise.
    """
    async with aclosing(service.follow(run_id, after)) as batches:  # type: ignore[type-var]
        async for batch in batches:
            wired = [events.wire_event(run_id, event, base_url) for event in batch]
            for event, stored in zip(wired, batch, strict=True):
                if stored.type is EventType.END:
                    await place.make(await service.run_bytes(run_id))
                    event.update(run_answer(await service.result(run_id), base_url))
            yield wired


def accepts(headers: HTTPHeaders, media_type: str) -> bool:
    """Whether the client asks for this type by name; `*/*` is no wish."""
    for part in headers.get("Accept", "").lower().split(","):
        name, *parameters = [word.strip() for word in part.split(";")]
        if name == media_type and not any(_NOT_WANTED.fullmatch(parameter) for parameter in parameters):
            return True
    return False


async def with_silences(batches: AsyncGenerator[_T], silence_s: float) -> AsyncGenerator[_T | None]:
    """The same, and None whenever nothing has come for so long."""
    coming: asyncio.Task[_T] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(_next(batches))
            done, _ = await asyncio.wait([coming], timeout=silence_s)
            if not done:
                yield None
                continue
            try:
                batch = coming.result()
            except StopAsyncIteration:
                return
            finally:
                coming = None
            yield batch
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        await batches.aclose()


async def _next(batches: AsyncIterator[_T]) -> _T:
    return await anext(batches)
