"""What runs are taken on with, and taken over with: the pieces that the service puts together, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sessions.kernels.kernel_pool import KernelPool
from sessions.model import GatewayId
from sessions.ports import Clock, Store
from sessions.runs.active_runs import ActiveRuns
from sessions.runs.executor import Conductor
from sessions.runs.stateless_runs import StatelessRuns
from sessions.session.registry import Registry
from sessions.settings import Limits


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each. `kernel_names` maps languages to kernelspecs."""

    gateway_id: GatewayId
    kernel_names: Mapping[str, str]
    limits: Limits
    store: Store
    clock: Clock
    kernel_pool: KernelPool
    conductor: Conductor
    sessions: Registry
    runs: ActiveRuns
    single: StatelessRuns
