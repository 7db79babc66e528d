"""`POST /runcode/batch`: many runs, each answered with a line of JSON when it has ended.

Which of them are under way is decided in sessions/runs/batch.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from tornado.httputil import HTTPServerRequest
from tornado.web import Application

from gateway.http.api.runcode import room_for
from gateway.http.api.streaming import NDJSON, StreamingHandler
from gateway.http.base.errors import error_fields, status_of
from gateway.http.base.outgoing import bytes_of
from gateway.http.parse import batch_request, body, run_request
from gateway.http.parse.batch_request import GivenItem, ItemId
from gateway.http.render.answer import final_answer, strict_json
from sessions.errors import CellblockError, EndNotStored, InvalidRequest, NotFound, Unavailable, UnsupportedMediaType
from sessions.model import Result, RunId, RunRequest
from sessions.runs.batch import Batch

_CHECKED_AT_ONCE_S = 0.01
_LONGEST_TURN_S = 0.5
_log = structlog.get_logger("cellblock.http")


class BatchHandler(StreamingHandler):
    """A client that disconnects does not stop the runs that have begun; further ones do not begin.

    Its state: whose turn it is to write, and how many items are not answered yet.
    """

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        self._writing = asyncio.Lock()
        self._unanswered = 0
        super().__init__(application, request, **kwargs)

    def _check_headers(self) -> None:
        super()._check_headers()
        if self.request.method != "POST":
            return
        if body.is_form(body.check_media_type(self.request.headers)):
            raise UnsupportedMediaType("A batch is JSON: send it as application/json.")
        if "Idempotency-Key" in self.request.headers:
            raise InvalidRequest(
                'A batch has no Idempotency-Key: give each item of "runs" an "idempotency_key" of its own.'
            )

    async def handle_request(self) -> None:
        if self.request.query:
            raise InvalidRequest("POST takes its fields in the body: leave the query out of the URL.")
        given = deque(batch_request.given_items(self.body))
        shares = shares_of(self._body.received_bytes, [bytes_of(one.value) for one in given])
        if not self._body.give_way():
            raise Unavailable("Too much of other batches is waiting; nothing was run: send this one again in a moment.")
        self.logged["items"] = self._unanswered = len(given)
        with self.context.http.streams.holding(self):
            await self.stream(NDJSON.content_type, self._perform(given, shares))
        if self._unanswered:
            self.disconnect()  # the end of an answer says that it is whole

    async def _perform(self, given: deque[GivenItem], shares: Sequence[int]) -> None:
        await self.send_piece()
        items: list[Item] = []
        since_s = time.monotonic()
        for share_bytes in shares:
            one = given.popleft()
            try:
                items.append(Item(self, one.id, self._run_request(one), share_bytes))
            except Exception as error:  # noqa: BLE001 - whatever it is, the other items go on
                self.release(share_bytes)
                await self.send_line(_line(one.id, *self.refusal(error)))
            if (spent_s := time.monotonic() - since_s) >= _CHECKED_AT_ONCE_S:
                # Others have as much of the event loop's time: to parse code may take long.
                await asyncio.sleep(min(spent_s, _LONGEST_TURN_S))
                since_s = time.monotonic()
        del one
        await Batch(self.context.batches, self.tenant).perform(items)

    def _run_request(self, given: GivenItem) -> RunRequest:
        fields = given.fields()
        return run_request.run_request(
            fields,
            tenant=self.tenant,
            languages=self.context.config.languages,
            limits=self.context.config.limits,
            idempotency_key=fields.idempotency_key,
            env_allowed=self.context.config.env_allowed,
            traceparent=self.traceparent,
        )

    def refusal(self, error: Exception) -> tuple[dict[str, Any], int]:
        """The answer that says why there is no other, and its status. An unexpected error is logged."""
        if not isinstance(error, CellblockError):
            _log.error("unexpected error", route=self.route.path, **self.log_fields, exc_info=error)
        return {**error_fields(error), "request_id": self.request_id}, status_of(error)

    def release(self, share_bytes: int) -> None:
        """An item that took up so much of the body is held no longer."""
        self._body.release(share_bytes)

    async def send_line(self, line: bytes) -> None:
        """Send the answer of an item; return once the client has taken it."""
        async with self._writing:
            await self.send_piece(line)
        self._unanswered -= 1


class Item:
    """A `BatchItem`. Its state: the place of its answer among all answers, and the request until there is an answer."""

    def __init__(self, handler: BatchHandler, identifier: ItemId, request: RunRequest, share_bytes: int) -> None:
        self.session_id = request.session_id
        self._handler = handler
        self._service = handler.context.service
        self._id = identifier
        self._request: RunRequest | None = request
        self._share_bytes = share_bytes
        self._place = handler.context.answers.place()
        self._place.waits_long = True

    def claims_kernel(self) -> bool:
        if self.session_id is None:
            return True
        try:
            self._service.get_session(self._handler.tenant, self.session_id)
        except NotFound:
            return True
        return False

    async def begin(self) -> RunId:
        assert self._request is not None  # noqa: S101 - it is there until the item is answered
        return await self._service.begin(self._request)

    async def result(self, run_id: RunId) -> Result:
        try:
            size_bytes = await self._service.stored_bytes(run_id)
            with room_for(run_id):
                await self._place.make(size_bytes)
            return await self._service.result(run_id)
        except BaseException:
            self._place.leave()
            raise

    async def answer(self, outcome: Result | Exception) -> None:
        self._request = None
        self._handler.release(self._share_bytes)
        with self._place:
            line = await self._line_of(outcome)
            del outcome
            await self._handler.send_line(line)

    async def _line_of(self, outcome: Result | Exception) -> bytes:
        """Its line, once there is room for that; where there is none in time, the line says so."""
        handler = self._handler
        if isinstance(outcome, Exception):
            return _line(self._id, *handler.refusal(outcome))
        answer, status = final_answer(outcome, handler.base_url, handler.request_id)
        try:
            with room_for(outcome.run_id):
                await self._place.make(bytes_of(answer))
                line = _line(self._id, answer, status)
                await self._place.take(len(line))
        except EndNotStored as error:
            return _line(self._id, *handler.refusal(error))
        return line


def shares_of(size_bytes: int, weights: Sequence[int]) -> list[int]:
    """What each item counts of a body of this size, by what it takes decoded. Together they are no more than that."""
    total = sum(weights)
    return [size_bytes * weight // total if total else 0 for weight in weights]


def _line(identifier: ItemId, answer: Mapping[str, Any], status: int) -> bytes:
    return strict_json({"id": identifier, "status_code": status, **answer}) + b"\n"
