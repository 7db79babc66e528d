"""What Prometheus is told of the engine and of the HTTP face, as families of metrics: docs/monitoring.md lists them.

Pure, but for asking the engine its questions. No label is an id of a tenant, a session or a run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from sessions.figures import Figures
from sessions.kernels.outcomes import Cause
from sessions.measures.stages import BOUNDS_S, Histogram
from sessions.measures.tally import Launch
from sessions.model import RunStatus, SessionState

_BOUNDS = [*map(floatToGoString, BOUNDS_S), "+Inf"]
_DEATHS = [cause for cause in Cause if cause not in (Cause.REJECTED, Cause.FAILED)]
_WRITTEN = ("answers", "artifacts", "events")

Labelled = Mapping[Any, float]
"""Values by the values of their labels, which are tuples of texts."""


@dataclass(frozen=True, slots=True)
class HttpFigures:
    """The HTTP face now. `buffered_bytes` are those that are in memory, and those that may be, by what they are."""

    requests: Mapping[tuple[str, str, int], int]
    durations: Mapping[tuple[str, str], Histogram]
    in_flight: int
    streams: Mapping[str, int]
    connections: int
    most_connections: int
    buffered_bytes: Mapping[str, tuple[int, int]]


def build_info(version: str, engine: str) -> Metric:
    """Which Cellblock this is, on which engine."""
    return _gauge("cellblock_build_info", "This gateway: always 1.", ("version", "engine"), {(version, engine): 1})


def engine_metrics(figures: Figures, languages: Collection[str], *, is_ready: bool) -> Iterator[Metric]:
    """Runs, kernels, sessions, zygote. What has not happened yet is 0, not missing."""
    tally = figures.tally
    yield _gauge("cellblock_ready", "Whether code can be run now, as /readyz says.", (), {(): is_ready})
    none_yet = {(language, status.value): 0 for language in languages for status in RunStatus if status.is_final()}
    ended = {**none_yet, **tally.runs}
    yield _counter("cellblock_runs", "Runs whose end was stored.", ("language", "status"), ended)
    live = figures.live_runs()
    yield _gauge(
        "cellblock_runs_in_progress",
        "Runs that have not ended. Those that are queued wait in their session.",
        ("status",),
        {(status.value,): live[status] for status in RunStatus if not status.is_final()},
    )
    yield _histogram(
        "cellblock_run_duration_seconds",
        "From the beginning of runs until their end was stored: the whole, and the gateway's own share of it.",
        ("part",),
        {("whole",): figures.stages.whole, ("own",): figures.stages.own},
    )
    yield _histogram(
        "cellblock_run_stage_duration_seconds",
        "How long runs were in each stage.",
        ("stage",),
        {(stage.value,): histogram for stage, histogram in figures.stages.histograms.items()},
    )
    yield from _pool_metrics(figures)
    yield _counter(
        "cellblock_kernel_deaths",
        "Kernels that died, or whose sandbox did (gone).",
        ("cause",),
        {(cause.value,): tally.deaths[cause] for cause in _DEATHS},
    )
    sessions = figures.sessions()
    by_state = {(state.value,): sessions[state] for state in SessionState}
    yield _gauge("cellblock_sessions", "Sessions, by the state of their kernel.", ("state",), by_state)
    if (zygote := figures.zygote()) is not None:
        yield _gauge("cellblock_zygote_up", "Whether the zygote forks kernels.", (), {(): zygote.is_up})
        forks = {(Launch.OK.value,): zygote.forks, (Launch.FAILED.value,): zygote.failed_forks}
        yield _counter("cellblock_zygote_forks", "Kernels that the zygote was to fork.", ("outcome",), forks)


def _pool_metrics(figures: Figures) -> Iterator[Metric]:
    pools, launches = figures.pools(), figures.tally.launches
    states = ("warm", "starting", "working", "removing")
    yield _gauge(
        "cellblock_kernels",
        "Kernels, each with its sandbox.",
        ("kernelspec", "state"),
        {(pool.kernel_name, state): getattr(pool, state) for pool in pools for state in states},
    )
    yield _gauge("cellblock_kernels_max", "How many kernels there may be.", (), {(): figures.most_sandboxes})
    yield _gauge(
        "cellblock_claims_waiting",
        "Runs and sessions that wait for a kernel.",
        ("kernelspec",),
        {(pool.kernel_name,): pool.waiting for pool in pools},
    )
    yield _gauge(
        "cellblock_claims_oldest_wait_seconds",
        "How long the first of them has waited.",
        ("kernelspec",),
        {(pool.kernel_name,): pool.oldest_wait_s for pool in pools},
    )
    yield _counter(
        "cellblock_sandbox_launches",
        "Sandboxes that were launched, or failed to.",
        ("kernelspec", "outcome"),
        {
            (pool.kernel_name, outcome.value): launches[pool.kernel_name, outcome]
            for pool in pools
            for outcome in Launch
        },
    )


def database_metrics(figures: Figures, size_bytes: int | None) -> Iterator[Metric]:
    """Whether the database answers, connections, bytes. What is not known is missing."""
    database = figures.database()
    yield _gauge("cellblock_database_up", "Whether the last check was answered.", (), {(): database.is_up})
    if database.round_trip_s is not None:
        took = {(): database.round_trip_s}
        yield _gauge("cellblock_database_round_trip_seconds", "How long the last check took.", (), took)
    yield _gauge(
        "cellblock_database_connections",
        "Connections, by what they are for.",
        ("lane", "state"),
        {
            (lane.name, state): number
            for lane in database.lanes
            for state, number in (("in_use", lane.in_use), ("idle", lane.open - lane.in_use))
        },
    )
    yield _gauge(
        "cellblock_database_connections_max",
        "How many connections there may be.",
        ("lane",),
        {(lane.name,): lane.most for lane in database.lanes},
    )
    yield _counter(
        "cellblock_written_bytes",
        "Content that was stored, uncompressed.",
        ("kind",),
        {(kind,): getattr(database.written, kind) for kind in _WRITTEN},
    )
    if size_bytes is not None:
        yield _gauge("cellblock_database_size_bytes", "The whole database, on its disk.", (), {(): size_bytes})


def http_metrics(http: HttpFigures) -> Iterator[Metric]:
    """Requests, streams, connections, memory."""
    # Prometheus sees no increase where a series begins, and the first 500 is the one that counts.
    none_failed = {(*of, str(HTTPStatus.INTERNAL_SERVER_ERROR.value)): 0 for of in http.durations}
    answered = {(route, method, str(status)): count for (route, method, status), count in http.requests.items()}
    yield _counter(
        "cellblock_http_requests",
        "Requests that were answered.",
        ("route", "method", "status"),
        {**none_failed, **answered},
    )
    yield _histogram(
        "cellblock_http_request_duration_seconds",
        "From a request's headers to its whole answer; of WebSockets, to the upgrade.",
        ("route", "method"),
        http.durations,
    )
    yield _gauge("cellblock_http_requests_in_flight", "Requests without an answer.", (), {(): http.in_flight})
    yield _gauge(
        "cellblock_http_streams",
        "Open streams of events, and WebSockets.",
        ("kind",),
        {(kind,): number for kind, number in http.streams.items()},
    )
    yield _gauge("cellblock_http_connections", "Open connections of clients.", (), {(): http.connections})
    yield _gauge("cellblock_http_connections_max", "How many there may be.", (), {(): http.most_connections})
    yield _gauge(
        "cellblock_http_buffered_bytes",
        "Request bodies and large answers in memory.",
        ("what",),
        {(what,): now for what, (now, _) in http.buffered_bytes.items()},
    )
    yield _gauge(
        "cellblock_http_buffered_bytes_max",
        "How much of them there may be.",
        ("what",),
        {(what,): most for what, (_, most) in http.buffered_bytes.items()},
    )


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def _counter(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Labelled) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, float(value))
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for of, histogram in values.items():
        buckets = list(zip(_BOUNDS, map(float, accumulate(histogram.counts)), strict=True))
        family.add_metric(of, buckets, sum_value=histogram.sum_s)
    return family
