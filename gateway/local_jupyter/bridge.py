"""The bridge: a process with one kernel's container behind it and Jupyter's sockets in front. A composition root.

The provisioner starts it. It ends at a shutdown_request, when its standard input ends, or when its parent does, and
removes its container then. Between two kernel processes it waits for the provisioner's RESUME.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

if __name__ == "__main__":
    # structlog imports it where it is there, for tracebacks in colour.
    sys.modules["rich"] = None  # type: ignore[assignment]

import structlog

from gateway.config.loader import Config
from gateway.host.clock import SystemClock
from gateway.host.logs import configure_logs
from gateway.local_jupyter import bridge_protocol
from gateway.local_jupyter.bridge_engine import choose_engine, load_config, remove_abandoned
from gateway.local_jupyter.connection import read_connection
from gateway.local_jupyter.paced_handshake import PacedHandshake
from gateway.local_jupyter.router import MessageRouter
from gateway.local_jupyter.workspace import Workspace
from gateway.supervisors import SupervisorSwitchboard
from sessions.errors import CellblockError, EngineUnavailable, KernelLost, UnsupportedLanguage
from sessions.kernels.kernel import Kernel, KernelState
from sessions.kernels.outcomes import Cause, Died
from sessions.kernels.throttle import Throttle
from sessions.model import KernelId
from sessions.ports import LaunchSpec, Provisioner
from sessions.settings import Timeouts

_READY_TIMEOUT_S = 60.0
_FATE_PAUSE_S = 0.5
_DEATH_TIMEOUT_S = 3.5
_RESUME_TIMEOUT_S = 60.0
_LATE_SHUTDOWN_S = 0.1
_ORPHAN_TIMEOUT_S = 10.0
_PARENT_PAUSE_S = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `config` is None where the kernelspec names no file."""

    connection_file: Path
    language: str
    config: Path | None
    parent: int


