"""PID 1 of a kernel's container: starts the kernel, relays its messages, tells each run's end, survives its crashes.

This module holds the kernel's life cycle and ties the parts together; outstanding.py knows what is running. It is
started as `python -I -m kernel_image` with its settings in the environment, or forked of a template (template.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import zmq

from kernel_image import (
    accounting,
    foreign_kernels,
    hardening,
    kernel_process,
    leftovers,
    output_ring,
    parity,
    protocol,
)
from kernel_image.artifacts import WorkingDirectory
from kernel_image.channels import KernelChannels
from kernel_image.client_ids import ClientIds
from kernel_image.endpoints import unix_endpoints
from kernel_image.files import SessionFiles
from kernel_image.forwarded import Forwarded
from kernel_image.kernel_messages import msg_id_of, silent_execution
from kernel_image.outside_forks import RING_NAME, OutsideForks, has_ended, prefix_of
from kernel_image.outstanding import OutstandingRequests
from kernel_image.prepared_kernel import PreparedKernel
from kernel_image.relay import Relay
from kernel_image.sandbox_log import describe, log_event, log_loop_exception, never_wait, write_nothing
from kernel_image.warm_up import KernelWarmUp

_LARGEST_FIRST_GENERATION = 1 << 30
_START_TIMEOUT_S = 60.0
_START_ATTEMPTS = 3
_LEAVE_S = 2.0
_DRAIN_S = 10.0
_DRAIN_PAUSE_S = 0.004
_DRAIN_QUIET_ROUNDS = 3


class Supervisor:
    """The kernel processes of one container, one after the other.

    Its state: the current kernel process and its channels, whether it is ready, whether it accepts requests (none once
    it is known that it will end), and why it is being killed.
    """

    def __init__(
        self,
        settings: protocol.SupervisorSettings,
        likeness: parity.Likeness,
        fork_server: kernel_process.ForkedServer | None = None,
    ) -> None:
        """`likeness` is this process's own, as it was before any hardening. It may have a `fork_server` already."""
        self._settings = settings
        self._meter = accounting.find_meter(own_container=os.getpid() == 1)
        self._relay = Relay(settings, self)
        work = WorkingDirectory(settings.work_dir, settings.scan_entries)
        self._requests = OutstandingRequests(settings, self._relay, self._meter, work, self._ask_kernel)
        self._client_ids = ClientIds()
        self._forwarded = Forwarded()
        self._files = SessionFiles(work, self._relay.send_unnumbered)
        self._reaper = kernel_process.Reaper()
        self._environment = kernel_process.environment_of(settings.home_dir, settings.threads)
        self._fork_server = kernel_process.ForkServer(
            settings.preload, self._environment, settings.work_dir, fork_server
        )
        self._outside_forks = OutsideForks(
            self._relay.put_control,
            likeness,
            is_wanted=settings.zygote and settings.kernel_name in kernel_process.FORKED_KERNELS,
            oom_score_adjustment=hardening.OOM_SCORE_ADJUSTMENT,
        )
        self._zmq = zmq.Context[Any]()
        self._started = 0
        # Each boot counts from another number: a gateway must not mistake this one's kernels for those of the last.
        self._first_generation = secrets.randbelow(_LARGEST_FIRST_GENERATION)
        self._next_fork: asyncio.Task[int] | None = None
        self._pid: int | None = None
        self._channels: KernelChannels | None = None
        self._warm_up: KernelWarmUp | None = None
        self._spec: foreign_kernels.Kernelspec | None = None
        self._prepared: PreparedKernel | None = None
        self._is_ready = False
        self._accepts_requests = False
        self._ring_path = Path(settings.ipc_dir, RING_NAME)
        self._sent_bytes: dict[str, int] = {}
        self._state = "starting"
        self._start_failure = ""
        self._kill_cause: str | None = None
        self._oom_kills_before = 0
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _generation(self) -> int:
        """Which kernel process this is, or was."""
        return self._first_generation + self._started

    async def run(self) -> None:
        """Run until told to shut down, signalled, or left without a gateway for too long."""
        asyncio.get_running_loop().set_exception_handler(log_loop_exception)
        self._handle_signals()
        self._reaper.start()
        self._spawn(self._keep_kernel())
        relay = asyncio.ensure_future(self._relay.run())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({relay, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (relay, stopping, *self._tasks):
                task.cancel()
            self._forget_next_fork()
            self._fork_server.stop()
            kernel_process.kill_all_but()
            self._close_channels()
            self._zmq.destroy(linger=0)
            log_event("supervisor_ended")

    def _handle_signals(self) -> None:
        """End on SIGTERM and SIGINT, but never as PID 1: there they come from the user's code.

        Without a handler the system keeps them from PID 1, see pid_namespaces(7). The engine ends it by SIGKILL.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            if os.getpid() == 1:
                signal.signal(number, signal.SIG_DFL)
            else:
                asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)

    # --- calls from the relay -----------------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """The fields of `hello` that tell of the kernel."""
        return {
            "state": self._state,
            "generation": self._generation,
            "outstanding": self._requests.msg_ids,
            "finished": list(self._requests.finished),
            "forwarded": self._forwarded.last,
            "question": self._forwarded.question,
            "failed_preloads": self._failed_preloads(),
            "limits": accounting.applied_limits(),
        }

    def on_message(self, channel: str, parts: list[bytes]) -> None:
        """Pass a request on to the kernel, once."""
        if channel == protocol.FILE_CHANNEL:
            self._files.on_piece(parts)
            return
        wanted = self._forwarded.note(channel, parts)
        if wanted is None:
            log_event("answer_not_wanted")
            return
        parts = wanted
        if channel == "shell":
            self._reaper.reap()  # a kernel that ended a moment ago accepts nothing either
            accepting = self._generation if self._accepts_requests else None
            if self._requests.accept(parts, accepting) and self._channels is not None:
                try:
                    self._send_to_kernel(self._channels, channel, parts)
                except Exception as error:  # noqa: BLE001 - it is known now, and the gateway waits for its end
                    log_event("request_failed", error)
                    self._requests.fail(msg_id_of(parts), describe(error))
                self._requests.measure()
        elif channel in ("control", "stdin") and self._is_ready and self._channels is not None:
            self._send_to_kernel(self._channels, channel, parts)

    def _send_to_kernel(self, channels: KernelChannels, channel: str, parts: list[bytes]) -> None:
        translated = self._client_ids.to_kernel(channel, parts)
        with self._prepared.around(channel, translated) if self._prepared is not None else contextlib.nullcontext():
            channels.send(channel, translated)

    def on_control(self, op: str, fields: dict[str, Any]) -> None:
        """Handle a control message about the kernel's life, or about files."""
        match op:
            case protocol.INTERRUPT:
                self._interrupt(fields.get("msg_id"), float(fields["grace_s"]))
            case protocol.RESTART:
                self._kill("restart")
            case protocol.STOP_FILES:
                self._requests.stop_files(fields.get("msg_id"))
            case protocol.FORKED:
                self._outside_forks.on_forked(fields)
            case protocol.SHUTDOWN:
                log_event("shutdown_requested")
                self._stopping.set()
            case _ if op.startswith("file_"):
                self._files.on_control(op, fields)

    def on_dropped(self, frame: str | bytes, why: str) -> None:
        """Tell the gateway, whose run must not wait for its end."""
        msg_id = None
        if isinstance(frame, bytes):
            with contextlib.suppress(protocol.FrameError):
                msg_id = msg_id_of(protocol.decode_message(frame)[1])
        self._requests.fail(msg_id, why)

    def on_disconnected(self) -> None:
        """Close the files that the gateway had open."""
        self._files.close_all()

    # --- the kernel's life --------------------------------------------------------------------------------------------

    async def _keep_kernel(self) -> None:
        """Start a kernel, wait for its end, report it, and start the next one; give up when none comes up."""
        failures = 0
        while failures < _START_ATTEMPTS:
            self._set_state("starting")
            try:
                ended = await self._start_process()
            except Exception as error:  # noqa: BLE001 - the gateway is told in the end, whatever it is
                failures += 1
                self._close_channels()
                self._start_failure = str(error)
                log_event("kernel_start_failed", error)
                continue
            if await self._becomes_ready(ended):
                failures = 0
                self._sent_bytes.update(output_ring.written_bytes(self._ring_path))
                if self._prepared is not None:
                    self._prepared.pipes.publish_from_now()
                # A restart may have been asked for while the last of this was awaited.
                self._is_ready, self._accepts_requests = True, self._kill_cause is None and not ended.done()
                if self._accepts_requests:
                    log_event("kernel_ready", generation=self._generation)
                    self._set_state("idle")
            else:
                failures += 1
                self._start_failure = "it does not answer"
                log_event("kernel_did_not_answer", pid=self._pid)
                self._kill("start")
            await self._handle_death(await ended, is_last=failures >= _START_ATTEMPTS)
        log_event("kernel_given_up", attempts=failures)
        self._set_state("dead")

    async def _start_process(self) -> asyncio.Future[kernel_process.Exit]:
        """Start a kernel process and connect to its channels; returns the future of its end."""
        settings = self._settings
        self._begin_fork()
        self._started += 1
        leftovers.empty(Path(settings.ipc_dir))
        output_ring.create(self._ring_path)
        self._sent_bytes.clear()
        self._kill_cause = None
        self._oom_kills_before = self._meter.read().oom_kills
        for directory in (settings.work_dir, settings.home_dir):  # which the code may have removed or locked
            leftovers.make_usable(Path(directory))
        self._pid = await self._take_fork()
        if self._pid is None:
            self._reaper.forget_recent()
            prefix = Path(settings.ipc_dir, f"k{self._started}")
            if settings.kernel_name in kernel_process.FORKED_KERNELS:
                self._pid = await self._fork_server.fork(self._connect(prefix), self._ring_path)
            else:
                self._pid = self._spawn_kernel(prefix)
        ended: asyncio.Future[kernel_process.Exit] = asyncio.get_running_loop().create_future()

        def handle_end(end: kernel_process.Exit) -> None:
            self._stop_accepting()
            if not ended.done():
                ended.set_result(end)

        log_event("kernel_started", pid=self._pid, generation=self._generation)
        self._reaper.watch(self._pid, handle_end)
        return ended

    def _spawn_kernel(self, prefix: Path) -> int:
        """Start a kernel that is not ours; returns its process id."""
        if self._spec is None:
            self._spec = foreign_kernels.find_kernelspec(self._settings.kernel_name)
        spec = self._spec
        connection_file = self._connect(prefix)
        pipes = None
        if spec.functions:
            publish, max_bytes = self._requests.publish, self._settings.max_message_bytes
            self._prepared = PreparedKernel(spec.functions, self._execute_silently, publish, max_bytes)
            pipes = self._prepared.pipes
        return foreign_kernels.spawn_kernel(spec, connection_file, self._environment, self._settings.work_dir, pipes)

    def _connect(self, prefix: Path) -> Path:
        """Make the channels to a kernel; returns the file that tells it where they are."""
        endpoints = self._spec.endpoints(prefix) if self._spec is not None else unix_endpoints(prefix)
        name = self._settings.kernel_name
        self._channels = KernelChannels(self._zmq, endpoints, name, self._on_kernel_message)
        self._warm_up = KernelWarmUp(name, self._channels, self._spec.set_up if self._spec is not None else "")
        connection_file = prefix.with_suffix(".json")
        unfinished = prefix.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        with unfinished.open("x") as file:  # never into a pipe or a link that the last kernel has left there
            json.dump(self._channels.connection_info(), file)
        unfinished.rename(connection_file)
        return connection_file

    def _begin_fork(self) -> None:
        """Ask for the next kernel, which waits for its connection file, unless that is done. No code may run here."""
        if self._next_fork is None and self._outside_forks.is_wanted:
            self._reaper.reap()  # what was killed a moment ago; its process ids are free from here on
            self._reaper.forget_recent()
            self._next_fork = asyncio.ensure_future(self._outside_forks.fork(self._started + 1))

    def _forget_next_fork(self) -> None:
        if self._next_fork is not None:
            self._next_fork.cancel()

    async def _take_fork(self) -> int | None:
        """Let the kernel run that was asked for outside; None when the fork server has to fork one."""
        if self._next_fork is None:
            return None
        forking, self._next_fork = self._next_fork, None
        try:
            pid = await forking
            if has_ended(pid):  # the clean-up has taken longer than a kernel waits
                pid = await self._outside_forks.fork(self._started)
        except OSError as error:
            log_event("fork_outside_failed", error)
            # One that has come all the same waits for its connection file, and gets none.
            kernel_process.kill_all_but(self._fork_server.pid)
            return None
        # A gateway that has been started anew may have had another forked, for which nobody asks.
        kernel_process.kill_all_but(pid, self._fork_server.pid)
        self._connect(prefix_of(self._settings.ipc_dir, pid))
        return pid

    async def _becomes_ready(self, ended: asyncio.Future[kernel_process.Exit]) -> bool:
        """Whether the warm-up succeeds before the kernel ends or takes too long."""
        assert self._warm_up is not None  # noqa: S101 - set by _start_process
        warm_up = asyncio.ensure_future(self._warm_up.run())
        either: set[asyncio.Future[Any]] = {warm_up, ended}
        done, _ = await asyncio.wait(either, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        warm_up.cancel()
        return warm_up in done and warm_up.exception() is None and ended not in done

    def _set_state(self, state: str) -> None:
        self._state = state
        self._relay.put_control(
            protocol.STATE,
            state=state,
            generation=self._generation,
            pid=self._pid,
            failed_preloads=self._failed_preloads(),
            **({"reason": self._start_failure} if state == "dead" else {}),
        )

    def _failed_preloads(self) -> dict[str, str]:
        return self._outside_forks.failed_preloads or self._fork_server.failed_preloads

    def _stop_accepting(self) -> None:
        """This kernel process is about to end, or has: send the state before the first request is rejected for it."""
        if self._accepts_requests:
            self._accepts_requests = False
            self._set_state("starting")

    def _on_kernel_message(self, channel: str, parts: list[bytes]) -> None:
        """Pass on a kernel's message, unless it belongs to the warm-up, and expect the kernel's end when it says so."""
        if not self._is_ready:
            if self._warm_up is not None:
                self._warm_up.on_message(channel, parts)
            return
        for message in [parts] if self._prepared is None else self._prepared.received(channel, parts):
            self._relay_kernel_message(channel, message)

    def _relay_kernel_message(self, channel: str, parts: list[bytes]) -> None:
        self._forwarded.note_question(channel, parts)
        translated = self._client_ids.from_kernel(parts)
        self._client_ids.note_answered(channel, parts)
        if self._requests.relay(channel, translated, self._sent_bytes) and self._accepts_requests:
            self._stop_accepting()
            self._spawn(self._kill_unless_ended(self._generation))

    async def _kill_unless_ended(self, generation: int) -> None:
        await asyncio.sleep(_LEAVE_S)
        if generation == self._generation:
            self._kill("exited")

    def _execute_silently(self, code: str) -> str:
        assert self._channels is not None  # noqa: S101 - asked for by what has come over them
        return self._channels.request("shell", "execute_request", silent_execution(code))

    def _ask_kernel(self) -> str | None:
        """Ask the kernel something that it answers when it has done what it was asked before; returns the msg_id."""
        return self._channels.request("shell", "kernel_info_request", {}) if self._channels is not None else None

    def _interrupt(self, msg_id: str | None, grace_s: float) -> None:
        if self._pid is None or (msg_id is not None and msg_id not in self._requests):
            return
        pid, awaited = self._pid, msg_id or self._requests.running

        def interrupt() -> None:
            if self._pid == pid:
                self._interrupt_now(pid)

        if awaited is None:
            interrupt()
        else:
            self._requests.once_begun(awaited, interrupt)
        if msg_id is not None:
            self._spawn(self._kill_unless_finished(msg_id, grace_s))

    def _interrupt_now(self, pid: int) -> None:
        if self._spec is not None and self._spec.interrupts_by_message and self._channels is not None:
            self._channels.request("control", "interrupt_request", {})
            if self._prepared is not None:
                self._prepared.note_interrupt()
        else:
            kernel_process.interrupt(pid)

    async def _kill_unless_finished(self, msg_id: str, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        if msg_id in self._requests:
            self._kill("interrupt_ignored")

    def _kill(self, cause: str) -> None:
        if self._pid is not None and self._kill_cause is None:
            self._kill_cause = cause
            self._stop_accepting()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    async def _handle_death(self, end: kernel_process.Exit, *, is_last: bool) -> None:
        """Relay the output that the dead kernel left, clean up after it, and report its death.

        The next one is forked meanwhile, unless this `is_last`.
        """
        self._pid = None
        self._stop_accepting()
        # First of all: processes that are left could write to the sockets, or truncate the ring while it is read.
        if not kernel_process.kill_all_but(self._fork_server.pid):
            log_event("processes_not_killed", consequence="the supervisor ends, and they with it")
            self._stopping.set()
            is_last = True
        elif os.getpid() == 1:
            leftovers.remove_shared_objects()
        oom = end.signal == signal.SIGKILL and self._meter.read().oom_kills > self._oom_kills_before
        if not is_last:
            # It must not find a connection file, which the code may have laid there for it.
            leftovers.empty(self._ring_path.parent, spared=self._ring_path.name)
            self._begin_fork()
        if self._channels is not None:
            await self._drain(self._channels)
        self._close_channels()
        self._client_ids.clear()
        self._forwarded.kernel_ended()
        self._is_ready = False
        cause = "oom" if oom else self._kill_cause or ("signal" if end.signal else "exited")
        log_event(
            "kernel_died",
            generation=self._generation,
            cause=cause,
            exit_code=end.exit_code,
            signal=end.signal,
            msg_id=self._requests.running,
        )
        self._requests.put_lost_output(output_ring.unsent_output(self._ring_path, self._sent_bytes))
        await self._requests.fail_all(cause, exit_code=end.exit_code, signal_number=end.signal)

    def _close_channels(self) -> None:
        if self._channels is not None:
            self._channels.close()
            self._channels = None
        if self._prepared is not None:
            self._prepared.pipes.close()
            self._prepared = None

    async def _drain(self, channels: KernelChannels) -> None:
        """Receive what the dead kernel had sent and nobody has read yet."""
        quiet_rounds = 0
        deadline_s = time.monotonic() + _DRAIN_S  # processes that could not be killed may go on writing
        while quiet_rounds < _DRAIN_QUIET_ROUNDS and time.monotonic() < deadline_s:
            quiet_rounds = 0 if channels.drain() else quiet_rounds + 1
            await asyncio.sleep(_DRAIN_PAUSE_S)
        if self._prepared is not None:
            self._prepared.pipes.read_written()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End the supervisor when a task fails: that is a bug, and the gateway must not wait for a sandbox in limbo."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_event("supervisor_failed", error)
            self._stopping.set()


def supervise(settings: protocol.SupervisorSettings, fork_server: kernel_process.ForkedServer | None = None) -> None:
    """Harden this process, and supervise until told to end."""
    likeness = parity.likeness("self", environment=dict(os.environ))
    hardening.forbid_tracing()
    hardening.adopt_orphans()
    os.umask(0o077)
    never_wait()
    if not settings.log:
        write_nothing()
    log_event("supervisor_started", kernel_id=settings.kernel_id, kernel_name=settings.kernel_name)
    asyncio.run(Supervisor(settings, likeness, fork_server).run())


def main() -> None:
    """Read the settings, and supervise."""
    supervise(protocol.SupervisorSettings.from_json(hardening.pop_secret(protocol.SETTINGS_VARIABLE)))
