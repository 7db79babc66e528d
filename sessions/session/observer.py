"""The port through which a live session is observed, and the one place that calls observers.

Who observes sessions is not decided here; the Jupyter clients' router does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

from sessions.kernels.kernel import Kernel
from sessions.model import JupyterRequest, Result, RunId
from sessions.runs.live_run import LiveRun

_Observer = TypeVar("_Observer")

log = structlog.get_logger()


class SessionObserver(Protocol):
    """Called when something has happened to a session, in the order in which it happened. Calls must not block."""

    def kernel_attached(self, kernel: Kernel) -> None:
        """The session has this kernel now. An observer of its messages sets `Kernel.tap`."""
        ...

    def kernel_ready(self) -> None:
        """The kernel answers, perhaps as it did before."""
        ...

    def kernel_lost(self, *, at_work: bool) -> None:
        """The kernel, or its process, has ended; another will follow. May be called more than once for one end.

        `at_work`: a run was on it, whose end is still to come.
        """
        ...

    def run_settled(self) -> None:
        """No run is at work any more: the last one's end was observed, and so was what it aborted."""
        ...

    def restart_requested(self) -> None:
        """A client wants a fresh kernel: the end of this one is no accident."""
        ...

    def restart_finished(self) -> None:
        """The restart that was requested is done, or has failed."""
        ...

    def run_queued(self, run_id: RunId, request: JupyterRequest | None) -> None:
        """The session has a new run; `request` is a Jupyter client's, if one asked for it."""
        ...

    def run_aborted(self, run_id: RunId) -> None:
        """This run, which waits, will not be run, because one before it has failed. Its end follows."""
        ...

    def run_ended(self, live: LiveRun, result: Result | None) -> None:
        """The end of a run is committed; `result` is None if it could not be stored."""
        ...

    def session_ended(self) -> None:
        """There is no kernel any more, nor will there be one."""
        ...


class Observers:
    """The observers of one session. What one of them raises is logged: it costs neither the run nor the session.

    The mutable state is the list of observers.
    """

    def __init__(self) -> None:
        self._observers: list[SessionObserver] = []

    def __repr__(self) -> str:
        return f"<Observers {self._observers}>"

    def add(self, observer: SessionObserver) -> None:
        """Call this observer, too, from now on."""
        self._observers.append(observer)

    def find(self, kind: type[_Observer]) -> _Observer:
        """The observer of this class. Raises LookupError."""
        for observer in self._observers:
            if isinstance(observer, kind):
                return observer
        raise LookupError(kind)

    def notify(self, call: Callable[[SessionObserver], None]) -> None:
        """Make this call to every observer."""
        for observer in self._observers:
            try:
                call(observer)
            except Exception:
                log.exception("session_observer_failed", observer=repr(observer))
