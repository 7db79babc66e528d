"""PID 1 of a kernel's container: starts the kernel, relays its messages, tells each run's end, survives its crashes.

This module ties the parts together and holds the kernel's life cycle; outstanding.py knows what is running. It is
started as `python -I -m kernel_image.supervisor` with its settings in the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import zmq

from kernel_image import accounting, hardening, kernel_process, protocol, tail
from kernel_image.channels import KernelChannels
from kernel_image.outstanding import OutstandingRequests
from kernel_image.relay import Relay

_NUDGE_S = 0.2
_START_TIMEOUT_S = 60.0
_START_ATTEMPTS = 3
_WARM_UP_CODE = {kernel_process.FORKED_KERNEL: "print()"}
_WARM_UPS = 3
"""Run silently, its output dropped, before a kernel counts as ready: what is done the first times takes longer."""

_DRAIN_PAUSE_S = 0.004
_DRAIN_QUIET_ROUNDS = 3
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")


class Supervisor:
    """One kernel's life. Its state: the kernel process of the moment with its channels, and why it is being killed."""

    def __init__(self, settings: protocol.SupervisorSettings) -> None:
        self._settings = settings
        self._meter = accounting.find_meter(own_container=os.getpid() == 1)
        self._relay = Relay(settings, self)
        self._requests = OutstandingRequests(settings, self._relay, self._meter)
        self._reaper = kernel_process.Reaper()
        self._environment = _kernel_environment(settings)
        self._fork_server = kernel_process.ForkServer(settings.preload, self._environment, settings.work_dir)
        self._zmq = zmq.Context[Any]()
        self._generation = 0
        self._pid: int | None = None
        self._channels: KernelChannels | None = None
        self._tail_path = Path(settings.ipc_dir, "tail")
        self._tail_sent: dict[str, int] = {}
        self._state = "starting"
        self._kill_cause: str | None = None
        self._oom_kills_before = 0
        self._heard: set[str] = set()
        self._news = asyncio.Event()
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Live until told to shut down, signalled, or left without a gateway for too long."""
        self._heed_signals()
        self._reaper.start()
        self._spawn(self._keep_kernel())
        relay = asyncio.ensure_future(self._relay.run())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({relay, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (relay, stopping, *self._tasks):
                task.cancel()
            self._fork_server.stop()
            kernel_process.kill_all_but(None)
            self._close_channels()
            self._zmq.destroy(linger=0)

    def _heed_signals(self) -> None:
        """End on SIGTERM and SIGINT, but never as PID 1: there they come from the user's code.

        Without a handler the system keeps them from PID 1, see pid_namespaces(7). The engine ends it by SIGKILL.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            if os.getpid() == 1:
                signal.signal(number, signal.SIG_DFL)
            else:
                asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)

    # --- what the relay asks and tells --------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """What a gateway needs to know of the kernel when the connection begins."""
        return {
            "state": self._state,
            "running": self._requests.running,
            "finished": list(self._requests.finished),
            "failed_preloads": self._fork_server.failed_preloads,
            "limits": accounting.applied_limits(),
        }

    def on_message(self, channel: str, parts: list[bytes]) -> None:
        """Pass a request on to the kernel, once."""
        if channel not in ("shell", "control", "stdin") or self._channels is None or not self._ready.is_set():
            return
        if channel != "shell" or self._requests.accept(parts):
            self._channels.send(channel, parts)
            self._requests.measure()

    def on_control(self, op: str, fields: dict[str, Any]) -> None:
        """Do what the gateway says about the kernel's life."""
        match op:
            case protocol.INTERRUPT:
                self._interrupt(fields.get("msg_id"), float(fields["grace_s"]))
            case protocol.RESTART:
                self._kill("restart")
            case protocol.SHUTDOWN:
                self._stopping.set()

    # --- the kernel's life --------------------------------------------------------------------------------------------

    async def _keep_kernel(self) -> None:
        """Start a kernel, wait for its end, tell it, and start the next one; give up when none comes up."""
        failures = 0
        while failures < _START_ATTEMPTS:
            self._set_state("starting")
            try:
                ended = await self._start_process()
            except Exception as error:  # noqa: BLE001 - whatever stops a kernel from starting, the gateway hears of it
                failures += 1
                self._close_channels()
                _say(f"the kernel did not start: {type(error).__name__}: {error}")
                continue
            if await self._becomes_ready(ended):
                failures = 0
                self._tail_sent.update(tail.written_bytes(self._tail_path))
                self._ready.set()
                self._set_state("idle")
            else:
                failures += 1
                _say("the kernel did not answer")
                self._kill("start")
            await self._bury(await ended)
        self._set_state("dead")

    async def _start_process(self) -> asyncio.Future[kernel_process.Exit]:
        """Start a kernel process and connect to its channels; returns the future of its end."""
        settings = self._settings
        self._generation += 1
        prefix = Path(settings.ipc_dir, f"k{self._generation}")
        connection_file = prefix.with_suffix(".json")
        self._reaper.forget_recent()
        tail.create(self._tail_path)
        self._tail_sent.clear()
        self._heard.clear()
        self._kill_cause = None
        self._oom_kills_before = self._meter.read().oom_kills
        os.makedirs(settings.work_dir, exist_ok=True)  # noqa: PTH103 - the user may have removed it
        self._channels = KernelChannels(self._zmq, prefix, self._on_kernel_message)
        connection_file.unlink(missing_ok=True)
        with connection_file.open("x") as file:  # never into a pipe or a link that the last kernel has left there
            json.dump(self._channels.connection_info(), file)
        if settings.kernel_name == kernel_process.FORKED_KERNEL:
            self._pid = await self._fork_server.fork(connection_file, self._tail_path)
        else:
            self._pid = kernel_process.spawn_kernel(
                settings.kernel_name, connection_file, self._environment, settings.work_dir
            )
        ended: asyncio.Future[kernel_process.Exit] = asyncio.get_running_loop().create_future()
        self._reaper.watch(self._pid, lambda end: None if ended.done() else ended.set_result(end))
        return ended

    async def _becomes_ready(self, ended: asyncio.Future[kernel_process.Exit]) -> bool:
        """Whether the kernel answers, and its output arrives, before it ends or takes too long."""
        nudge = asyncio.ensure_future(self._nudge())
        either: set[asyncio.Future[Any]] = {nudge, ended}
        done, _ = await asyncio.wait(either, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        nudge.cancel()
        return nudge in done and nudge.exception() is None and ended not in done

    async def _nudge(self) -> None:
        """Ask until both the answer and a message on iopub have come; then have the kernel do everything once.

        iopub drops what is published before a subscription has arrived, and not every kernel sends `iopub_welcome`.
        """
        assert self._channels is not None  # noqa: S101 - set by _start_process
        while not {"kernel_info_reply", "iopub"} <= self._heard:
            self._channels.request("shell", "kernel_info_request", {})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wait_until_heard({"kernel_info_reply", "iopub"}), _NUDGE_S)
        code = _WARM_UP_CODE.get(self._settings.kernel_name, "")
        content = {"code": code, "silent": True, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        for _ in range(_WARM_UPS):
            warm_up = self._channels.request("shell", "execute_request", content)
            await self._wait_until_heard({f"reply to {warm_up}", f"idle after {warm_up}"})

    async def _wait_until_heard(self, wanted: set[str]) -> None:
        while not wanted <= self._heard:
            self._news.clear()
            await self._news.wait()

    def _set_state(self, state: str) -> None:
        self._state = state
        failed_preloads = self._fork_server.failed_preloads
        self._relay.put_control(protocol.STATE, state=state, pid=self._pid, failed_preloads=failed_preloads)

    def _on_kernel_message(self, channel: str, parts: list[bytes]) -> None:
        """Pass a kernel's message on, and see whether it ends a request."""
        if not self._ready.is_set():
            self._hear(channel, parts)
            return
        self._requests.relay(channel, parts, self._tail_sent)

    def _hear(self, channel: str, parts: list[bytes]) -> None:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            msg_type = json.loads(parts[0])["msg_type"]
            self._heard.add("iopub" if channel == "iopub" else str(msg_type))
            if msg_type == "execute_reply":
                self._heard.add(f"reply to {json.loads(parts[1])['msg_id']}")
            if msg_type == "status":
                self._heard.add(f"{json.loads(parts[3])['execution_state']} after {json.loads(parts[1])['msg_id']}")
            self._news.set()

    def _interrupt(self, msg_id: str | None, grace_s: float) -> None:
        if self._pid is None or (msg_id is not None and msg_id not in self._requests):
            return
        kernel_process.interrupt(self._pid)
        if msg_id is not None:
            self._spawn(self._kill_unless_finished(msg_id, grace_s))

    async def _kill_unless_finished(self, msg_id: str, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        if msg_id in self._requests:
            self._kill("interrupt_ignored")

    def _kill(self, cause: str) -> None:
        if self._pid is not None and self._kill_cause is None:
            self._kill_cause = cause
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    async def _bury(self, end: kernel_process.Exit) -> None:
        """Save what the dead kernel had still to say, clear up after it, and tell its death."""
        self._pid = None
        if self._channels is not None:
            await self._drain(self._channels)
        self._close_channels()
        self._ready.clear()
        oom = end.signal == signal.SIGKILL and self._meter.read().oom_kills > self._oom_kills_before
        cause = "oom" if oom else self._kill_cause or ("signal" if end.signal else "exited")
        if not kernel_process.kill_all_but(self._fork_server.pid):
            _say("something in here cannot be killed; ending with everything that is left")
            self._stopping.set()
        # Not before: whoever can still cut the file short could end this process while it reads.
        self._requests.put_lost_output(self._lost_output())
        await self._requests.fail_all(cause, exit_code=end.exit_code, signal_number=end.signal)

    def _close_channels(self) -> None:
        if self._channels is not None:
            self._channels.close()
            self._channels = None

    async def _drain(self, channels: KernelChannels) -> None:
        """Take everything out of the dead kernel's sockets: what it had written is in there."""
        quiet_rounds = 0
        while quiet_rounds < _DRAIN_QUIET_ROUNDS:
            quiet_rounds = 0 if channels.drain() else quiet_rounds + 1
            await asyncio.sleep(_DRAIN_PAUSE_S)

    def _lost_output(self) -> dict[str, tuple[str, int]]:
        """Per stream what was written but never sent, and how many bytes of it are gone for good."""
        lost = {}
        for stream in tail.STREAMS:
            try:
                ring = tail.Tail(self._tail_path, stream)
            except (OSError, ValueError):
                continue
            data, gone_bytes = ring.after(self._tail_sent.get(stream, 0))
            ring.close()
            if data:
                lost[stream] = (data.decode("utf-8", "replace"), gone_bytes)
        return lost

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that fails is a bug; the gateway rather hears that this sandbox is gone than nothing more of it."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _say(f"the supervisor failed: {type(error).__name__}: {error}")
            self._stopping.set()


def _say(text: str) -> None:
    """Tell whoever looks at the container's own log; the gateway is told by control messages."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - PID 1 has no other log


def _kernel_environment(settings: protocol.SupervisorSettings) -> dict[str, str]:
    """What kernels see: the container's own environment (the settings are scrubbed by now) and writable directories."""
    home = Path(settings.home_dir)
    mpl_config = home / ".config" / "matplotlib"
    mpl_config.mkdir(parents=True, exist_ok=True)
    if cache := os.environ.get("CELLBLOCK_MPL_CACHE"):
        shutil.copytree(cache, mpl_config, dirs_exist_ok=True)
    environment = {
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **os.environ,
        "HOME": str(home),
        "MPLCONFIGDIR": str(mpl_config),
        "IPYTHONDIR": str(home / ".ipython"),
        **{variable: str(settings.threads) for variable in _THREAD_VARIABLES},
    }
    for variable in ("JPY_PARENT_PID", "CELLBLOCK_MPL_CACHE", protocol.SETTINGS_VARIABLE):
        environment.pop(variable, None)
    return environment


def main() -> None:
    """Take the settings, harden, and supervise."""
    settings = protocol.SupervisorSettings.from_json(hardening.take_secret(protocol.SETTINGS_VARIABLE))
    hardening.forbid_tracing()
    hardening.adopt_orphans()
    os.umask(0o077)
    asyncio.run(Supervisor(settings).run())


if __name__ == "__main__":
    main()
