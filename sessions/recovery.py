"""Takes over what an earlier gateway left: joins what the store has on record with the sandboxes that the engine has.

Every recorded run is given back to its session's queue, or to the kernel that has it, or is ended. How it ends is not
decided here.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from sessions.kernels.kernel import Kernel
from sessions.model import KernelId
from sessions.runs.live_run import LiveRun
from sessions.session.registry import Registry
from sessions.wiring import Wiring

log = structlog.get_logger()


async def recover(wiring: Wiring, sessions: Registry) -> None:
    """Take over sessions, runs and kernels; discard the kernels that none of them needs. Once, before all else.

    Supervisors cannot dial in before there is a listener for each run, so that no frame is missed. Raises
    EngineUnavailable, StoreUnavailable.
    """
    stored = await wiring.environment.store.sessions_of(wiring.environment.gateway_id)
    records = await wiring.environment.store.unfinished_runs(wiring.environment.gateway_id)
    wanted = {session.kernel_id: wiring.kernel_names.get(session.language) for session in stored}
    wanted |= {record.run.kernel_id: wiring.kernel_names.get(record.run.language) for record in records}
    kernels = await wiring.kernel_pool.recover(
        {kernel_id: name for kernel_id, name in wanted.items() if kernel_id is not None and name is not None}
    )
    sessions.restore(stored, kernels)
    for record in records:
        events = await wiring.active_runs.events(record.run.run_id)
        live = wiring.active_runs.add(LiveRun.resumed(record, events, wiring.environment))
        _place(live, kernels, wiring, sessions)
    used = {session.kernel_id for session in stored} | {live.run.kernel_id for live in wiring.active_runs}
    for kernel in kernels.values():
        if kernel.kernel_id in used:
            wiring.kernel_pool.listen(kernel)
        else:
            wiring.kernel_pool.discard(kernel)
    if stored or records:
        log.info("recovered", sessions=len(stored), runs=len(records), kernels=len(kernels))


def _place(live: LiveRun, kernels: Mapping[KernelId, Kernel], wiring: Wiring, sessions: Registry) -> None:
    kernel = kernels.get(live.run.kernel_id) if live.run.kernel_id is not None else None
    if kernel is not None:
        wiring.executor.join(live, kernel)
    session_id = live.run.session_id
    session = sessions.find(live.run.tenant, session_id) if session_id is not None else None
    if session is not None:
        session.enqueue(live)
    else:
        # Also one of a session that has ended since: its kernel is discarded with it, or is gone already.
        wiring.stateless_runs.begin(live, kernel)
