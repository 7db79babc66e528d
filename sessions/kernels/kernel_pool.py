"""The pool of kernels: launches them ahead of need, serves claims, and removes used ones.

The decisions are made in pool_policy.py; a single sandbox is handled in sandboxes.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import structlog

from sessions.concurrency import BackgroundTasks
from sessions.environment import Environment
from sessions.errors import NO_SANDBOX, CellblockError, Draining, EngineUnavailable, NoKernelInTime, TooManyRequests
from sessions.kernels.health import HealthCheck
from sessions.kernels.kernel import Kernel, KernelState
from sessions.kernels.outcomes import Cause
from sessions.kernels.pool_policy import WarmPool
from sessions.kernels.sandboxes import Sandboxes
from sessions.measures.tally import Launch
from sessions.model import KernelId
from sessions.ports import Fate
from sessions.settings import PoolSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """How many kernels of one kernelspec there are now, by state, and how many claims wait, the oldest for how long."""

    kernel_name: str
    warm: int
    starting: int
    working: int
    removing: int
    waiting: int
    oldest_wait_s: float


class KernelPool:
    """Gives out kernels that are ready, each once, and launches others in their place.

    The mutable state: the warm pools, the live kernels, the waiting claims and since when they wait, the tasks, and the
    kernels without a link about whose sandboxes the engine is polled.
    """

    def __init__(self, environment: Environment, pool: PoolSettings, kernel_names: Mapping[str, int]) -> None:
        """`kernel_names` says how many kernels of each kernelspec to keep warm."""
        self._sandboxes = Sandboxes(environment)
        self._queue = environment.limits.queue
        self._clock = environment.clock
        self._timeouts = environment.timeouts
        self._tally = environment.tally
        self.most = pool.max
        self._pools = {
            name: WarmPool(PoolSettings(size, pool.max), environment.timeouts) for name, size in kernel_names.items()
        }
        self._waiters: dict[str, deque[asyncio.Future[Kernel]]] = {name: deque() for name in kernel_names}
        self._waits_since_s: dict[asyncio.Future[Kernel], float] = {}
        self._kernels: dict[KernelId, Kernel] = {}
        self._tasks = BackgroundTasks("kernel_pool")
        self._polled: set[KernelId] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._engine = HealthCheck("engine", self._sandboxes.check)
        self._engine_watch: asyncio.Task[None] | None = None
        self._closing = False
        self.last_failure: str | None = None

    # --- questions ----------------------------------------------------------------------------------------------------

    def warm(self) -> int:
        """How many kernels are ready and unused."""
        return sum(len(pool.warm) for pool in self._pools.values())

    def working(self) -> int:
        """How many kernels are claimed."""
        return sum(len(pool.working) for pool in self._pools.values())

    def figures(self) -> list[PoolFigures]:
        """What there is now, by kernelspec."""
        now_s = self._clock.monotonic()
        return [
            PoolFigures(
                kernel_name=name,
                warm=len(pool.warm),
                starting=len(pool.launching),
                working=len(pool.working),
                removing=len(pool.removing),
                waiting=sum(not waiter.done() for waiter in self._waiters[name]),
                oldest_wait_s=max(
                    (now_s - self._waits_since_s[one] for one in self._waiters[name] if not one.done()), default=0.0
                ),
            )
            for name, pool in self._pools.items()
        ]

    def reasons_not_ready(self) -> list[str]:
        """Why code could not run now, in sentences; empty when it could."""
        # Without kernels that are kept warm, whether the engine answers is all that can be known before somebody asks.
        now_s = self._clock.monotonic()
        kept = [pool for pool in self._pools.values() if pool.settings.size]
        if any(pool.is_failing(now_s) for pool in kept or self._pools.values()):
            return [f"{NO_SANDBOX}: {self.last_failure}"]
        if not kept:
            return [self._engine.failure] if self._engine.failure else []
        if not any(pool.ever_warm for pool in self._pools.values()):
            return [f"The first sandbox is still being started.{f' {self.last_failure}' if self.last_failure else ''}"]
        return []

    def warnings(self) -> list[str]:
        """What is not as it should be although code could run, in sentences."""
        return self._sandboxes.warnings()

    # --- claims -------------------------------------------------------------------------------------------------------

    async def claim(self, kernel_name: str, timeout_s: float | None = None) -> Kernel:
        """A kernel that is ready and that nobody has used, within `timeout_s` or the time that runs wait for one.

        Raises TooManyRequests when the queue is full, NoKernelInTime, EngineUnavailable, Draining. Nothing is claimed
        then.
        """
        if self._closing:
            raise Draining
        pool, waiters = self._pools[kernel_name], self._waiters[kernel_name]
        if not waiters and (kernel := self._claim_warm(pool)) is not None:
            self._refill()
            return kernel
        if len(waiters) >= self._queue:
            raise TooManyRequests
        if pool.is_failing(self._clock.monotonic()):
            self._refill()
            raise EngineUnavailable(f"{NO_SANDBOX}, and nothing was run: {self.last_failure}")
        waiter: asyncio.Future[Kernel] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        self._waits_since_s[waiter] = self._clock.monotonic()
        pool.waiting = len(waiters)
        self._refill()
        try:
            async with asyncio.timeout(self._timeouts.claim_timeout_s if timeout_s is None else timeout_s):
                return await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                return waiter.result()  # it came in the very moment the time was over
            raise NoKernelInTime from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())  # it came in the very moment the caller left
            raise
        finally:
            del self._waits_since_s[waiter]
            if waiter in waiters:
                waiters.remove(waiter)
            pool.waiting = len(waiters)

    def release(self, kernel: Kernel) -> None:
        """Return a claimed kernel that nothing has run on."""
        if kernel.is_ready():
            self._pools[kernel.kernel_name].unclaim(kernel.kernel_id)
            self._serve(kernel.kernel_name)
        else:
            self.discard(kernel)

    def discard(self, kernel: Kernel) -> None:
        """A kernel has been used or has died: remove its container, and refill."""
        pool = self._pools[kernel.kernel_name]
        if self._kernels.pop(kernel.kernel_id, None) is None:
            return
        if kernel.state is KernelState.GONE and kernel.kernel_id not in pool.launching:
            self._tally.deaths[Cause.GONE] += 1
        pool.remove(kernel.kernel_id)
        kernel.clear_watchers()
        self._sandboxes.discard(kernel)
        self._tasks.spawn(self._remove(kernel, pool))

    async def fate(self, kernel: Kernel) -> Fate | None:
        """How the engine says this kernel's sandbox ended; None when it does not say so in time, or not at all."""
        return await self._sandboxes.fate(kernel)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def recover(self, wanted: Mapping[KernelId, str]) -> dict[KernelId, Kernel]:
        """Take over those of the `wanted` kernels (with their kernelspecs) whose sandboxes are still there.

        Everything else that an earlier gateway has left is removed. Their supervisors cannot dial in before `listen`.
        Raises EngineUnavailable.
        """
        await self._sandboxes.check()
        there = await self._sandboxes.remove_leftovers(wanted)
        kernels = {kernel_id: self._sandboxes.adopt(kernel_id, wanted[kernel_id]) for kernel_id in there}
        for kernel in kernels.values():
            self._kernels[kernel.kernel_id] = kernel
            self._pools[kernel.kernel_name].adopt(kernel.kernel_id)
            kernel.watch(self._on_change)
        return kernels

    def listen(self, kernel: Kernel) -> None:
        """Let the supervisor of a recovered kernel dial in, if it still lives."""
        self._sandboxes.listen(kernel)
        self._poll_sandbox(kernel)

    def start(self) -> None:
        """Begin to warm up."""
        if not any(pool.settings.size for pool in self._pools.values()):
            self._engine_watch = asyncio.ensure_future(self._engine.poll(self._timeouts.engine_check_pause_s))
        self._refill()

    async def hand_over_all(self) -> None:
        """Stop, and leave all sandboxes to the next gateway: which of them are needed is not known yet."""
        self.stop_refilling()
        kernels, self._kernels = list(self._kernels.values()), {}
        for kernel in kernels:
            self._sandboxes.hand_over(kernel)
        await self._sandboxes.stop()
        await self._tasks.cancel()

    async def close(self, kept: Collection[Kernel] = ()) -> None:
        """Discard every kernel but the `kept` ones, which are left to the next gateway."""
        if self._timer is not None:
            self._timer.cancel()
        if self._engine_watch is not None:
            self._engine_watch.cancel()
            await asyncio.wait([self._engine_watch])
        self.stop_refilling()
        for kernel in kept:
            self._kernels.pop(kernel.kernel_id, None)
            self._pools[kernel.kernel_name].hand_over(kernel.kernel_id)
            self._sandboxes.hand_over(kernel)
        for kernel in list(self._kernels.values()):
            self.discard(kernel)
        await self._sandboxes.stop()
        await self._tasks.wait()
        await self._sandboxes.remove_all_but({kernel.kernel_id for kernel in kept})

    def stop_refilling(self) -> None:
        """Launch nothing and refuse all claims, waiting ones included. Claimed kernels stay."""
        self._closing = self._sandboxes.hurries = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(Draining())

    # --- launching ----------------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        """Begin as many launches as the pools ask for, and look again when they say so."""
        if self._closing:
            return
        now_s = self._clock.monotonic()
        looks = []
        # Who is waited for comes first, and of those who has the least.
        for name, pool in sorted(self._pools.items(), key=lambda item: (item[1].waiting == 0, item[1].live())):
            wanted = pool.launches(now_s)
            if pool.waiting:
                self._make_room(pool, wanted)
            for _ in range(min(wanted, self._room())):
                self._launch(name, pool)
            if (look_s := pool.next_look_s(now_s)) is not None:
                looks.append(look_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if looks:
            self._timer = asyncio.get_running_loop().call_later(max(0.01, min(looks) - now_s), self._refill)

    def _room(self) -> int:
        """How many more sandboxes there may be, over all languages."""
        return max(0, self.most - sum(pool.live() for pool in self._pools.values()))

    def _make_room(self, pool: WarmPool, wanted: int) -> None:
        """Discard the oldest warm kernels of other languages when they leave no room for a claim that waits."""
        coming = self._room() + sum(len(other.removing) for other in self._pools.values())
        idle = [kernel_id for other in self._pools.values() if other is not pool for kernel_id in other.warm]
        for kernel_id in idle[: max(0, min(wanted, pool.waiting - len(pool.launching)) - coming)]:
            self.discard(self._kernels[kernel_id])

    def _launch(self, name: str, pool: WarmPool) -> None:
        kernel = self._sandboxes.make_kernel(name)
        self._kernels[kernel.kernel_id] = kernel
        pool.launch(kernel.kernel_id)
        self._tasks.spawn(self._bring_up(kernel, pool))

    async def _bring_up(self, kernel: Kernel, pool: WarmPool) -> None:
        """Have a kernel come up, then let it serve."""
        kernel.watch(self._on_change)
        try:
            await self._sandboxes.bring_up(kernel)
        except Exception as error:  # noqa: BLE001 - however a launch fails, it is undone, told and tried again later
            self._launch_failed(kernel, pool, error)
            return
        if kernel.kernel_id not in self._kernels:
            return  # retired while it came up
        pool.became_warm(kernel.kernel_id)
        self._tally.launches[kernel.kernel_name, Launch.OK] += 1
        self.last_failure = None
        self._serve(kernel.kernel_name)
        self._refill()

    def _launch_failed(self, kernel: Kernel, pool: WarmPool, error: Exception) -> None:
        if kernel.kernel_id not in self._kernels:
            return  # retired while it came up
        expected = isinstance(error, CellblockError)
        self.last_failure = str(error) if expected else "An unexpected error; the gateway's log has it."
        cause = {"cause": str(error.__cause__)} if expected and error.__cause__ is not None else {}
        log.error("launch_failed", kernel_id=kernel.kernel_id, reason=str(error), exc_info=not expected, **cause)
        self._tally.launches[kernel.kernel_name, Launch.FAILED] += 1
        pool.failed(kernel.kernel_id, self._clock.monotonic())
        self.discard(kernel)
        if pool.is_failing(self._clock.monotonic()):
            for waiter in self._waiters[kernel.kernel_name]:
                if not waiter.done():
                    message = f"{NO_SANDBOX}, and nothing was run: {self.last_failure}"
                    waiter.set_exception(EngineUnavailable(message))
        self._refill()

    def _serve(self, name: str) -> None:
        """Give warm kernels to the claims that have waited longest."""
        pool, waiters = self._pools[name], self._waiters[name]
        while waiters:
            if waiters[0].done():
                waiters.popleft()
                continue
            kernel = self._claim_warm(pool)
            if kernel is None:
                break
            waiters.popleft().set_result(kernel)
        pool.waiting = len(waiters)

    def _claim_warm(self, pool: WarmPool) -> Kernel | None:
        """The next warm kernel that is still alive."""
        while (kernel_id := pool.claim(self._clock.monotonic())) is not None:
            kernel = self._kernels[kernel_id]
            if kernel.is_ready():
                return kernel
            self.discard(kernel)
        return None

    def _on_change(self, kernel: Kernel) -> None:
        """A warm kernel that has died, or whose kernel process has, is replaced before a request meets it."""
        if kernel.state is KernelState.READY and not kernel.is_linked():
            self._poll_sandbox(kernel)
        pool = self._pools[kernel.kernel_name]
        dead = kernel.state is KernelState.GONE or (kernel.last_death is not None and not kernel.is_ready())
        if kernel.kernel_id in pool.warm and dead:
            log.warning("warm_kernel_died", kernel_id=kernel.kernel_id, reason=kernel.violation)
            self.discard(kernel)
            self._refill()

    def _poll_sandbox(self, kernel: Kernel) -> None:
        if kernel.kernel_id not in self._polled:
            self._polled.add(kernel.kernel_id)
            self._tasks.spawn(self._poll_while_unlinked(kernel))

    async def _poll_while_unlinked(self, kernel: Kernel) -> None:
        """A supervisor that has hung up may dial again for a while, unless the engine knows that it has ended."""
        try:
            while kernel.state is not KernelState.GONE and not kernel.is_linked():
                if await self._sandboxes.has_ended(kernel):
                    kernel.abandon("the sandbox has ended")
                await asyncio.sleep(self._timeouts.unlinked_poll_s)
        finally:
            self._polled.discard(kernel.kernel_id)

    async def _remove(self, kernel: Kernel, pool: WarmPool) -> None:
        try:
            await self._sandboxes.remove(kernel)
        except Exception:
            # A bug of ours; but the room that the sandbox took is not lost for good.
            log.exception("sandbox_not_removed", kernel_id=kernel.kernel_id)
        finally:
            pool.removed(kernel.kernel_id)
            self._refill()
