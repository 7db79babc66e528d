"""The bridge: a process with one kernel's container behind it and Jupyter's sockets in front. A composition root.

It is started by the provisioner and ends with it: when its standard input ends, when its parent does, or at a
shutdown_request. Then its container is removed. Between two kernel processes it waits for the provisioner's word.
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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from gateway.config import loader as configuration
from gateway.config.loader import Config
from gateway.host.clock import SystemClock
from gateway.host.logs import configure_logs
from gateway.local_jupyter import bridge_protocol, workspace
from gateway.local_jupyter.connection import read_connection
from gateway.local_jupyter.relayed_kernel import RelayedKernel, RelayHandshake, RelayListener
from gateway.local_jupyter.router import MessageRouter
from gateway.local_jupyter.workspace import Workspace
from gateway.supervisors import SupervisorSwitchboard
from sessions.errors import CellblockError, EngineUnavailable, KernelLost, UnsupportedLanguage
from sessions.kernels.kernel import KernelState
from sessions.kernels.outcomes import Cause, Died
from sessions.model import KernelId, LaunchSpec
from sessions.ports import Provisioner
from sessions.provisioners.docker.engine import DockerEngine
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.provisioners.image.build import find_kernel_image
from sessions.provisioners.process.provisioner import ProcessProvisioner

_READY_TIMEOUT_S = 60.0
_LOOK_S = 0.5
_DEATH_TIMEOUT_S = 2.0
_UNCLAIMED_S = 60.0
_LAST_WORDS_S = 0.1
_ORPHAN_TIMEOUT_S = 10.0
_PARENT_LOOK_S = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `config` is None where the kernelspec names no file."""

    connection_file: Path
    language: str
    config: Path | None
    parent: int


