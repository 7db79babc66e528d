"""Going on where an earlier gateway stopped: what is recorded, joined with what the engine still has.

Every recorded run ends up in one of three places: with the kernel that has it, in its session's queue, or ended. How it
ends is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from sessions.kernels.kernel import Kernel
from sessions.model import KernelId
from sessions.runs.live_run import LiveRun
from sessions.wiring import Parts

log = structlog.get_logger()


class Recovery:
    """Takes over, once, before anything else is done with these parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def recover(self) -> None:
        """Take over sessions, runs and kernels, and remove what nobody wants.

        Raises EngineUnavailable, StoreUnavailable.
        Supervisors cannot dial in before everybody listens: not a frame of theirs is missed.
        """
        parts = self._parts
        sessions = await parts.store.sessions_of(parts.gateway_id)
        records = await parts.store.unfinished_runs(parts.gateway_id)
        wanted = {session.kernel_id: parts.kernel_names.get(session.language) for session in sessions}
        wanted |= {record.run.kernel_id: parts.kernel_names.get(record.run.language) for record in records}
        kernels = await parts.kernel_pool.recover(
            {kernel_id: name for kernel_id, name in wanted.items() if kernel_id is not None and name is not None}
        )
        parts.sessions.restore(sessions, kernels)
        for record in records:
            events = await parts.runs.events(record.run.run_id)
            live = LiveRun.resumed(record, events, parts.limits, parts.store, parts.clock)
            self._place(parts.runs.add(live), kernels)
        used = {session.kernel_id for session in sessions} | {live.run.kernel_id for live in parts.runs}
        for kernel in kernels.values():
            if kernel.kernel_id in used:
                parts.kernel_pool.listen(kernel)
            else:
                parts.kernel_pool.discard(kernel)
        if sessions or records:
            log.info("recovered", sessions=len(sessions), runs=len(records), kernels=len(kernels))

    def _place(self, live: LiveRun, kernels: Mapping[KernelId, Kernel]) -> None:
        kernel = kernels.get(live.run.kernel_id) if live.run.kernel_id is not None else None
        if kernel is not None:
            self._parts.conductor.join(live, kernel)
        session_id = live.run.session_id
        session = self._parts.sessions.find(live.run.tenant, session_id) if session_id is not None else None
        if session is not None:
            session.enqueue(live)
        else:
            # One of a session that has been ended since, too: its kernel goes with it, or has gone already.
            self._parts.single.begin(live, kernel)
