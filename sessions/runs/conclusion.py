"""A run's one final status, and a sentence for it where the traceback says nothing. Pure.

How the end was brought about is the executor's business; committing the result is the recorder's.
"""

from __future__ import annotations

import signal

from sessions.kernels.outcomes import Cause, Died, Done
from sessions.model import Result, RunStatus
from sessions.runs.live_run import LiveRun, Stop

_NO_REPLY = "The kernel's reply to this run could not be read, so whether the code raised is unknown."
_NOT_HANDLED = "The sandbox could not take this run in, because of an error in it; the gateway's log has its words."
_OUT_OF_SIGHT = (
    "The gateway stopped while this run was under way, and its sandbox is gone: how far it came is not known."
)


def conclude(live: LiveRun, end: Done | Died, stop: Stop | None) -> Result | Died:
    """The result of a run whose code ended by itself or by `stop`; the death, when nothing else explains the end."""
    fold, recorder = live.fold, live.recorder
    fold.add_skipped(end.skipped)
    if isinstance(end, Done) and end.oom_kills:
        fold.notice("a process of this run was killed: the memory limit was reached")
    is_gone = isinstance(end, Died) and end.cause is Cause.GONE
    if is_gone and (recorder.is_complete() or recorder.has_files or stop is not None):
        fold.add_skipped([{"path": "", "bytes": 0, "why": "time"}])
    if isinstance(end, Died) and end.cause is Cause.FAILED:
        return fold.finish(RunStatus.ERROR, _NOT_HANDLED, live.usage(end.usage))
    live.lost_kernel = isinstance(end, Died) or fold.leaves
    fold.session_lost = fold.session_lost or live.lost_kernel
    ended_badly = isinstance(end, Died) or fold.ended_status() is not RunStatus.OK
    if stop is not None and (ended_badly or stop.status is RunStatus.TIMEOUT):
        return fold.finish(stop.status, stop.reason, live.usage(end.usage))
    if isinstance(end, Done) and not recorder.has_reply():
        return fold.finish(RunStatus.ERROR, _NO_REPLY, live.usage(end.usage))
    if isinstance(end, Done) or recorder.is_complete():
        return fold.finish(fold.ended_status(), None, live.usage(end.usage))
    return end


def conclude_death(live: LiveRun, died: Died, *, violation: str | None, oom: bool, memory_bytes: int) -> Result:
    """The result of a run that its kernel's death ended. `oom`: the engine says that the sandbox ran out of memory."""
    if oom or died.cause is Cause.OOM:
        limit_mib = memory_bytes / (1 << 20)
        reason = f"The run needed more memory than its limit of {limit_mib:g} MiB, and its kernel was killed."
        return live.fold.finish(RunStatus.OOM, reason, live.usage(died.usage))
    return live.fold.finish(RunStatus.KERNEL_DIED, violation or _death_sentence(died), live.usage(died.usage))


def conclude_lost(live: LiveRun) -> Result:
    """The result of a run whose sandbox went while there was no gateway."""
    live.lost_kernel = live.fold.session_lost = True
    return live.fold.finish(RunStatus.LOST, _OUT_OF_SIGHT, live.usage(None))


def _death_sentence(died: Died) -> str:
    match died.cause:
        case Cause.GONE:
            return "The sandbox ended before the code did."
        case Cause.INTERRUPT_IGNORED:
            return "The code ignored an interrupt, and its kernel was killed."
    if died.signal is not None:
        try:
            name = signal.Signals(died.signal).name
        except ValueError:
            name = "unknown"
        return f"The kernel was ended by signal {died.signal} ({name}) before the code had ended."
    return f"The kernel ended with exit code {died.exit_code} before the code had ended."
