"""What runs are taken on with, and taken over with: the pieces that the service puts together, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sessions.conduct import Conductor
from sessions.live_runs import LiveRuns
from sessions.model import GatewayId
from sessions.ports import Clock, Store
from sessions.registry import Registry
from sessions.settings import Limits
from sessions.single_runs import SingleRuns
from sessions.supply import KernelSupply


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each. `kernel_names` maps languages to kernelspecs."""

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
