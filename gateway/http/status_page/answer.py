"""`GET /status.json`: the figures of now, of all the time since the start, and of the last hour or day."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.field_errors import near, shown
from gateway.host.packages import own_version
from gateway.http.base.context import Context
from gateway.http.description.status import (
    DatabaseNow,
    GatewayStatus,
    KernelsNow,
    Lane,
    Quantiles,
    QueueNow,
    Requests,
    RunsNow,
    SinceStart,
    StageTimes,
    StatusAnswer,
    StatusHistory,
    StatusNow,
    StatusQuery,
    Values,
    Window,
)
from gateway.http.parse.body import check_names, parse_query
from gateway.http.parse.times import iso
from gateway.http.status_page.history import History
from gateway.http.status_page.readings import CAUSES, ended, kernels, requests, waiting
from gateway.http.status_page.ring import SHARES, Ring
from sessions.errors import InvalidRequest
from sessions.measures.stages import Histogram
from sessions.model import RunStatus, SessionState

_WINDOWS: tuple[Window, ...] = ("hour", "day")
_DIGITS = 6


def window_asked(query: str) -> Window:
    """The window of a query; an empty one counts as not given. Raises InvalidRequest."""
    fields = parse_query(query)
    check_names(fields, StatusQuery.__struct_fields__)
    asked = fields.get("window") or StatusQuery().window
    for window in _WINDOWS:
        if asked == window:
            return window
    hint = near(asked, list(_WINDOWS)) or f": use {' or '.join(_WINDOWS)}."
    raise InvalidRequest(f'There is no window "{shown(asked)}"{hint}')


def status(context: Context, history: History, window: Window) -> StatusAnswer:
    """All of it."""
    return StatusAnswer(
        _gateway(context, history), _now(context, history), _since_start(context), _history(history, window)
    )


def _gateway(context: Context, history: History) -> GatewayStatus:
    engine = context.service.figures.engine
    return GatewayStatus(
        version=own_version(),
        engine=engine,
        isolation="none" if engine == "process" else "container",
        runtime=context.config.engine.runtime or None,
        started_at=_time(history.started_at),
        uptime=round(history.uptime_s, 3),
    )


def _now(context: Context, history: History) -> StatusNow:
    figures, readiness, queue = context.service.figures, context.service.readiness(), waiting(context)
    live, sessions, database = figures.live_runs(), figures.sessions(), figures.database()
    lanes = [Lane(lane.name, lane.open, lane.in_use, lane.most) for lane in database.lanes]
    return StatusNow(
        at=_time(history.clock.now()),
        ready=readiness.ready,
        reasons=list(readiness.reasons),
        warnings=list(readiness.warnings),
        runs=RunsNow(live[RunStatus.RUNNING], live[RunStatus.QUEUED]),
        queue=QueueNow(queue[0], round(queue[1], 3)),
        kernels=KernelsNow(**kernels(context), max=figures.most_sandboxes),
        sessions={state.value: sessions[state] for state in SessionState},
        database=DatabaseNow(database.is_up, database.round_trip_s, lanes),
    )


def _since_start(context: Context) -> SinceStart:
    figures = context.service.figures
    return SinceStart(
        ended=ended(context),
        deaths={cause: figures.tally.deaths[cause] for cause in CAUSES},
        requests=Requests(**requests(context)),
        stages=[
            StageTimes(
                stage.value,
                histogram.count,
                round(histogram.quantile_s(SHARES["p50"]), _DIGITS),
                round(histogram.quantile_s(SHARES["p95"]), _DIGITS),
            )
            for stage, histogram in figures.stages.histograms.items()
            if histogram.count
        ],
    )


def _history(history: History, window: Window) -> StatusHistory:
    ring = history.hour if window == "hour" else history.day
    begins_s = ring.begins_s
    return StatusHistory(
        window=window,
        span=ring.step_s * ring.slots,
        step=ring.step_s,
        begins_at=None if begins_s is None else _time(datetime.fromtimestamp(begins_s, UTC)),
        run_time=_quantiles(ring.durations("run_time")),
        own_time=_quantiles(ring.durations("own_time")),
        series=_series(ring),
    )


def _quantiles(histogram: Histogram) -> Quantiles:
    count = histogram.count
    return Quantiles(
        count,
        **{name: round(histogram.quantile_s(share), _DIGITS) if count else None for name, share in SHARES.items()},
    )


def _series(ring: Ring) -> dict[str, dict[str, Values]]:
    series: dict[str, dict[str, Values]] = {}
    for column, values in ring.columns().items():
        group, _, name = column.partition(".")
        series.setdefault(group, {})[name] = values
    return series


def _time(moment: datetime) -> str:
    return iso(moment) or ""
