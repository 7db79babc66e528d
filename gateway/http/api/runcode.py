"""`POST /runcode` and `GET /runcode`: one run, answered when its end is committed, or with its events as they come."""

from __future__ import annotations

from gateway.http.api.streaming import SSE, StreamingHandler, accepts
from gateway.http.parse import body, run_request
from gateway.http.render.answer import run_answer
from sessions.errors import InvalidRequest
from sessions.model import RunRequest, RunStatus


class RunCodeHandler(StreamingHandler):
    """A client that disconnects does not stop its run: nothing here is cancelled with the connection."""

    def _check_headers(self) -> None:
        super()._check_headers()
        if self.request.method == "POST":
            body.check_media_type(self.request.headers)

    async def handle_request(self) -> None:
        given = self._fields()
        request = self._run_request(given)
        if given.stream or accepts(self.request.headers, "text/event-stream"):
            with self.context.http.streams.holding(self):
                run_id = await self.context.service.begin(request)
                await self.stream_events(run_id, 0, SSE)
            return
        result = await self.context.service.run(request)
        answer = run_answer(result, self.base_url)
        if result.status is RunStatus.TIMEOUT:
            self.error_code = "timeout"
            await self.send_json({**answer, "code": "timeout", "request_id": self.request_id}, status=504)
        else:
            await self.send_json(answer)

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
        )

    @property
    def _is_query(self) -> bool:
        return self.request.method == "GET"
