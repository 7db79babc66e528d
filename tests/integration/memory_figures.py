"""The double of `sessions.figures.Figures`: what the test lays out, beside the real counts and histograms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sessions.figures import DatabaseFigures
from sessions.kernels.kernel_pool import PoolFigures
from sessions.measures.stages import Stages
from sessions.measures.tally import Tally
from sessions.measures.written import WrittenBytes
from sessions.model import RunStatus, SessionState
from sessions.ports import LaneFigures, ZygoteFigures


@dataclass
class MemoryFigures:
    engine: str = "memory"
    stages: Stages = field(default_factory=Stages)
    tally: Tally = field(default_factory=Tally)
    most_sandboxes: int = 8
    pool: list[PoolFigures] = field(default_factory=lambda: [PoolFigures("python3", 2, 1, 3, 0, 4, 1.5)])
    living: Counter[RunStatus] = field(default_factory=Counter)
    states: Counter[SessionState] = field(default_factory=Counter)
    of_zygote: ZygoteFigures | None = field(default_factory=lambda: ZygoteFigures(is_up=True, forks=7, failed_forks=1))
    of_database: DatabaseFigures = field(
        default_factory=lambda: DatabaseFigures(
            is_up=True,
            round_trip_s=0.002,
            lanes=(LaneFigures("quick", 3, 1, 4), LaneFigures("small", 2, 0, 2), LaneFigures("bulk", 0, 0, 3)),
            written=WrittenBytes(artifacts=2000, events=100),
        )
    )
    size_bytes: int | None = 8_000_000

    def pools(self) -> list[PoolFigures]:
        return self.pool

    def live_runs(self) -> Counter[RunStatus]:
        return self.living

    def sessions(self) -> Counter[SessionState]:
        return self.states

    def zygote(self) -> ZygoteFigures | None:
        return self.of_zygote

    def database(self) -> DatabaseFigures:
        return self.of_database

    async def database_bytes(self) -> int | None:
        return self.size_bytes
