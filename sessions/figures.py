"""Questions about the engine, for whoever watches it. They change nothing, and are asked now and then.

How the answers are shown is decided elsewhere.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from sessions.concurrency import BackgroundTasks
from sessions.errors import StoreUnavailable
from sessions.kernels.health import HealthCheck
from sessions.kernels.kernel_pool import PoolFigures
from sessions.measures.stages import Stages
from sessions.measures.tally import Tally
from sessions.measures.written import WrittenBytes
from sessions.model import RunStatus, SessionState
from sessions.ports import LaneFigures, ZygoteFigures
from sessions.session.registry import Registry
from sessions.wiring import Wiring

_SIZE_PAUSE_S = 60.0
_SIZE_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class DatabaseFigures:
    """`round_trip_s` is what the last check took, None when it failed."""

    is_up: bool
    round_trip_s: float | None
    lanes: tuple[LaneFigures, ...]
    written: WrittenBytes


class Figures:
    """The mutable state: the size of the database, when it was asked for, and the task that asks."""

    def __init__(self, wiring: Wiring, sessions: Registry, store_watch: HealthCheck) -> None:
        self._wiring = wiring
        self._sessions = sessions
        self._store_watch = store_watch
        self._store = wiring.environment.store
        self._clock = wiring.environment.clock
        self._database_bytes: int | None = None
        self._size_asked_s = float("-inf")
        self._tasks = BackgroundTasks("figures")

    @property
    def engine(self) -> str:
        """The name of the engine."""
        return self._wiring.environment.provisioner.name

    @property
    def stages(self) -> Stages:
        """How long the stages of its runs have taken."""
        return self._wiring.environment.stages

    @property
    def tally(self) -> Tally:
        """What has happened so far."""
        return self._wiring.environment.tally

    @property
    def most_sandboxes(self) -> int:
        """How many sandboxes there may be."""
        return self._wiring.kernel_pool.most

    def pools(self) -> list[PoolFigures]:
        """The kernels and the waiting claims, by kernelspec."""
        return self._wiring.kernel_pool.figures()

    def live_runs(self) -> Counter[RunStatus]:
        """The runs that have not ended, by status."""
        return Counter(
            RunStatus.QUEUED if live.run.kernel_id is None else RunStatus.RUNNING for live in self._wiring.active_runs
        )

    def sessions(self) -> Counter[SessionState]:
        """The sessions of all tenants, by state."""
        return Counter(session.view().state for session in self._sessions.living())

    def zygote(self) -> ZygoteFigures | None:
        """The zygote; None where there is to be none."""
        return self._wiring.environment.provisioner.zygote()

    def database(self) -> DatabaseFigures:
        """The database as it was last checked, and its connections now."""
        watch = self._store_watch
        return DatabaseFigures(watch.failure is None, watch.round_trip_s, self._store.lanes(), self._store.written)

    async def database_bytes(self) -> int | None:
        """The size of the whole database, asked for once a minute at most; None when it is not known."""
        now_s = self._clock.monotonic()
        if not len(self._tasks) and now_s >= self._size_asked_s + _SIZE_PAUSE_S:
            self._size_asked_s = now_s
            self._tasks.spawn(self._ask_size())
        await self._tasks.wait(_SIZE_PATIENCE_S)
        return self._database_bytes

    async def close(self) -> None:
        """Ask no more."""
        await self._tasks.cancel()

    async def _ask_size(self) -> None:
        size_bytes = None
        with suppress(StoreUnavailable):
            size_bytes = await self._store.size_bytes()
        self._database_bytes = size_bytes
