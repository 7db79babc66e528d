"""`POST /runcode` and `GET /runcode`: one stateless run, answered when its end is committed."""

from __future__ import annotations

from typing import ClassVar

from gateway.handlers import fields, run_request
from gateway.handlers.answer import run_answer
from gateway.handlers.base import BaseHandler, Exposure
from sessions.errors import InvalidRequest
from sessions.model import RunRequest, RunStatus


class RunCodeHandler(BaseHandler):
    """A client that disconnects does not stop its run: nothing here is cancelled with the connection."""

    route: ClassVar[str] = "/runcode"
    methods: ClassVar[tuple[str, ...]] = ("GET", "POST")
    exposure: ClassVar[Exposure] = Exposure.GUARDED

    def _check_headers(self) -> None:
        super()._check_headers()
        if self.request.method == "POST":
            fields.check_media_type(self.request.headers)

    async def answer(self) -> None:
        """Run the code and send all that came of it."""
        self._refuse_what_is_not_built_yet()
        result = await self.context.service.run(self._run_request())
        answer = run_answer(result, self._base_url())
        if result.status is RunStatus.TIMEOUT:
            self.error_code = "timeout"
            await self.send_json({**answer, "code": "timeout", "request_id": self.request_id}, status=504)
        else:
            await self.send_json(answer)

    def _run_request(self) -> RunRequest:
        headers = self.request.headers
        from_query = self.request.method == "GET"
        if from_query:
            given = run_request.from_text(fields.parse_query(self.request.query))
        else:
            media_type = fields.check_media_type(headers)
            if self.request.query:
                raise InvalidRequest("POST takes its fields in the body: leave the query out of the URL.")
            if fields.is_form(media_type):
                given = run_request.from_text(fields.parse_form(media_type, headers["Content-Type"], self.body))
            else:
                given = run_request.from_json(fields.parse_json_object(self.body))
        return run_request.run_request(
            given,
            tenant=self.tenant,
            languages=self.context.languages,
            limits=self.context.limits,
            from_query=from_query,
        )

    def _refuse_what_is_not_built_yet(self) -> None:
        headers = self.request.headers
        if "Idempotency-Key" in headers:
            raise InvalidRequest("The header Idempotency-Key is not available in this version: leave it out.")
        if "text/event-stream" in headers.get("Accept", "").lower():
            raise InvalidRequest("Streaming is not available in this version: accept application/json.")

    def _base_url(self) -> str:
        """`server.public_url`, or what the client itself used. X-Forwarded-* headers are anybody's to send."""
        return self.context.public_url or f"{self.request.protocol}://{self.request.host}"
