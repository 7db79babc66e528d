"""The status page and its figures. Here the types make the answer, too."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.http.description.answers import Time
from gateway.http.description.operation import ANY, Answer, Operation, Operations, json_answer

Values = list[float | None]
"""A value for each slot of time, oldest first; null where nothing is known."""

Window = Literal["hour", "day"]


class StatusQuery(Struct, frozen=True):
    """The query of `GET /status.json`."""

    window: Window = "hour"
    """How far `history` goes back."""


class GatewayStatus(Struct):
    """Which gateway this is."""

    version: str
    """Of Cellblock."""
    engine: str
    """What runs the sandboxes: `docker` or `process`."""
    isolation: str
    """`container`, or `none`."""
    runtime: str | None
    """The container runtime that is configured, such as `runsc`; `null`: the engine's own."""
    started_at: Time
    """When it was started."""
    uptime: float
    """How many seconds it has been there."""


class RunsNow(Struct):
    """Runs that have not ended."""

    running: int
    """Those whose kernel has been chosen."""
    queued: int
    """Those that wait in their session."""


class QueueNow(Struct):
    """Runs and sessions that wait for a kernel."""

    waiting: int
    """How many there are."""
    oldest_wait: float
    """How many seconds the first of them has waited."""


class KernelsNow(Struct):
    """Kernels, each with its sandbox."""

    warm: int
    """Ready and unused."""
    starting: int
    """Not ready yet."""
    in_use: int
    """Of a run or a session."""
    max: int
    """How many sandboxes there may be."""


class Lane(Struct):
    """Connections to the database that serve one kind of call."""

    lane: str
    """`quick` for what every run writes, `bulk` for large things, `small` for the rest."""
    open: int
    """How many there are."""
    in_use: int
    """How many of them are at work."""
    max: int
    """How many there may be."""


class DatabaseNow(Struct):
    """The database, as the last check found it: one every two seconds."""

    reachable: bool
    """Whether it answered."""
    round_trip: float | None
    """How many seconds that took; `null` when it did not answer."""
    lanes: list[Lane]
    """The connections."""


class StatusNow(Struct):
    """What there is at this moment."""

    at: Time
    """By the gateway's clock."""
    ready: bool
    """Whether a run would be taken, as `/readyz` says."""
    reasons: list[str]
    """Why not: a sentence each."""
    warnings: list[str]
    """What else is not as it should be."""
    runs: RunsNow
    """Runs."""
    queue: QueueNow
    """The queue for kernels."""
    kernels: KernelsNow
    """Kernels."""
    sessions: dict[str, int]
    """Sessions of all tenants, by state."""
    database: DatabaseNow
    """The database."""


class Requests(Struct):
    """Requests that were answered."""

    answered: int
    """All of them."""
    server_errors: int
    """Those with a 5xx, but for 504, a run past its time limit, and for `/readyz`."""
    too_many_requests: int
    """Those with 429."""


class StageTimes(Struct):
    """How long runs were in one stage."""

    stage: str
    """Its name, as in docs/monitoring.md."""
    count: int
    """How many runs passed it."""
    p50: float
    """The median, in seconds."""
    p95: float
    """The 95th percentile."""


class SinceStart(Struct):
    """What has happened since the gateway was started."""

    ended: dict[str, int]
    """Runs that have ended, by status."""
    deaths: dict[str, int]
    """Kernels that died, by cause."""
    requests: Requests
    """Requests."""
    stages: list[StageTimes]
    """The stages of a run that were passed, in their order."""


class Quantiles(Struct):
    """Durations in seconds, as exactly as the buckets of a histogram tell."""

    count: int
    """How many there were."""
    p50: float | None
    """The median."""
    p95: float | None
    """The 95th percentile."""
    p99: float | None
    """The 99th percentile."""


class StatusHistory(Struct):
    """The past hour or day in slots of time: lists with a value for each, oldest first, `null` where none is known.

    What there is at a time is averaged over the slot; of `queue.oldest_wait` and `database.round_trip` the largest is
    kept. What happens is counted.
    """

    window: Window
    """Which of the two."""
    span: float
    """Its whole length, in seconds."""
    step: float
    """The length of a slot."""
    begins_at: Time | None
    """The beginning of the first slot; `null` while there is none."""
    run_time: Quantiles
    """Of all runs of the slots: from their beginning until their end was stored."""
    own_time: Quantiles
    """The share of that which was the gateway's own: without the kernel, and without waiting for it."""
    series: dict[str, dict[str, Values]]
    """The lists, by group and name, as docs/monitoring.md has them."""


class StatusAnswer(Struct):
    """What a gateway tells of itself. No figure is of one tenant."""

    gateway: GatewayStatus
    """Which gateway this is."""
    now: StatusNow
    """What there is."""
    since_start: SinceStart
    """What has happened."""
    history: StatusHistory
    """What there was."""


OPERATIONS: Operations = {
    "GET /status": Operation(
        "Get the status page",
        {200: Answer("A page without figures, which asks for them.", {"text/html": str}, ("ETag",))}
        | {304: Answer("You have it.", headers=("ETag",))},
        headers=("If-None-Match",),
    ),
    "GET /status/{file}": Operation(
        "Get a part of the status page",
        {200: Answer("A script or a style sheet.", {ANY: None}, ("ETag",))}
        | {304: Answer("You have it.", headers=("ETag",))},
        headers=("If-None-Match",),
    ),
    "GET /status.json": Operation(
        "Get the figures of the status page",
        {200: json_answer(StatusAnswer, "The figures of this gateway since its start.")},
        details="They are of all tenants together. Nothing asks the database for them.",
        query=StatusQuery,
        example={"window": "hour"},
    ),
}
