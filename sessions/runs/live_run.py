"""A live run: its request, its output so far, whether it is to stop, and the future that callers wait for.

The parts of the engine share it and it decides nothing: recorder.py fills it, executor.py executes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from sessions.environment import Environment
from sessions.errors import CellblockError, EndNotStored
from sessions.kernels.kernel import Kernel
from sessions.kernels.pending_requests import generation_of
from sessions.measures.stages import RunTrace
from sessions.model import Event, Progress, Result, Run, RunId, RunRecord, RunStatus, Session, Usage
from sessions.output.fold import RunFold
from sessions.runs.recorder import Recorder

_NOT_ENDED = "An error inside the gateway lost the end of the run {}. Do not run it again: the code may have run."

_INTERRUPTED = "KeyboardInterrupt: the run was interrupted while its files were written, and its code was not run."

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run was told to end, and what its status is then if it had not ended by itself."""

    status: RunStatus
    reason: str


class LiveRun:
    """One run, from the moment it is recorded.

    The mutable state: `run` (its kernel may change until one has taken it); `kernel` and `msg_id` once it is sent, and
    when that was by the loop's clock, `begun_s`; `is_preparing` while its files are written before; `stop` once it is
    told to end; `concluded` once it has ended; and `answer`, done when the end is committed. `is_resumed`: an earlier
    gateway may have sent it. `lost_kernel`: its kernel process died with it.
    """

    def __init__(self, run: Run, environment: Environment, trace: RunTrace | None = None) -> None:
        timeouts = environment.timeouts
        self.run = run
        self.trace = trace or RunTrace(environment.stages, is_whole=False)
        self.source_bytes = run.source_bytes()
        self.text_bytes = self.source_bytes - (0 if run.inputs is None else run.inputs.size_bytes())
        self.fold = RunFold(run.run_id, environment.limits, run.session_id)
        self.recorder = Recorder(
            run.run_id,
            self.fold,
            environment.store,
            environment.clock,
            timeouts,
            trace=self.trace,
            log_fields=run.log_fields,
        )
        self._timeouts = timeouts
        self._tally = environment.tally
        self.kernel: Kernel | None = None
        self.msg_id = ""
        self.begun_s: float | None = None
        self.is_preparing = False
        self.is_resumed = False
        self.lost_kernel = False
        self.stop: Stop | None = None
        loop = asyncio.get_running_loop()
        self.stopping: asyncio.Future[None] = loop.create_future()
        self.concluded: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[Result] = loop.create_future()
        self.answer.add_done_callback(retrieve)

    def __repr__(self) -> str:
        state = "ended" if self.answer.done() else "sent" if self.run.kernel_id else "waiting"
        return f"<LiveRun {self.run_id} {state}{', to stop' if self.stop else ''}>"

    @classmethod
    def resumed(cls, record: RunRecord, events: Sequence[Event], environment: Environment) -> LiveRun:
        """A run of an earlier gateway, with its committed events."""
        live = cls(record.run, environment)
        live.is_resumed = record.run.kernel_id is not None
        live.recorder.resume(events, record.progress or Progress(0, None, {}))
        return live

    @property
    def run_id(self) -> RunId:
        """Its id."""
        return self.run.run_id

    @property
    def generation(self) -> int:
        """Which kernel process it was sent to."""
        return generation_of(self.msg_id)

    @property
    def awaits_input(self) -> bool:
        """Whether its code waits in `input()`."""
        return self.kernel is not None and self.kernel.asks and self.fold.awaits_input

    def usage(self, told: Usage | None) -> Usage:
        """What it used: as its supervisor says, or else the time alone, since nobody has told the rest."""
        if told is not None:
            return told
        wall_s = 0.0 if self.begun_s is None else asyncio.get_running_loop().time() - self.begun_s
        return Usage(wall_ms=round(wall_s * 1e3, 3), cpu_ms=0.0, memory_peak_bytes=0)

    def interrupt(self) -> None:
        """Interrupt it, as Ctrl-C would; a kernel that ignores that is killed."""
        if self.is_preparing:
            self.request_stop(Stop(RunStatus.ERROR, _INTERRUPTED))
        elif self.kernel is not None:
            self.kernel.interrupt(self.msg_id, self._timeouts.interrupt_grace_s)

    def request_stop(self, stop: Stop) -> None:
        """Have it end. The first reason given counts."""
        if self.stop is None:
            self.stop = stop
            self.stopping.set_result(None)

    async def commit(self, result: Result, session: Session | None = None) -> None:
        """Commit the end, however long that takes, then resolve `answer`."""
        if not self.concluded.done():
            self.concluded.set_result(None)
        try:
            stored = await self.recorder.finish(result, session)
        except Exception:
            # A bug of ours, or a database that refuses even the least; but the code was run.
            log.exception("run_not_ended", **self.run.log_fields())
            self.fail(
                EndNotStored(f"The run {self.run_id} has ended, but that could not be stored. Do not run it again.")
            )
        else:
            self.trace.end_run()
            self._tally.runs[self.run.language, stored.status.value] += 1
            if not self.answer.done():
                self.answer.set_result(stored)

    @contextmanager
    def always_answered(self) -> Iterator[None]:
        """Log an error of ours within the block, and resolve `answer` with one that says so: the code may have run."""
        try:
            yield
        except Exception:
            log.exception("run_not_ended", **self.run.log_fields())
            self.fail(EndNotStored(_NOT_ENDED.format(self.run_id)))

    def fail(self, error: CellblockError) -> None:
        """Resolve `answer` with the error that says why there is none."""
        self.recorder.feed.close()
        if not self.answer.done():
            self.answer.set_exception(error)


def retrieve(answer: asyncio.Future[Any]) -> None:
    """Mark the error as retrieved: nobody may be waiting, and it is in the log already."""
    if not answer.cancelled():
        answer.exception()
