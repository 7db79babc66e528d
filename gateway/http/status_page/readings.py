"""What is read of a gateway for its pictures: figures that /metrics has too. Nothing is counted here."""

from __future__ import annotations

from http import HTTPStatus

from gateway.http.base.context import Context
from gateway.http.status_page.ring import Reading
from sessions.kernels.outcomes import Cause
from sessions.model import RunStatus, SessionState

CAUSES = [cause.value for cause in Cause if cause not in (Cause.REJECTED, Cause.FAILED)]
"""Of which kernels die."""

FINAL = [status.value for status in RunStatus if status.is_final()]
"""How runs end."""


def read(context: Context, at_s: float) -> Reading:
    """The figures of this moment. The database is not asked."""
    figures = context.service.figures
    live, sessions, database, queue = figures.live_runs(), figures.sessions(), figures.database(), waiting(context)
    return Reading(
        at_s,
        levels={
            "gateway.ready": float(context.service.readiness().ready),
            "runs.running": live[RunStatus.RUNNING],
            "runs.queued": live[RunStatus.QUEUED],
            "queue.waiting": queue[0],
            **{f"kernels.{state}": number for state, number in kernels(context).items()},
            **{f"sessions.{state.value}": sessions[state] for state in SessionState},
            "database.reachable": float(database.is_up),
        },
        peaks={"queue.oldest_wait": queue[1], "database.round_trip": database.round_trip_s},
        totals={
            **{f"ended.{status}": number for status, number in ended(context).items()},
            **{f"deaths.{cause}": figures.tally.deaths[cause] for cause in CAUSES},
            **{f"http.{kind}": number for kind, number in requests(context).items()},
        },
        durations={"run_time": tuple(figures.stages.whole.counts), "own_time": tuple(figures.stages.own.counts)},
    )


def kernels(context: Context) -> dict[str, int]:
    """The kernels of all kernelspecs, by state."""
    pools = context.service.figures.pools()
    return {
        "warm": sum(pool.warm for pool in pools),
        "starting": sum(pool.starting for pool in pools),
        "in_use": sum(pool.working for pool in pools),
    }


def waiting(context: Context) -> tuple[int, float]:
    """How many claims wait for a kernel, and how long the first of them has."""
    pools = context.service.figures.pools()
    return sum(pool.waiting for pool in pools), max((pool.oldest_wait_s for pool in pools), default=0.0)


def ended(context: Context) -> dict[str, int]:
    """The runs that have ended, by status."""
    runs = context.service.figures.tally.runs
    return {status: sum(number for (_, of), number in runs.items() if of == status) for status in FINAL}


def requests(context: Context) -> dict[str, int]:
    """The requests that were answered: all, with a 5xx, with 429.

    A 504 is a run past its limit, and no error; nor is it one that `/readyz` says what it is asked.
    """
    found = {"answered": 0, "server_errors": 0, "too_many_requests": 0}
    for (route, _, status), number in context.http.requests.counts.items():
        found["answered"] += number
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            found["too_many_requests"] += number
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.GATEWAY_TIMEOUT and route != "/readyz":
            found["server_errors"] += number
    return found
