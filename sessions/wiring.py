"""The engine's parts that the service, sessions, admission and recovery share, built once.

Sessions themselves are not among them: whoever needs these gets the registry as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sessions.environment import Environment
from sessions.kernels.kernel_pool import KernelPool
from sessions.runs.active_runs import ActiveRuns
from sessions.runs.executor import RunExecutor
from sessions.runs.stateless_runs import StatelessRuns
from sessions.settings import PoolSettings


@dataclass(frozen=True, slots=True)
class Wiring:
    """One of each part. `kernel_names` maps what clients call a language to a kernelspec name."""

    environment: Environment
    kernel_names: Mapping[str, str]
    kernel_pool: KernelPool
    executor: RunExecutor
    active_runs: ActiveRuns
    stateless_runs: StatelessRuns

    @classmethod
    def build(cls, environment: Environment, pool: PoolSettings, languages: Mapping[str, str]) -> Wiring:
        """Build all parts; an event loop must be running.

        `languages` maps what clients call a language to a kernelspec name; the first one's kernels are kept warm.
        """
        names = list(dict.fromkeys(languages.values()))
        sizes = {name: pool.size if name == names[0] else 0 for name in names}
        kernel_pool = KernelPool(environment, pool, sizes)
        executor = RunExecutor(environment, kernel_pool.fate)
        stateless_runs = StatelessRuns(environment, kernel_pool, executor, languages)
        return cls(environment, languages, kernel_pool, executor, ActiveRuns(environment), stateless_runs)
