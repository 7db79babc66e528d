"""The engine's parts that the service, sessions, admission and recovery share, built once.

Sessions themselves are not among them: whoever needs these gets the registry as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sessions.kernels.kernel_pool import KernelPool
from sessions.model import GatewayId, KernelId
from sessions.ports import Clock, Provisioner, Store, Switchboard
from sessions.runs.active_runs import ActiveRuns
from sessions.runs.executor import RunExecutor
from sessions.runs.stateless_runs import StatelessRuns
from sessions.settings import Limits, PoolSettings, Timeouts


@dataclass(frozen=True, slots=True)
class Wiring:
    """One of each part. `kernel_names` maps what clients call a language to a kernelspec name."""

    gateway_id: GatewayId
    kernel_names: Mapping[str, str]
    limits: Limits
    timeouts: Timeouts
    store: Store
    clock: Clock
    provisioner: Provisioner
    kernel_pool: KernelPool
    executor: RunExecutor
    active_runs: ActiveRuns
    stateless_runs: StatelessRuns

    @classmethod
    def build(
        cls,
        *,
        store: Store,
        provisioner: Provisioner,
        switchboard: Switchboard,
        gateway_id: GatewayId,
        limits: Limits,
        pool: PoolSettings,
        languages: Mapping[str, str],
        preload: tuple[str, ...],
        credential_of: Callable[[KernelId], str],
        clock: Clock,
        timeouts: Timeouts = Timeouts(),
    ) -> Wiring:
        """Build all parts; an event loop must be running.

        `languages` maps what clients call a language to a kernelspec name; the first one's kernels are kept warm.
        `credential_of` gives a kernel's secret, the same in every gateway on this data directory.
        """
        names = list(dict.fromkeys(languages.values()))
        kernel_pool = KernelPool(
            provisioner=provisioner,
            switchboard=switchboard,
            gateway_id=gateway_id,
            limits=limits,
            pool=pool,
            kernel_names={name: pool.size if name == names[0] else 0 for name in names},
            preload=preload,
            credential_of=credential_of,
            clock=clock,
            timeouts=timeouts,
        )
        executor = RunExecutor(limits, timeouts, clock, kernel_pool.fate)
        return cls(
            gateway_id=gateway_id,
            kernel_names=languages,
            limits=limits,
            timeouts=timeouts,
            store=store,
            clock=clock,
            provisioner=provisioner,
            kernel_pool=kernel_pool,
            executor=executor,
            active_runs=ActiveRuns(store, clock, timeouts),
            stateless_runs=StatelessRuns(
                store=store,
                kernel_pool=kernel_pool,
                executor=executor,
                kernel_names=languages,
                clock=clock,
                timeouts=timeouts,
            ),
        )
