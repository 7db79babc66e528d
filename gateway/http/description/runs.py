"""`/runcode`, `/runs` and what runs have made."""

from __future__ import annotations

from gateway.http.description.answers import CancelAnswer, RunAnswer, RunList, RunRecord, TimedOutAnswer
from gateway.http.description.batch import BatchBody, BatchLine
from gateway.http.description.events import Event, SocketError
from gateway.http.description.operation import (
    ANY,
    FORMS,
    JSON,
    NDJSON,
    SSE,
    Answer,
    Body,
    Operation,
    Operations,
    Stream,
    json_answer,
)
from gateway.http.description.parameters import RUN_ID
from gateway.http.parse.run_query import EventsQueryFields, RunsQueryFields
from gateway.http.parse.run_request import RunFields
from gateway.http.parse.socket_messages import MESSAGES
from sessions.errors import (
    Conflict,
    EndNotStored,
    Gone,
    NotFound,
    TooManyRequests,
    UnsupportedLanguage,
    UnsupportedMediaType,
)

_USAGE = {"wall_ms": 22.374, "cpu_ms": 12.5, "memory_peak_bytes": 61640704}
_ANSWER = {
    "run_id": RUN_ID,
    "status": "ok",
    "output": "",
    "results": [{"text/plain": "42"}],
    "execution_count": 1,
    "usage": _USAGE,
}
_RUN_ANSWERS = {
    200: Answer(
        "The run has ended, whatever `status` says: an error in the code is a 200. With `stream`, its events.",
        {JSON: RunAnswer, SSE: Stream(Event)},
        example=_ANSWER,
    ),
    504: json_answer(
        TimedOutAnswer,
        "The run passed its time limit. The answer has what there is, and `code` and `request_id` too.",
        example=_ANSWER | {"status": "timeout", "error": "…", "code": "timeout", "request_id": "dda7f19c"},
    ),
}
_RUN_ERRORS = (UnsupportedLanguage, NotFound, Conflict, Gone, TooManyRequests, EndNotStored)
_EVENTS = {SSE: Stream(Event), NDJSON: Stream(Event)}
_FOUND = ("ETag", "Content-Disposition", "Content-Security-Policy")


def _artifact(what: str, shown: str) -> Operation:
    return Operation(
        f"Get {what} that a run has made",
        {200: Answer(shown, {ANY: None}, _FOUND), 304: Answer("You have it.", headers=("ETag",))},
        details="It needs no token, so that a chat page can show it: the UUID is the key. It is there until "
        "`retention.days` have passed.",
        headers=("If-None-Match",),
    )


OPERATIONS: Operations = {
    "POST /runcode": Operation(
        "Run code",
        _RUN_ANSWERS,
        details="Waits for the end of the run, or streams its events. A client that hangs up does not stop its run. "
        "In forms, what is no text, such as `variables`, is a JSON string, and empty fields count as not given.",
        headers=("Idempotency-Key",),
        body=Body(
            RunFields,
            (JSON, *FORMS),
            examples={
                "variables": {"code": "x * 2", "variables": {"x": 21}},
                "session": {"code": "x = 1", "session_id": "chat-42"},
            },
        ),
        errors=(*_RUN_ERRORS, UnsupportedMediaType),
    ),
    "GET /runcode": Operation(
        "Run code from a query",
        _RUN_ANSWERS,
        details='If the code is no Python as it came, but is with `\\n`, `\\t` and `\\"` unescaped, the unescaped text '
        "is run. Empty fields count as not given.",
        query=RunFields,
        headers=("Idempotency-Key",),
        errors=_RUN_ERRORS,
        example={"code": "print(x + 1)", "variables": {"x": 1}},
    ),
    "POST /runcode/batch": Operation(
        "Run many pieces of code",
        {200: Answer("A line for each item, as its run ends.", {NDJSON: Stream(BatchLine)})},
        details="A bad item fails alone. Under its `idempotency_key` an item is run once, however often the batch is "
        "sent. Items of one session run one after the other; few of the others run at once, so that everybody else's "
        "runs have their turn.",
        body=Body(
            BatchBody,
            examples={"two": {"runs": [{"code": "1 + 1", "idempotency_key": "a"}, {"id": "b", "code": "2 + 2"}]}},
        ),
        errors=(TooManyRequests, UnsupportedMediaType),
    ),
    "GET /runcode/ws": Operation(
        "Run code over a WebSocket",
        {101: Answer("A WebSocket of JSON objects in text frames.", headers=("Sec-WebSocket-Protocol",))},
        details="Here `input()` works, and a run can be interrupted. Each message has an `op`, and an `id` of yours, "
        "which the events of its run carry too. Up to 32 runs may be in flight.",
        headers=("Sec-WebSocket-Protocol",),
        errors=(TooManyRequests,),
        sends=MESSAGES,
        receives=(Event, SocketError),
    ),
    "GET /runs": Operation(
        "List runs", {200: json_answer(RunList, "Runs, newest first.")}, query=RunsQueryFields, example={"limit": 10}
    ),
    "GET /runs/{id}": Operation(
        "Get a run", {200: json_answer(RunRecord, "The run, also one that lives or has timed out.")}, errors=(Gone,)
    ),
    "GET /runs/{id}/events": Operation(
        "Follow a run",
        {200: Answer("The events from the beginning, and as they come, up to `end`.", _EVENTS)},
        details="The sequence has no gap and no repeat, whatever happened to the gateway in between. A stream without "
        "`end` was cut: read on from the `seq` of the last event that you have. "
        "`Accept: application/x-ndjson` gives one JSON object per line instead of server-sent events.",
        query=EventsQueryFields,
        headers=("Last-Event-ID",),
        errors=(Gone, TooManyRequests),
    ),
    "POST /runs/{id}/cancel": Operation(
        "Cancel a run",
        {202: json_answer(CancelAnswer, "It ends as `cancelled`, unless it has ended.")},
        errors=(Conflict, Gone),
    ),
    "GET /image/{artifact}": _artifact("an image", "The image. SVG, and what is no picture, is a download."),
    "GET /file/{artifact}": _artifact("a file", "The file, as a download unless it is a picture."),
}
