"""The engine's parts that sessions, admission and recovery share. The service builds them, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sessions.kernels.kernel_pool import KernelPool
from sessions.model import GatewayId
from sessions.ports import Clock, Store
from sessions.runs.active_runs import ActiveRuns
from sessions.runs.executor import RunExecutor
from sessions.runs.stateless_runs import StatelessRuns
from sessions.settings import Limits, Timeouts


@dataclass(frozen=True, slots=True)
class Wiring:
    """One of each part. `kernel_names` maps what clients call a language to a kernelspec name."""

    gateway_id: GatewayId
    kernel_names: Mapping[str, str]
    limits: Limits
    timeouts: Timeouts
    store: Store
    clock: Clock
    kernel_pool: KernelPool
    executor: RunExecutor
    active_runs: ActiveRuns
    stateless_runs: StatelessRuns
