"""The warm pool's decisions: which kernel serves a claim, and how many to launch now. Pure; the I/O is in kernel_pool.

Every kernel is used once. The pool refills itself in the background. While code runs, and until the first kernel is
up, it launches one kernel at a time: parallel launches would slow down the running code, and the first answer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sessions.model import KernelId
from sessions.settings import PoolSettings, Timeouts

_IDLE_LAUNCHES = 2
_MAX_DOUBLINGS = 10
_SHARE_OF_PAUSE_WHEN_EMPTY = 0.2


@dataclass(slots=True)
class WarmPool:
    """Warm kernels of one kernelspec.

    The mutable state: the kernels that are warm, launching, at work and being removed; how many claims wait; and how
    launches have failed.
    """

    settings: PoolSettings
    timeouts: Timeouts
    warm: deque[KernelId] = field(default_factory=deque)
    launching: set[KernelId] = field(default_factory=set)
    working: set[KernelId] = field(default_factory=set)
    removing: set[KernelId] = field(default_factory=set)
    waiting: int = 0
    failures: int = 0
    retry_at_s: float = 0.0
    last_claim_s: float = float("-inf")
    ever_warm: bool = False

    def __repr__(self) -> str:
        return (
            f"<WarmPool {len(self.warm)} warm, {len(self.launching)} launching, {len(self.working)} working, "
            f"{len(self.removing)} removing, {self.waiting} waiting, {self.failures} failures>"
        )

    def live(self) -> int:
        """How many containers there are, those that are being launched included."""
        return len(self.warm) + len(self.launching) + len(self.working) + len(self.removing)

    def is_failing(self, now_s: float) -> bool:
        """Whether nothing is warm and the last launches have all failed.

        When no kernels are kept warm, only a claim makes the next attempt, so one is let through once it is due.
        """
        is_due = self.settings.size == 0 and now_s >= self.retry_at_s
        return not self.warm and self.failures > 1 and not is_due

    # --- what happens -------------------------------------------------------------------------------------------------

    def claim(self, now_s: float) -> KernelId | None:
        """Take the kernel that has been warm the longest; None when there is none."""
        if not self.warm:
            return None
        kernel_id = self.warm.popleft()
        self.working.add(kernel_id)
        self.last_claim_s = now_s
        return kernel_id

    def unclaim(self, kernel_id: KernelId) -> None:
        """Put back a claimed kernel on which nothing has run."""
        self.working.discard(kernel_id)
        self.warm.appendleft(kernel_id)

    def adopt(self, kernel_id: KernelId) -> None:
        """A kernel that an earlier gateway launched is at work."""
        self.working.add(kernel_id)

    def hand_over(self, kernel_id: KernelId) -> None:
        """A kernel at work is left to a later gateway."""
        self.working.discard(kernel_id)

    def launch(self, kernel_id: KernelId) -> None:
        """A launch has begun."""
        self.launching.add(kernel_id)

    def became_warm(self, kernel_id: KernelId) -> None:
        """A launch has succeeded."""
        self.launching.discard(kernel_id)
        self.warm.append(kernel_id)
        self.failures = 0
        self.ever_warm = True

    def failed(self, kernel_id: KernelId, now_s: float) -> None:
        """A launch has failed; the next one waits, longer each time."""
        self.launching.discard(kernel_id)
        self.failures += 1
        doublings = min(self.failures - 1, _MAX_DOUBLINGS)  # a night of failures would overflow
        backoff_s = self.timeouts.first_backoff_s * 2**doublings
        self.retry_at_s = now_s + min(self.timeouts.longest_backoff_s, backoff_s)

    def remove(self, kernel_id: KernelId) -> None:
        """A kernel is used, or has died, and its container is being removed."""
        self.launching.discard(kernel_id)
        self.working.discard(kernel_id)
        if kernel_id in self.warm:
            self.warm.remove(kernel_id)
        self.removing.add(kernel_id)

    def removed(self, kernel_id: KernelId) -> None:
        """Its container is gone."""
        self.removing.discard(kernel_id)

    # --- what to do ---------------------------------------------------------------------------------------------------

    def launches(self, now_s: float) -> int:
        """How many launches to begin now."""
        if now_s < self.retry_at_s or now_s < self._resume_at_s():
            return 0
        wanted = self.settings.size + self.waiting - len(self.warm) - len(self.launching)
        return max(0, min(wanted, self._parallel() - len(self.launching), self.settings.max - self.live()))

    def next_look_s(self, now_s: float) -> float | None:
        """When `launches` should be asked again even if nothing happens; None when there is no need."""
        due = [at_s for at_s in (self.retry_at_s, self._resume_at_s()) if at_s > now_s]
        return max(due) if due else None

    def _parallel(self) -> int:
        """How many launches may be under way at once."""
        return 1 if not self.ever_warm or (self.working and not self.waiting) else _IDLE_LAUNCHES

    def _resume_at_s(self) -> float:
        """Until when a run that has just begun delays refilling; it does not while somebody waits for a kernel."""
        if not self.working or self.waiting:
            return float("-inf")
        return self.last_claim_s + self.timeouts.refill_pause_s * (1.0 if self.warm else _SHARE_OF_PAUSE_WHEN_EMPTY)
