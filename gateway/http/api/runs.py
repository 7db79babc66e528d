"""`/runs` and what is below it: runs of a tenant, whole or as events, and the end of one that is unwanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gateway.http.api.streaming import NDJSON, SSE, StreamingHandler, accepts
from gateway.http.base.handler import BaseHandler
from gateway.http.parse import run_query, urls
from gateway.http.parse.times import iso
from gateway.http.render.answer import run_answer
from sessions.errors import Gone, InvalidRequest, NotFound
from sessions.model import Result, RunId, RunRecord, RunSummary


class RunsHandler(BaseHandler):
    """The tenant's runs, newest first."""

    async def handle_request(self) -> None:
        query, before = run_query.runs_asked(self.request.query, self.tenant)
        if before is not None:
            query = replace(query, before_number=await self._number(before))
        runs = await self.context.service.list_runs(query)
        await self.send_json({"runs": [_summary(run) for run in runs]})

    async def _number(self, run_id: RunId) -> int:
        try:
            return (await self.context.service.get_run(self.tenant, run_id)).number
        except NotFound as error:
            raise InvalidRequest('"before" names a run that does not exist.') from error
        except Gone as error:
            raise InvalidRequest(
                '"before" names a run that was removed: give the time at which it was made.'
            ) from error


class RunHandler(BaseHandler):
    """One run."""

    async def handle_request(self) -> None:
        run_id = urls.run_in(self.request.path)
        service = self.context.service
        await self.place.make(await service.run_bytes(run_id))
        await self.send_json(run_record(await service.get_run(self.tenant, run_id), self.base_url))


class RunEventsHandler(StreamingHandler):
    """The events of one run, from the beginning or behind those that the client has."""

    async def handle_request(self) -> None:
        run_id = urls.run_in(self.request.path)
        headers = self.request.headers
        after = run_query.events_after(self.request.query, headers.get("Last-Event-ID"))
        await self.context.service.get_run(self.tenant, run_id)
        wants_lines = accepts(headers, "application/x-ndjson") and not accepts(headers, "text/event-stream")
        with self.context.http.streams.holding(self):
            await self.stream_events(run_id, after, NDJSON if wants_lines else SSE)


class RunCancelHandler(BaseHandler):
    """The end of a run that is not wanted any more."""

    async def handle_request(self) -> None:
        """Have it ended; it has not yet, as a rule, when this is answered."""
        run_id = urls.run_in(self.request.path)
        await self.context.service.cancel(self.tenant, run_id)
        record = await self.context.service.get_run(self.tenant, run_id)
        await self.send_json({"run_id": run_id, "status": record.status.value}, status=202)


def run_record(record: RunRecord, base_url: str) -> dict[str, Any]:
    """A run's answer, so far or final, with what was asked and when."""
    run = record.run
    result = record.result or Result(run.run_id, record.status, "", session_id=run.session_id)
    answer = run_answer(result, base_url)
    answer["status"] = record.status.value
    return {
        **answer,
        "code": run.code,
        "language": run.language,
        "created_at": iso(run.created_at),
        "finished_at": iso(record.finished_at),
        **({} if run.traceparent is None else {"traceparent": run.traceparent}),
    }


def _summary(run: RunSummary) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "status": run.status.value,
        "language": run.language,
        "session_id": run.session_id,
        "created_at": iso(run.created_at),
        "finished_at": iso(run.finished_at),
        "usage": None if run.usage is None else run.usage.as_json(),
    }
