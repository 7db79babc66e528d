"""An hour of a gateway, made up: its figures while a clock of the test's goes on."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from http_face import Face

from sessions.kernels.kernel_pool import PoolFigures
from sessions.measures.stages import Stage
from sessions.model import RunStatus, SessionState

STEP_S = 10


class WallClock:
    """A clock that the test moves, and that has come to the present when it is not moved any more."""

    def __init__(self, past_s: float) -> None:
        self.at_s = 1000.0
        self._begun_at = datetime.now(UTC) - timedelta(seconds=past_s + self.at_s)

    def monotonic(self) -> float:
        return self.at_s

    def now(self) -> datetime:
        return self._begun_at + timedelta(seconds=self.at_s)


def live_through(face: Face, clock: WallClock, length_s: int) -> None:
    """Traffic that rises and falls, an outage of the database, a rush that queues, a gap, kernels that die."""
    chance = random.Random(7)  # noqa: S311 - no secret
    figures, state, requests = face.service.figures, face.service.state, face.context.http.requests
    for second in range(0, length_s, STEP_S):
        part = second / length_s
        clock.at_s += STEP_S
        if 0.32 < part < 0.36:
            continue
        is_away, is_rush = 0.55 < part < 0.58, 0.7 < part < 0.8
        load = 3 + 2.5 * math.sin(part * 9) + (6 if is_rush else 0)
        state.ready = not is_away
        figures.of_database = replace(
            figures.of_database,
            is_up=not is_away,
            round_trip_s=None if is_away else 0.0008 * chance.lognormvariate(0, 0.5),
        )
        for _ in range(0 if is_away else int(load * chance.random() * 2)):
            took_s = chance.lognormvariate(-3.4, 1.0) + (chance.random() * 4 if is_rush else 0)
            figures.stages.whole.observe(took_s)
            figures.stages.own.observe(0.002 * chance.lognormvariate(0, 0.4))
            for stage in Stage:
                figures.stages.observe(stage, took_s / 14 if stage is not Stage.IDLE else took_s * 0.7)
            status = chance.choices(list(RunStatus)[2:], [80, 12, 3, 1, 1, 2, 0.3])[0]
            figures.tally.runs["python", status.value] += 1
            requests.note("/runcode", "POST", 504 if status is RunStatus.TIMEOUT else 200, took_s)
            if chance.random() < 0.01:
                figures.tally.deaths[chance.choice(["exited", "oom", "signal"])] += 1
        if is_away:
            requests.note("/runcode", "POST", 503, 0.001)
        if is_rush and chance.random() < 0.4:
            requests.note("/runcode", "POST", 429, 0.001)
        working = min(8, round(load))
        waiting = max(0, round(load * 1.3) - 8)
        figures.pool = [
            PoolFigures("python3", max(0, 8 - working - 1), int(working < 8), working, 0, waiting, waiting * 2.1)
        ]
        figures.living = Counter({RunStatus.RUNNING: working, RunStatus.QUEUED: waiting // 2})
        figures.states = Counter({SessionState.IDLE: 4 + round(3 * part), SessionState.BUSY: working // 2})
        face.history.sample()
    state.ready = True