class News:
    """The way to the provisioner: what was standard output. What libraries may print goes to standard error."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)

    def say(self, event: str, **fields: Any) -> None:
        """Tell one event."""
        with suppress(OSError):  # there is nobody left to tell
            os.write(self._fd, json.dumps({"event": event, **fields}).encode() + b"\n")


class Bridge:
    """One container and the kernel processes in it, one after the other.

    Its state: whether there is a kernel for clients to talk to or it has ended (`_ended`), and whether its end has
    been asked for.
    """

    def __init__(self, options: Options, config: Config, own: Workspace, provisioner: Provisioner, news: News) -> None:
        self._options = options
        self._config = config
        self._limits = config.limits.limits()
        self._place = own
        self._provisioner = provisioner
        self._news = news
        self._switchboard = SupervisorSwitchboard(own.sockets, self._limits.message_bytes)
        self._kernel_id = KernelId(str(uuid4()))
        connection = read_connection(options.connection_file)
        self._exchange = MessageRouter(connection, self._make_kernel, self, self._limits.memory_bytes)
        self._kernel = self._exchange.kernel
        self._kernel.watch(lambda _kernel: self._on_change())
        self._serving = False
        self._ended = False
        self._end_wanted = False
        self._stopping = asyncio.Event()
        self._out_of_patience: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._unfinished = b""
        self._resuming: asyncio.Task[None] | None = None

    def _make_kernel(self, listener: RelayListener) -> RelayedKernel:
        kernel_name = self._config.languages.get(self._options.language)
        if kernel_name is None:
            known = ", ".join(sorted(self._config.languages))
            raise UnsupportedLanguage(f"`languages` of the configuration has no {self._options.language}, but {known}.")
        return RelayedKernel(self._kernel_id, kernel_name, secrets.token_hex(32), SystemClock(), listener)

    async def run(self) -> None:
        """Serve until told to stop. Raises CellblockError when the kernel does not come up."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_reader(0, self._hear)
        work = [asyncio.ensure_future(task) for task in (self._watch_parent(), self._stopping.wait())]
        starting = asyncio.ensure_future(self._start())
        try:
            await asyncio.wait({starting, *work}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                clearing = asyncio.ensure_future(clear_abandoned(self._config))
                await self._stopping.wait()
                clearing.cancel()
        finally:
            loop.remove_reader(0)
            for task in (starting, *work):
                task.cancel()
            await asyncio.wait({starting, *work})
            await self._clear_away()

    # --- the container ------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        directory = self._switchboard.open(
            self._kernel_id, lambda link: RelayHandshake(self._kernel, link, self._exchange.sockets.room)
        )
        spec = LaunchSpec(
            kernel_id=self._kernel_id,
            gateway_id=self._place.gateway_id,
            credential=self._kernel.credential,
            socket_dir=directory,
            limits=self._limits,
            kernel_name=self._kernel.kernel_name,
            preload=self._config.build.preload,
            orphan_timeout_s=_ORPHAN_TIMEOUT_S,
        )
        await self._provisioner.launch(spec)
        ready = asyncio.ensure_future(self._kernel.wait_ready(_READY_TIMEOUT_S))
        while not (await asyncio.wait({ready}, timeout=_LOOK_S))[0]:
            if await self._provisioner.fate(self._kernel_id) is not None:
                self._kernel.discard("the sandbox has ended")
        ready.result()
        self._serve()

    async def _clear_away(self) -> None:
        self._exchange.sockets.close()
        self._kernel.unwatch()
        for task in (self._looking, self._resuming):
            if task is not None:
                task.cancel()
        self._kernel.discard("the client is done")
        self._switchboard.close(self._kernel_id)
        try:
            await self._provisioner.kill(self._kernel_id)
        except EngineUnavailable as error:
            log.warning("sandbox_left", reason=str(error), consequence="it ends by itself")

    # --- the kernel's life --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._serving, self._ended, self._end_wanted = True, False, False
        self._news.say(bridge_protocol.READY)
        self._on_change()

    def _on_change(self) -> None:
        """The kernel has come up, or the link is lost, or all is over."""
        self._exchange.sockets.read_requests(self._serving and not self._ended and self._kernel.is_ready())
        if self._kernel.state is KernelState.GONE:
            if self._serving:
                self._end(1, self._kernel.violation or "its container is gone.")
                self._stopping.set()
        elif self._serving and not self._kernel.is_linked() and self._looking is None:
            self._looking = asyncio.ensure_future(self._look_for_end())

    async def _look_for_end(self) -> None:
        """A link that breaks may dial again; a container that has ended will not."""
        while not self._kernel.is_linked():
            with suppress(EngineUnavailable):
                if await self._provisioner.fate(self._kernel_id) is not None:
                    self._kernel.discard("the sandbox has ended")
                    break
            await asyncio.sleep(_LOOK_S)
        self._looking = None

    def on_shutdown_request(self, *, restart: bool) -> None:
        """End the kernel process, if it has not ended; and all of this, unless it is to be started again."""
        if restart and self._ended:
            return
        self._end_wanted = True
        if restart:
            self._kill()
        else:
            self._end(0, "")
            self._stopping.set()

    def on_kernel_died(self, died: Died) -> None:
        """The kernel process is no more: requests wait until the provisioner wants the next one."""
        code = died.exit_code if died.exit_code is not None else -(died.signal or signal.SIGKILL)
        wanted = self._end_wanted or died.cause is Cause.RESTART
        self._end(0 if self._end_wanted else code, "" if wanted else self._why(died, code))

    def _why(self, died: Died, code: int) -> str:
        if died.cause is Cause.OOM:
            return self._exchange.out_of_memory
        return f"its process ended with signal {-code}." if code < 0 else f"its process ended with exit code {code}."

    def _kill(self) -> None:
        """End the kernel process. A supervisor that does not say that it has is not waited for."""
        if self._serving and not self._ended:
            self._kernel.restart()
            self._wait_no_longer_than(_DEATH_TIMEOUT_S)

    def _end(self, code: int, reason: str) -> None:
        if self._serving and not self._ended:
            self._ended = True
            self._exchange.sockets.read_requests(False)  # noqa: FBT003
            self._news.say(bridge_protocol.ENDED, code=code, reason=reason)
            # Whoever has let go of a dead kernel may never say so.
            self._wait_no_longer_than(_UNCLAIMED_S)

    def _wait_no_longer_than(self, patience_s: float) -> None:
        if self._out_of_patience is not None:
            self._out_of_patience.cancel()
        self._out_of_patience = asyncio.get_running_loop().call_later(patience_s, self._stopping.set)

    async def _resume(self) -> None:
        """Serve the kernel process that the supervisor has started meanwhile."""
        if self._out_of_patience is not None:
            self._out_of_patience.cancel()
        try:
            # A shutdown_request that was meant for the kernel before may still be on its way.
            await asyncio.sleep(_LAST_WORDS_S)
            await self._kernel.wait_ready(_READY_TIMEOUT_S)
        except KernelLost as error:
            self._news.say(bridge_protocol.FAILED, reason=str(error))
            self._stopping.set()
        else:
            self._serve()

    # --- the provisioner ----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        said = os.read(0, 4096)
        if not said:
            self._stopping.set()
            asyncio.get_running_loop().remove_reader(0)
        *words, self._unfinished = (self._unfinished + said).split(b"\n")
        for word in words:
            match word.decode("ascii", "replace"):
                case bridge_protocol.INTERRUPT:
                    self._kernel.interrupt_whatever_runs()
                case bridge_protocol.KILL:
                    self._kill()
                case bridge_protocol.RESUME if self._ended:
                    self._resuming = asyncio.ensure_future(self._resume())

    async def _watch_parent(self) -> None:
        """Return when the parent is gone. A process that it has forked may hold our standard input open."""
        while os.getppid() == self._options.parent:  # noqa: ASYNC110 - another process has no event to wait on
            await asyncio.sleep(_PARENT_LOOK_S)
        self._stopping.set()


