"""`POST /runcode` and `GET /runcode`: one run, answered when its end is committed, or with its events as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway.http.api.streaming import SSE, StreamingHandler, accepts
from gateway.http.base.outgoing import bytes_of
from gateway.http.parse import body, run_request
from gateway.http.render.answer import final_answer
from sessions.errors import EndNotStored, InvalidRequest, Unavailable
from sessions.measures.stages import Stage
from sessions.model import Result, RunId, RunRequest

_NOT_SENT = (
    "The code was run, and its answer is stored, but too many large answers are on their way to send it now: "
    "GET /runs/{} has it. Do not run it again."
)


class RunCodeHandler(StreamingHandler):
    """A client that disconnects does not stop its run: nothing here is cancelled with the connection."""

    def _check_headers(self) -> None:
        super()._check_headers()
        if self.request.method == "POST":
            body.check_media_type(self.request.headers)

    async def handle_request(self) -> None:
        given = self._fields()
        request = self._run_request(given)
        self.context.service.stages.observe(Stage.HANDLER, self.request.request_time())
        is_streamed = given.stream or accepts(self.request.headers, "text/event-stream")
        del given
        if is_streamed:
            with self.context.http.streams.holding(self):
                run_id = await self.context.service.begin(request)
                del request
                await self.stream_events(run_id, 0, SSE)
            return
        self.place.waits_long = True
        if request.idempotency_key is None:
            running = self.context.service.run(request)
        else:
            running = self._known(await self.context.service.begin(request))
        del request
        answering = self._answer(await running)
        ended_s = time.perf_counter()
        await self.send_json(*await answering)
        self.context.service.stages.observe(Stage.ANSWER, time.perf_counter() - ended_s)

    async def _known(self, run_id: RunId) -> Result:
        """The result of a run that may be stored already: there is room for it before it is read."""
        size_bytes = await self.context.service.stored_bytes(run_id)
        with room_for(run_id):
            await self.place.make(size_bytes)
        return await self.context.service.result(run_id)

    async def _answer(self, result: Result) -> tuple[dict[str, Any], int]:
        """The answer and its status, once there is room for it. Raises EndNotStored when there is none in time."""
        answer, status = final_answer(result, self.base_url, self.request_id)
        self.error_code = answer.get("code")
        with room_for(result.run_id):
            await self.place.make(bytes_of(answer))
        return answer, status

    def _fields(self) -> run_request.RunFields:
        headers = self.request.headers
        if self._is_query:
            return run_request.from_text(body.parse_query(self.request.query))
        media_type = body.check_media_type(headers)
        if self.request.query:
            raise InvalidRequest("POST takes its fields in the body: leave the query out of the URL.")
        if body.is_form(media_type):
            return run_request.from_text(body.parse_form(media_type, headers["Content-Type"], self.body))
        return body.fields_of(run_request.RunFields, body.parse_json_object(self.body))

    def _run_request(self, given: run_request.RunFields) -> RunRequest:
        return run_request.run_request(
            given,
            tenant=self.tenant,
            languages=self.context.config.languages,
            limits=self.context.config.limits,
            from_query=self._is_query,
            idempotency_key=self.request.headers.get("Idempotency-Key"),
            env_allowed=self.context.config.env_allowed,
            traceparent=self.traceparent,
        )

    @property
    def _is_query(self) -> bool:
        return self.request.method == "GET"


@contextmanager
def room_for(run_id: RunId) -> Iterator[None]:
    """Where room is taken for the answer of a run that has ended. Raises EndNotStored when there is none in time."""
    try:
        yield
    except Unavailable as error:
        raise EndNotStored(_NOT_SENT.format(run_id)) from error
