"""The provisioner that jupyter_client loads for our kernelspecs: it starts a bridge, and stands for the kernel process.

See https://jupyter-client.readthedocs.io/en/stable/provisioning.html. It runs inside JupyterLab, nbclient or
another client, so it imports next to nothing. Ports and the connection file are as for a local kernel.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from jupyter_client.connect import KernelConnectionInfo, LocalPortCache, port_names
from jupyter_client.provisioning import LocalProvisioner
from traitlets import Unicode

from gateway.local_jupyter import bridge_protocol
from gateway.local_jupyter.bridge_process import BridgeProcess

_POLL_S = 0.02
_START_TIMEOUT_S = 90.0
_KILL_TIMEOUT_S = 4.5  # jupyter_client waits for 5
_REMOVAL_TIMEOUT_S = 20.0
_PORT_ATTEMPTS = 4


class KernelNotStarted(RuntimeError):
    """Cellblock could not start a kernel."""


class AddressInUse(KernelNotStarted):
    """Another process listens at one of the ports that were chosen for the kernel."""


class CellblockProvisioner(LocalProvisioner):  # type: ignore[misc]
    """A kernel in a container.

    Its state: the bridge, and the kernel's exit code once it has ended. A bridge outlives its kernel process: a restart
    asks it for the next one in the same container, so the files in there are kept.
    """

    language = Unicode("python", config=True, help="One of the `languages` of Cellblock's configuration.")
    config_file = Unicode("", config=True, help="Cellblock's configuration file; empty for none.")

    _bridge: BridgeProcess | None = None
    _served: KernelConnectionInfo | None = None
    _exit_code: int | None = None
    _managing = False
    _kill_deadline_s: float | None = None

    @property
    def has_process(self) -> bool:
        """Whether there is a kernel, or one has ended that nobody has waited for yet."""
        return self._managing

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Return once the kernel answers. Raises KernelNotStarted, which says why it does not."""
        del cmd  # the kernelspec has one because it must
        if not await self._is_resumed():
            await self._end_bridge()
            await self._start_bridge(kwargs.get("env"), kwargs.get("stderr"))
            self._served = dict(self.connection_info)
        assert self._bridge is not None  # noqa: S101 - it is ready
        self.pid = self._bridge.pid
        self._exit_code, self._kill_deadline_s, self._managing = None, None, True
        return self.connection_info

    async def _start_bridge(self, environment: dict[str, str] | None, stderr: Any) -> None:
        """Return once the kernel answers.

        The client chose free ports, and another process may take one of them before the bridge listens there: the
        kernel then gets others, unless somebody already knows those.
        """
        for attempt in range(_PORT_ATTEMPTS):
            arguments = ["--connection-file", self.parent.connection_file, "--language", self.language]
            arguments += ["--config", self.config_file] if self.config_file else []
            self._bridge = BridgeProcess(arguments, environment, stderr)
            try:
                await self._wait_until_ready(self._bridge)
            except AddressInUse as error:
                if attempt == _PORT_ATTEMPTS - 1 or not (self.ports_cached and self._served is None):
                    raise
                self.log.warning("%s It gets other ports.", error)
                self._choose_other_ports(environment or {})
            else:
                return

    def _choose_other_ports(self, environment: dict[str, str]) -> None:
        """Write a connection file with other ports, as LocalProvisioner.pre_launch has written the first one."""
        manager, cache = self.parent, LocalPortCache.instance()
        taken = [getattr(manager, name) for name in port_names]
        for name in port_names:
            setattr(manager, name, cache.find_available_port(manager.ip))
        for port in taken:
            cache.return_port(port)
        manager.cleanup_connection_file()
        manager.write_connection_file(jupyter_session=environment.get("JPY_SESSION_NAME", ""))
        self.connection_info = manager.get_connection_info()

    async def poll(self) -> int | None:
        """None while the kernel lives; then its exit code, or 0 where that is not known."""
        if not self._managing or self._bridge is None:
            return 0
        if self._exit_code is None:
            self._exit_code = self._look_for_end(self._bridge)
        return self._exit_code

    def _look_for_end(self, bridge: BridgeProcess) -> int | None:
        """The exit code of the kernel, or else of its bridge; None while both live."""
        bridge_exit_code = bridge.exit_code()  # asked first: the events that it sent before it ended are there then
        for event in bridge.read_events():
            if event["event"] == bridge_protocol.ENDED:
                if event["reason"]:
                    self.log.warning("Cellblock kernel %s ended: %s", self.kernel_id, event["reason"])
                return int(event["code"])
        if bridge_exit_code is None and self._kill_deadline_s is not None and time.monotonic() > self._kill_deadline_s:
            bridge.kill()
            return -signal.SIGKILL
        return bridge_exit_code

    async def wait(self) -> int | None:
        """Return how the kernel ended, once it has."""
        while (code := await self.poll()) is None:  # noqa: ASYNC110 - another process has no event to wait on
            await asyncio.sleep(_POLL_S)
        self._managing = False
        return code

    async def send_signal(self, signum: int) -> None:
        """SIGINT interrupts what runs; SIGTERM and SIGKILL end the kernel process. No other signal goes in there."""
        if self._bridge is None or await self.poll() is not None:
            return
        if signum == signal.SIGINT:
            self._bridge.send(bridge_protocol.INTERRUPT)
        elif signum in (signal.SIGTERM, signal.SIGKILL):
            self._bridge.send(bridge_protocol.KILL)
            self._kill_deadline_s = self._kill_deadline_s or time.monotonic() + _KILL_TIMEOUT_S

    async def kill(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's
        """End the kernel process. What is in the container stays until `cleanup`, for a restart."""
        del restart
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's
        """End a kernel process that has ignored a shutdown_request."""
        del restart
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's
        """Remove the container, unless a restart goes on in it."""
        if not restart:
            await self._end_bridge()
            self._managing = False
        await super().cleanup(restart)

    def resolve_path(self, path_str: str) -> str | None:
        """No path of this machine means anything in the container."""
        del path_str
        return None

    async def _is_resumed(self) -> bool:
        """Whether the bridge of the previous kernel process serves another one, at the same addresses."""
        bridge = self._bridge
        if bridge is None or self._exit_code is None or bridge.exit_code() is not None:
            return False
        if self._served != self.connection_info:
            return False
        bridge.send(bridge_protocol.RESUME)
        try:
            await self._wait_until_ready(bridge)
        except KernelNotStarted as error:
            self.log.warning("%s The kernel gets a new container.", error)
            return False
        return True

    async def _wait_until_ready(self, bridge: BridgeProcess) -> None:
        """Raises KernelNotStarted once the bridge has ended, or has been ended for taking too long."""
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while not _is_ready(bridge):  # noqa: ASYNC110 - another process has no event to wait on
                    await asyncio.sleep(_POLL_S)
        except BaseException as error:
            await self._end_bridge()
            if isinstance(error, TimeoutError):
                raise KernelNotStarted(f"The kernel has not answered within {_START_TIMEOUT_S:g} s.") from None
            raise

    async def _end_bridge(self) -> None:
        """Have the container removed. Returns once it is, or once a bridge that took too long has been killed."""
        bridge, self._bridge = self._bridge, None
        if bridge is None:
            return
        bridge.disconnect()
        deadline_s = time.monotonic() + _REMOVAL_TIMEOUT_S
        while bridge.exit_code() is None:
            if time.monotonic() > deadline_s:
                bridge.kill()
                break
            await asyncio.sleep(_POLL_S)
        bridge.close()


def _is_ready(bridge: BridgeProcess) -> bool:
    """Raises KernelNotStarted with the reason that the bridge gives."""
    ended = bridge.exit_code()
    for event in bridge.read_events():
        if event["event"] == bridge_protocol.READY:
            return True
        if event["event"] == bridge_protocol.FAILED:
            raise (AddressInUse if event["code"] == bridge_protocol.ADDRESS_IN_USE else KernelNotStarted)(
                event["reason"]
            )
    if ended is not None:
        raise KernelNotStarted("Cellblock's bridge to the kernel has ended: its standard error says why.")
    return False