async def clear_abandoned(config: Config) -> None:
    """Remove what bridges of this user that were killed have left. Their containers end by themselves, soon."""
    for left in workspace.take_over_abandoned():
        provisioner: Provisioner = (
            ProcessProvisioner(left.gateway_id, left.kernels)
            if left.kernels.exists()
            else DockerProvisioner(left.gateway_id, config.engine.settings())
        )
        try:
            for sandbox in await provisioner.list():
                await provisioner.kill(sandbox.kernel_id)
        except EngineUnavailable as error:
            log.warning("leftovers_not_removed", path=str(left.path), reason=str(error))
            left.release()
        else:
            left.remove()
        finally:
            await provisioner.close()


async def choose_engine(config: Config, own: Workspace) -> Provisioner:
    """The engine of the configuration. Only a file that says so has kernels that nothing isolates.

    Raises EngineUnavailable, Misconfigured, SetUpFailed.
    """
    if config.engine.name == "process":
        return ProcessProvisioner(own.gateway_id, own.kernels)
    engine = DockerEngine(threads=2)
    try:
        tag = await _kernel_image(config, engine)
    except BaseException:
        await engine.close()
        raise
    settings = replace(config.engine.settings(), name="docker", kernel_image=tag)
    return DockerProvisioner(own.gateway_id, settings, engine)


async def _kernel_image(config: Config, engine: DockerEngine) -> str:
    """The tag of the image. Raises as `choose_engine` does: nothing is built while somebody waits for a kernel."""
    if not (await engine.facts()).shares_host:
        raise EngineUnavailable("The Docker engine is on another machine, whose containers cannot reach this one.")
    tag = await find_kernel_image(config.build.settings(), engine, named=config.engine.kernel_image)
    if tag is None:
        raise EngineUnavailable("The kernel image is not there: run `cellblock build`, then try again.")
    return tag


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration that the kernelspec names, or the environment does.

    Never ./config.yaml: a notebook's directory may hold one of another program's. Raises Misconfigured.
    """
    if path is None and not environ.get(configuration.FILE_VARIABLE):
        path = Path(os.devnull)
    return configuration.load(path, environ)


async def bridge(options: Options, news: News) -> int:
    """Run a bridge; returns its exit status."""
    try:
        own = Workspace.make()
        try:
            config = load_config(options.config, os.environ)
            provisioner = await choose_engine(config, own)
            try:
                await Bridge(options, config, own, provisioner, news).run()
            finally:
                await provisioner.close()
        finally:
            own.remove()
    except CellblockError as error:
        news.say(bridge_protocol.FAILED, reason=str(error))
        return 1
    return 0


def main() -> None:
    """Take the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m gateway.local_jupyter.bridge", description=__doc__)
    parser.add_argument("--connection-file", type=Path, required=True)
    parser.add_argument("--language", default="python")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--parent", type=int, default=os.getppid())
    options = Options(**vars(parser.parse_args()))
    configure_logs(level=logging.WARNING)
    os.umask(0o077)
    sys.exit(asyncio.run(bridge(options, News())))


if __name__ == "__main__":
    main()