class EventWriter:
    """Events for the provisioner, on what was standard output. What libraries print there goes to standard error."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)

    def send(self, event: str, **fields: Any) -> None:
        """Send one event of bridge_protocol.py."""
        with suppress(OSError):  # nobody is left to read it
            os.write(self._fd, json.dumps({"event": event, **fields}).encode() + b"\n")


class Bridge:
    """One container and the kernel processes in it, one after the other.

    Its state: whether clients have been offered a kernel (`_serving`), whether that kernel process has ended
    (`_ended`), and whether a client asked for its end (`_end_wanted`).
    """

    def __init__(
        self, options: Options, config: Config, own: Workspace, provisioner: Provisioner, events: EventWriter
    ) -> None:
        self._options = options
        self._config = config
        self._limits = config.limits
        self._workspace = own
        self._provisioner = provisioner
        self._events = events
        self._switchboard = SupervisorSwitchboard(own.sockets, self._limits.message_bytes)
        self._kernel = _make_kernel(config, options.language)
        self._router = MessageRouter(
            read_connection(options.connection_file), self._kernel, self._on_shutdown_request, self._limits.memory_bytes
        )
        self._kernel.tap = self._router
        self._kernel.watch(lambda _kernel: self._on_change())
        self._death: Died | None = None
        self._serving = False
        self._ended = False
        self._end_wanted = False
        self._stopping = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._unfinished = b""

    async def run(self) -> None:
        """Serve until told to stop. Raises CellblockError when the kernel does not come up."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_reader(0, self._read_commands)
        work = [asyncio.ensure_future(task) for task in (self._watch_parent(), self._stopping.wait())]
        starting = asyncio.ensure_future(self._start())
        try:
            await asyncio.wait({starting, *work}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                cleaning = asyncio.ensure_future(remove_abandoned(self._config))
                await self._stopping.wait()
                cleaning.cancel()
        finally:
            loop.remove_reader(0)
            for task in (starting, *work):
                task.cancel()
            await asyncio.wait({starting, *work})
            await self._close()

    # --- the container ------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        kernel = self._kernel
        directory = self._switchboard.open(
            kernel.kernel_id, lambda link: PacedHandshake(kernel, link, self._router.sockets.room)
        )
        spec = LaunchSpec(
            kernel_id=kernel.kernel_id,
            gateway_id=self._workspace.gateway_id,
            credential=kernel.credential,
            socket_dir=directory,
            limits=self._limits,
            kernel_name=kernel.kernel_name,
            preload=self._config.build.preload,
            orphan_timeout_s=_ORPHAN_TIMEOUT_S,
        )
        await self._provisioner.launch(spec)
        ready = asyncio.ensure_future(kernel.wait_ready(_READY_TIMEOUT_S))
        while not (await asyncio.wait({ready}, timeout=_FATE_PAUSE_S))[0]:
            if await self._provisioner.fate(kernel.kernel_id) is not None:
                kernel.abandon("the sandbox has ended")
        ready.result()
        self._serve()

    async def _close(self) -> None:
        self._router.sockets.close()
        self._kernel.clear_watchers()
        for task in (self._looking, self._resuming):
            if task is not None:
                task.cancel()
        self._kernel.abandon("the client is done")
        self._switchboard.close(self._kernel.kernel_id)
        try:
            await self._provisioner.kill(self._kernel.kernel_id)
        except EngineUnavailable as error:
            log.warning("sandbox_left", reason=str(error), consequence="it ends by itself")

    # --- the kernel process -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._serving, self._ended, self._end_wanted = True, False, False
        self._events.send(bridge_protocol.READY)
        self._on_change()

    def _on_change(self) -> None:
        """The kernel has come up or died, or the link is lost, or the container is gone."""
        kernel = self._kernel
        self._router.sockets.read_requests(self._serving and not self._ended and kernel.is_ready())
        if kernel.last_death is not self._death:
            self._death = kernel.last_death
            self._router.forget_requests()
            self._on_kernel_died(self._death)
        if kernel.state is KernelState.GONE:
            if self._serving:
                self._end(1, kernel.violation or "its container is gone.")
                self._stopping.set()
        elif self._serving and not kernel.is_linked() and self._looking is None:
            self._looking = asyncio.ensure_future(self._look_for_end())

    async def _look_for_end(self) -> None:
        """A supervisor whose link breaks may dial again; a container that has ended will not."""
        while not self._kernel.is_linked():
            with suppress(EngineUnavailable):
                if await self._provisioner.fate(self._kernel.kernel_id) is not None:
                    self._kernel.abandon("the sandbox has ended")
                    break
            await asyncio.sleep(_FATE_PAUSE_S)
        self._looking = None

    def _on_shutdown_request(self, restart: bool) -> None:  # noqa: FBT001 - the field of Jupyter's message
        """End the kernel process, if it has not ended; without a restart, the bridge as well."""
        if restart and self._ended:
            return
        self._end_wanted = True
        if restart:
            self._kill()
        else:
            self._end(0, "")
            self._stopping.set()

    def _on_kernel_died(self, died: Died | None) -> None:
        """Requests wait from now on, until the provisioner wants the next kernel process."""
        if died is None:
            return
        code = died.exit_code if died.exit_code is not None else -(died.signal or signal.SIGKILL)
        wanted = self._end_wanted or died.cause is Cause.RESTART
        self._end(0 if self._end_wanted else code, "" if wanted else self._why(died, code))

    def _why(self, died: Died, code: int) -> str:
        if died.cause is Cause.OOM:
            return self._router.out_of_memory
        return f"its process ended with signal {-code}." if code < 0 else f"its process ended with exit code {code}."

    def _kill(self) -> None:
        """End the kernel process. A supervisor that does not report its death in time is not waited for."""
        if self._serving and not self._ended:
            self._kernel.restart()
            self._stop_after(_DEATH_TIMEOUT_S)

    def _end(self, code: int, reason: str) -> None:
        if self._serving and not self._ended:
            self._ended = True
            self._router.sockets.read_requests(False)  # noqa: FBT003
            self._events.send(bridge_protocol.ENDED, code=code, reason=reason)
            # A client that has no more use for a dead kernel may never say so.
            self._stop_after(_RESUME_TIMEOUT_S)

    def _stop_after(self, timeout_s: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(timeout_s, self._stopping.set)

    async def _resume(self) -> None:
        """Serve the kernel process that the supervisor has started meanwhile."""
        if self._deadline is not None:
            self._deadline.cancel()
        try:
            # A shutdown_request that was meant for the previous kernel process may still be on its way.
            await asyncio.sleep(_LATE_SHUTDOWN_S)
            await self._kernel.wait_ready(_READY_TIMEOUT_S)
        except KernelLost as error:
            self._events.send(bridge_protocol.FAILED, reason=str(error), code=error.code)
            self._stopping.set()
        else:
            self._serve()

    # --- the provisioner ----------------------------------------------------------------------------------------------

    def _read_commands(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._stopping.set()
            asyncio.get_running_loop().remove_reader(0)
        *commands, self._unfinished = (self._unfinished + data).split(b"\n")
        for command in commands:
            match command.decode("ascii", "replace"):
                case bridge_protocol.INTERRUPT:
                    self._kernel.interrupt(None, 0)
                case bridge_protocol.KILL:
                    self._kill()
                case bridge_protocol.RESUME if self._ended:
                    self._resuming = asyncio.ensure_future(self._resume())

    async def _watch_parent(self) -> None:
        """Stop when the parent is gone. A process that it has forked may hold our standard input open."""
        while os.getppid() == self._options.parent:  # noqa: ASYNC110 - another process has no event to wait on
            await asyncio.sleep(_PARENT_PAUSE_S)
        self._stopping.set()


def _make_kernel(config: Config, language: str) -> Kernel:
    """A kernel that may take all of this process's time: it is the only one here. Raises UnsupportedLanguage."""
    kernel_name = config.languages.get(language)
    if kernel_name is None:
        known = ", ".join(sorted(config.languages))
        raise UnsupportedLanguage(f"`languages` of the configuration has no {language}, but {known}.")
    clock = SystemClock()
    return Kernel(
        KernelId(str(uuid4())),
        kernel_name,
        secrets.token_hex(32),
        clock,
        Timeouts(),
        throttle=Throttle(clock, share=1.0),
        only_tapped=True,
    )


async def bridge(options: Options, events: EventWriter) -> int:
    """Run a bridge; returns its exit status."""
    try:
        own = Workspace.make()
        try:
            config = load_config(options.config, os.environ)
            provisioner = await choose_engine(config, own)
            try:
                await Bridge(options, config, own, provisioner, events).run()
            finally:
                await provisioner.close()
        finally:
            own.remove()
    except CellblockError as error:
        events.send(bridge_protocol.FAILED, reason=str(error), code=error.code)
        return 1
    return 0


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m gateway.local_jupyter.bridge", description=__doc__)
    parser.add_argument("--connection-file", type=Path, required=True)
    parser.add_argument("--language", default="python")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--parent", type=int, default=os.getppid())
    options = Options(**vars(parser.parse_args()))
    configure_logs(level=logging.WARNING)
    os.umask(0o077)
    sys.exit(asyncio.run(bridge(options, EventWriter())))


if __name__ == "__main__":
    main()
