"""Launches, watches and removes the sandbox of one kernel, with the engine and the switchboard.

How many kernels there are, and who gets them, is decided in kernel_pool.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from pathlib import Path
from uuid import uuid4

import structlog

from sessions.concurrency import BackgroundTasks, retry
from sessions.environment import Environment
from sessions.errors import EngineUnavailable
from sessions.kernels.kernel import Kernel
from sessions.kernels.link.handshake import Handshake
from sessions.kernels.outcomes import Died
from sessions.kernels.throttle import Account, SharedTime, Throttle
from sessions.model import KernelId
from sessions.ports import Fate, LaunchSpec

_REMOVE_RETRIES = 4
_FORK_PAUSE_S = 0.01
"""Less than what a kernel takes to start and to end again."""

_FORK_S = 0.1
"""What one fork counts for: ten may follow each other quickly, and one more every tenth of a second."""

_FORK_BURST_S = 1.0

_MOST_LOGGED = 8
_LONGEST_LOGGED = 200
_LIMITS_SEEN = ("memory_bytes", "pids", "cpu_us")

log = structlog.get_logger()


class Sandboxes:
    """This gateway's sandboxes on one engine.

    Its state: `hurries`, when a removal that has failed is tried again without a pause; whether failed preloads have
    been told; which limits the first sandbox of each kernelspec lacked; what their messages have used of the gateway's
    time; and for which of them a kernel is being forked.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._provisioner = environment.provisioner
        self._switchboard = environment.switchboard
        self._timeouts = environment.timeouts
        self.hurries = False
        self._has_logged_preloads = False
        self._missing_limits: dict[str, tuple[str, ...]] = {}
        self._shared_time = SharedTime(environment.clock)
        self._forking: set[KernelId] = set()
        self._tasks = BackgroundTasks("sandboxes")

    def make_kernel(self, kernel_name: str) -> Kernel:
        """A kernel that has no sandbox yet."""
        return self._kernel(KernelId(str(uuid4())), kernel_name)

    def adopt(self, kernel_id: KernelId, kernel_name: str) -> Kernel:
        """A kernel whose sandbox an earlier gateway has launched; its supervisor keeps dialling."""
        return self._kernel(kernel_id, kernel_name, adopted=True)

    def _kernel(self, kernel_id: KernelId, kernel_name: str, *, adopted: bool = False) -> Kernel:
        clock = self._environment.clock
        kernel = Kernel(
            kernel_id,
            kernel_name,
            self._environment.credential_of(kernel_id),
            clock,
            self._timeouts,
            adopted=adopted,
            throttle=Throttle(clock, together=self._shared_time),
        )
        forks = Account(clock, 1.0, _FORK_BURST_S)
        kernel.on_fork_wanted = lambda number: self._handle_fork_wanted(kernel, number, forks)
        kernel.on_fork_refused = self._provisioner.stop_forking
        kernel.on_death = self._count_death
        return kernel

    def _count_death(self, died: Died) -> None:
        self._environment.tally.deaths[died.cause] += 1

    def _handle_fork_wanted(self, kernel: Kernel, number: int, forks: Account) -> None:
        """One fork at a time for each: a supervisor that asks for another has given the first up, or wants too many."""
        if kernel.kernel_id in self._forking:
            kernel.tell_forked(number, why="Another fork for this sandbox is under way.")
        else:
            self._forking.add(kernel.kernel_id)
            self._tasks.spawn(self._fork(kernel, number, forks))

    async def _fork(self, kernel: Kernel, number: int, forks: Account) -> None:
        """Have a kernel process forked for its supervisor, which does it itself where that fails."""
        try:
            try:
                forked = await self._provisioner.fork(kernel.kernel_id, number)
            except EngineUnavailable as error:
                kernel.tell_forked(number, why=str(error))
            else:
                kernel.tell_forked(number, pid=forked.pid, failed_preloads=dict(forked.failed_preloads))
            forks.spend(_FORK_S, self._environment.clock.monotonic())
            await asyncio.sleep(max(_FORK_PAUSE_S, forks.debt_s()))
        finally:
            self._forking.discard(kernel.kernel_id)

    async def stop(self) -> None:
        """End the forks that are under way, once no kernel is left that asks for one."""
        await self._tasks.cancel()

    def listen(self, kernel: Kernel) -> Path:
        """Let its supervisor dial in; returns the directory to mount."""
        hello_timeout_s = self._timeouts.hello_timeout_s
        return self._switchboard.open(kernel.kernel_id, lambda link: Handshake(kernel, link, hello_timeout_s))

    async def bring_up(self, kernel: Kernel) -> None:
        """Launch the kernel's sandbox and return once it answers.

        Raises EngineUnavailable, KernelLost, SetUpFailed; what has been made by then is `remove`'s to clear away.
        """
        directory = self.listen(kernel)
        spec = LaunchSpec(
            kernel_id=kernel.kernel_id,
            gateway_id=self._environment.gateway_id,
            credential=kernel.credential,
            socket_dir=directory,
            limits=self._environment.limits,
            kernel_name=kernel.kernel_name,
            preload=self._environment.preload,
        )
        await self._provisioner.launch(spec)
        await kernel.wait_ready(self._timeouts.ready_timeout_s)
        self._log_failed_preloads(kernel)
        self._compare_limits(kernel)

    def warnings(self) -> list[str]:
        """What the engine does not do as it should, in sentences."""
        return [
            *(f"In sandboxes {phrase}: see `cellblock doctor`." for phrase in self._limits_missing()),
            *self._provisioner.warnings(),
        ]

    def _limits_missing(self) -> list[str]:
        """Which limits sandboxes do not have although they were asked for, as phrases."""
        return sorted({phrase for phrases in self._missing_limits.values() for phrase in phrases})

    def _compare_limits(self, kernel: Kernel) -> None:
        """Compare what the first sandbox of a kernelspec says that it has, before any code runs there, and log it."""
        if kernel.kernel_name in self._missing_limits:
            return
        missing = self._provisioner.missing_limits(kernel.limits_seen, self._environment.limits)
        self._missing_limits[kernel.kernel_name] = missing
        if missing:
            log.warning(
                "limits_not_applied",
                kernel_name=kernel.kernel_name,
                missing=list(missing),
                seen={name: value for name, value in kernel.limits_seen.items() if name in _LIMITS_SEEN},
                consequence="one sandbox can starve the others; `cellblock doctor` says more",
            )

    def _log_failed_preloads(self, kernel: Kernel) -> None:
        """Log, once, what could not be imported ahead: code runs all the same. A sandbox may say anything here."""
        if kernel.failed_preloads and not self._has_logged_preloads:
            self._has_logged_preloads = True
            first = list(kernel.failed_preloads.items())[:_MOST_LOGGED]
            reasons = {module[:_LONGEST_LOGGED]: str(reason)[:_LONGEST_LOGGED] for module, reason in first}
            log.warning("preloads_failed", reasons=reasons, consequence="code that needs them starts more slowly")

    def discard(self, kernel: Kernel) -> None:
        """Shut the kernel down, and close its link and its socket."""
        kernel.abandon("retired")
        self._switchboard.close(kernel.kernel_id)

    def hand_over(self, kernel: Kernel) -> None:
        """Close the kernel's link, and leave its sandbox to the next gateway."""
        kernel.hand_over("the gateway is stopping")
        self._switchboard.release(kernel.kernel_id)

    async def remove(self, kernel: Kernel) -> None:
        """Remove what there is of the sandbox. An engine that does not answer is asked again, a few times."""
        attempts = count(1)

        def log_failure(error: Exception) -> None:
            log.warning("removal_failed", kernel_id=kernel.kernel_id, attempt=next(attempts), reason=str(error))

        pauses = (0 if self.hurries else 2**attempt for attempt in range(_REMOVE_RETRIES))
        with suppress(EngineUnavailable):
            await retry(
                lambda: self._provisioner.kill(kernel.kernel_id),
                on=EngineUnavailable,
                pauses=pauses,
                on_failure=log_failure,
            )

    async def fate(self, kernel: Kernel) -> Fate | None:
        """How the engine says this kernel's sandbox ended; None when it does not say so in time, or not at all."""
        try:
            async with asyncio.timeout(self._timeouts.fate_timeout_s):
                while True:
                    fate = await self._provisioner.fate(kernel.kernel_id)
                    if fate is not None:
                        return fate
                    await asyncio.sleep(self._timeouts.fate_poll_s)
        except (TimeoutError, EngineUnavailable):
            return None

    async def check(self) -> None:
        """Raise EngineUnavailable, saying what to do, unless a launch could work now."""
        await self._provisioner.check()

    async def has_ended(self, kernel: Kernel) -> bool:
        """Whether the engine says that this kernel's sandbox is no more."""
        try:
            return await self._provisioner.fate(kernel.kernel_id) is not None
        except EngineUnavailable:
            return False

    async def remove_leftovers(self, wanted: Collection[KernelId]) -> set[KernelId]:
        """Remove what an earlier gateway has left and nobody wants; returns which of `wanted` are there.

        Raises EngineUnavailable.
        """
        there = set()
        for kernel_id in await self._provisioner.list():
            if kernel_id in wanted:
                there.add(kernel_id)
            else:
                log.info("leftover_removed", kernel_id=kernel_id)
                await self._provisioner.kill(kernel_id)
        self._switchboard.remove_leftovers(there)
        return there

    async def remove_all_but(self, kept: Collection[KernelId]) -> None:
        """Remove this gateway's sandboxes that the engine lists; where it does not answer, that is logged."""
        try:
            for kernel_id in await self._provisioner.list():
                if kernel_id not in kept:
                    await self._provisioner.kill(kernel_id)
        except EngineUnavailable as error:
            log.warning("sandboxes_left", reason=str(error), consequence="the next start removes them")
