"""What all parts of the engine are given: the ports' adapters, the settings, and who this gateway is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sessions.measures.stages import Stages
from sessions.measures.tally import Tally
from sessions.model import GatewayId, KernelId
from sessions.ports import Clock, Provisioner, Store, Switchboard
from sessions.settings import Limits, Timeouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """`credential_of` gives a kernel's secret, the same in every gateway on this data directory."""

    gateway_id: GatewayId
    limits: Limits
    timeouts: Timeouts = Timeouts()
    store: Store
    clock: Clock
    provisioner: Provisioner
    switchboard: Switchboard
    preload: tuple[str, ...]
    credential_of: Callable[[KernelId], str]
    stages: Stages = field(default_factory=Stages)
    tally: Tally = field(default_factory=Tally)
