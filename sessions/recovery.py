"""Going on where an earlier gateway stopped: what is recorded, joined with what the engine still has.

Every recorded run ends up in one of three places: with the kernel that has it, in its session's queue, or ended. How it
ends is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from sessions.conduct import Conductor
from sessions.kernel import Kernel
from sessions.live_run import LiveRun
from sessions.live_runs import LiveRuns
from sessions.model import GatewayId, KernelId
from sessions.ports import Clock, Store
from sessions.registry import Registry
from sessions.settings import Limits
from sessions.single_runs import SingleRuns
from sessions.supply import KernelSupply

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Recovery:
    """All that has a part in it. `kernel_names` maps languages to kernelspecs."""

    gateway_id: GatewayId
    kernel_names: Mapping[str, str]
    limits: Limits
    store: Store
    clock: Clock
    supply: KernelSupply
    conductor: Conductor
    sessions: Registry
    runs: LiveRuns
    single: SingleRuns

    async def recover(self) -> None:
        """Take over sessions, runs and kernels, and remove what nobody wants.

        Raises EngineUnavailable, StoreUnavailable.
        Supervisors cannot dial in before everybody listens: not a frame of theirs is missed.
        """
        sessions = await self.store.sessions_of(self.gateway_id)
        records = await self.store.unfinished_runs(self.gateway_id)
        wanted = {session.kernel_id: self.kernel_names.get(session.language) for session in sessions}
        wanted |= {record.run.kernel_id: self.kernel_names.get(record.run.language) for record in records}
        kernels = await self.supply.recover(
            {kernel_id: name for kernel_id, name in wanted.items() if kernel_id is not None and name is not None}
        )
        self.sessions.restore(sessions, kernels)
        for record in records:
            events = await self.runs.events(record.run.run_id)
            live = LiveRun.resumed(record, events, self.limits, self.store, self.clock)
            self._place(self.runs.add(live), kernels)
        used = {session.kernel_id for session in sessions} | {live.run.kernel_id for live in self.runs}
        for kernel in kernels.values():
            if kernel.kernel_id in used:
                self.supply.listen(kernel)
            else:
                self.supply.retire(kernel)
        if sessions or records:
            log.info("recovered", sessions=len(sessions), runs=len(records), kernels=len(kernels))

    def _place(self, live: LiveRun, kernels: Mapping[KernelId, Kernel]) -> None:
        kernel = kernels.get(live.run.kernel_id) if live.run.kernel_id is not None else None
        if kernel is not None:
            self.conductor.join(live, kernel)
        session_id = live.run.session_id
        session = self.sessions.find(live.run.tenant, session_id) if session_id is not None else None
        if session is not None:
            session.enqueue(live)
        else:
            # One of a session that has been ended since, too: its kernel goes with it, or has gone already.
            self.single.begin(live, kernel)
