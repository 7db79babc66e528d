"""The zygote's container, and asking it for kernels. kernel_image/zygote.py is what runs in there.

It is started before the first sandbox, asked now and then whether it still answers, and replaced when it does not. One
that has been up is replaced for as long as it takes. Where it cannot be, sandboxes fork their own kernels, and
`why_not` says why.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker.errors
import structlog
from docker.api.client import APIClient

from kernel_image.protocol import SOCKET_NAME, UNIX_PATH_MAX_BYTES
from sessions.errors import EngineUnavailable
from sessions.ports import ForkedKernel, LaunchSpec, ZygoteFigures
from sessions.provisioners.docker.engine import DockerEngine, EngineFacts
from sessions.provisioners.docker.zygote_container import ZYGOTE_LABEL, zygote_config
from sessions.settings import EngineSettings

_START_TIMEOUT_S = 60.0
_START_PAUSE_S = 0.02
_ANSWER_TIMEOUT_S = 8.0
_LOOK_PAUSE_S = 20.0
_RETRY_PAUSE_S = 1.0
_LONGEST_RETRY_PAUSE_S = 64.0
_MOST_DOUBLINGS = 6
_MOST_FAILURES = 3
_MAX_ANSWER_BYTES = 64 << 10
_NOT_REMOVED = "The Docker engine could not remove the zygote."

log = structlog.get_logger()


class DockerZygote:
    """One gateway's zygote.

    The state: the launch or the watch that is under way, how many starts have failed in succession and why, how many
    forks as long as none has worked, and `why_not`, a sentence: set for as long as there will be none. Also how many
    forks there were, and how many failed.
    """

    def __init__(
        self, engine: DockerEngine, settings: EngineSettings, directory: Path, host_directory: Path | None = None
    ) -> None:
        """`directory` is made for its socket, and only this process's user can enter it.

        `host_directory` is what the engine calls it, if that is another path.
        """
        self._engine = engine
        self._settings = settings
        self._directory = directory
        self._host_directory = host_directory or directory
        self._starting: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._failures = 0
        self._why_failed = ""
        self._failed_forks: int | None = 0
        self._is_trouble = False
        self._forks_counted = 0
        self._failures_counted = 0
        self._gateway_id = ""
        self._failed_preloads: Mapping[str, str] = {}
        self._suspected = asyncio.Event()
        self.is_up = False
        self.why_not = _unwanted(settings)

    async def ready(self, spec: LaunchSpec, facts: EngineFacts) -> bool:
        """Whether kernels can be forked into sandboxes such as that of `spec`. Waits for the first start."""
        if not self.why_not and not self.is_up:
            self.why_not = self._obstacle(facts)
        if not self.why_not and not self.is_up:
            if not self._has_watch():
                self._start_once(spec)
            if self._starting is not None and not self._failures:
                # Launches that waited each time for one that hangs would wait for minutes.
                await asyncio.shield(self._starting)
        return self.is_up and not self.why_not

    def _obstacle(self, facts: EngineFacts) -> str:
        if len(os.fsencode(self._directory / SOCKET_NAME)) > UNIX_PATH_MAX_BYTES:
            return "the path of `server.data_dir` is too long for its socket"
        return obstacle(self._settings, facts)

    async def fork(self, container_id: str, init: int, *, counts: bool = True) -> ForkedKernel:
        """Fork a kernel into a container that runs, and whose first process is `init`. Raises EngineUnavailable.

        A failure `counts` when a supervisor waits for the kernel: its container lives, and cannot be the reason.
        """
        if self.why_not or not self.is_up:
            raise EngineUnavailable(self.why_not or "The zygote is being replaced.")
        try:
            answer = await self._ask({"container": container_id, "init": init})
        except (OSError, ValueError) as error:
            self._suspected.set()
            self._failures_counted += 1
            log.warning("fork_failed", container_id=container_id, reason=repr(error))
            raise EngineUnavailable("The zygote does not answer.") from error
        if "pid" not in answer:
            self._failures_counted += 1
            log.warning("fork_failed", container_id=container_id, reason=answer.get("error"))
            if counts:
                self._note_failed_fork(str(answer.get("error")))
            raise EngineUnavailable(f"The zygote could not fork: {answer.get('error')}")
        self._failed_forks = None
        self._forks_counted += 1
        return ForkedKernel(int(answer["pid"]), self._failed_preloads)

    def _note_failed_fork(self, why: str) -> None:
        """Give up where it has never worked: this machine does not allow it. Later failures are the sandboxes' own."""
        if self._failed_forks is not None:
            self._failed_forks += 1
            if self._failed_forks >= _MOST_FAILURES:
                self.give_up(f"it cannot fork into sandboxes: {why}")

    def figures(self) -> ZygoteFigures | None:
        """How it is, and what it has done; None where it is unwanted, or this engine cannot have one."""
        if self.why_not and not self._is_trouble:
            return None
        return ZygoteFigures(self.is_up, self._forks_counted, self._failures_counted)

    def trouble(self) -> str:
        """Why there is none although there should be one; empty if all is well."""
        if self.why_not:
            return self.why_not if self._is_trouble else ""
        return self._why_failed if self._failures >= _MOST_FAILURES else ""

    def give_up(self, why: str) -> None:
        """Fork no more."""
        if not self.why_not:
            self.why_not, self._is_trouble, self.is_up = why, True, False
            log.error("zygote_given_up", reason=why, consequence="each sandbox forks its own kernels, more slowly")

    async def close(self) -> None:
        """End it, and start none any more."""
        self.why_not = self.why_not or "the gateway is stopping"
        for task in (self._watch, self._starting):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
        self.is_up = False
        await self._remove()

    async def _remove(self) -> None:
        if self._gateway_id:
            with suppress(EngineUnavailable):
                await self._engine.call(lambda client: _remove_all(client, self._gateway_id), refused=_NOT_REMOVED)

    def _start_once(self, spec: LaunchSpec) -> asyncio.Task[None]:
        """Start one, unless that is under way; the task ends when it is up or is known not to be."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.ensure_future(self._start(spec))
        return self._starting

    async def _start(self, spec: LaunchSpec) -> None:
        """Start one and wait until it answers; or note what keeps it from that."""
        self._gateway_id = spec.gateway_id
        config = zygote_config(spec, self._settings, self._host_directory, uid=os.getuid())
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            container_id = await self._launch(config)
            await self._wait_until_it_answers(container_id)
        except EngineUnavailable as error:
            log.warning("zygote_failed", reason=str(error))
            return
        except (docker.errors.APIError, OSError, ValueError, KeyError) as error:
            await self._remove()
            self._failures += 1
            self._why_failed = f"it does not start: {error}"
            log.warning("zygote_failed", attempt=self._failures, reason=str(error))
            if self._failures >= _MOST_FAILURES and not self._has_watch():
                self.give_up(self._why_failed)
            return
        self._failures = 0
        self.is_up = True
        log.info("zygote_up", container_id=container_id[:12])
        if not self._has_watch():
            self._watch = asyncio.ensure_future(self._keep(spec))

    def _has_watch(self) -> bool:
        """Whether one has been up: then it is replaced for as long as it takes, more and more seldom."""
        return self._watch is not None and not self._watch.done()

    async def _launch(self, config: Mapping[str, Any]) -> str:
        launching = asyncio.ensure_future(self._engine.call(lambda client: _launch(client, self._gateway_id, config)))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            # The thread cannot be stopped half-way: what it has made can be removed when it has ended.
            await asyncio.wait([launching])
            launching.exception()
            raise

    async def _wait_until_it_answers(self, container_id: str) -> None:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while True:
                with suppress(OSError, KeyError):  # it is not there yet, or was too slow to read what it was asked
                    self._failed_preloads = (await self._ask(None))["failed"]
                    return
                await asyncio.sleep(_START_PAUSE_S)
                if not await self._engine.call(lambda client: _is_running(client, container_id)):
                    raise OSError("its container has ended")

    async def _keep(self, spec: LaunchSpec) -> None:
        """Replace it when it has ended or does not answer."""
        while not self.why_not:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_PAUSE_S if self.is_up else _retry_pause_s(self._failures)):
                    await self._suspected.wait()
            self._suspected.clear()
            try:
                self._failed_preloads = (await self._ask(None))["failed"]
            except (OSError, ValueError, KeyError) as error:
                if self.is_up:
                    log.warning("zygote_lost", reason=repr(error))
                self.is_up = False
                if not self.why_not:
                    await asyncio.shield(self._start_once(spec))
            else:
                # It may have come up after the engine failed to say that it had started.
                self.is_up, self._failures = not self.why_not, 0
        await self._remove()

    async def _ask(self, request: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send a request on a connection of its own; returns the answer. Raises OSError or ValueError."""
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(self._directory / SOCKET_NAME, limit=_MAX_ANSWER_BYTES)
            try:
                writer.write((json.dumps(request) if request else "").encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
        if not line:
            raise ConnectionError("it has hung up")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("its answer is no object")  # noqa: TRY004 - of what came over a socket
        return answer


def _retry_pause_s(failures: int) -> float:
    """Seconds to wait before the next start: more after each that has failed in succession."""
    return min(_LONGEST_RETRY_PAUSE_S, _RETRY_PAUSE_S * (1 << min(failures, _MOST_DOUBLINGS)))


def obstacle(settings: EngineSettings, facts: EngineFacts) -> str:
    """Why there can be no zygote on this engine; empty when nothing is known that speaks against one. Pure."""
    if why := _unwanted(settings):
        return why
    if facts.maps_users:
        return "the engine maps user ids"
    if not facts.shares_host:
        return "the engine runs on another host"
    return ""


def _unwanted(settings: EngineSettings) -> str:
    """What the configuration says against one."""
    if settings.zygote == "off":
        return "`engine.zygote` is off"
    return f"the runtime is {settings.runtime}" if settings.runtime else ""


def _launch(client: APIClient, gateway_id: str, config: Mapping[str, Any]) -> str:
    """Remove what an earlier gateway has left, then create and start. Blocks. Raises APIError."""
    _remove_all(client, gateway_id)
    container_id = str(client.create_container_from_config(config)["Id"])  # type: ignore[no-untyped-call]
    try:
        client.start(container_id)
    except BaseException:
        with suppress(docker.errors.DockerException, OSError):
            client.remove_container(container_id, force=True)
        raise
    return container_id


def _is_running(client: APIClient, container_id: str) -> bool:
    try:
        return bool(client.inspect_container(container_id)["State"]["Running"])
    except docker.errors.NotFound:
        return False


def _remove_all(client: APIClient, gateway_id: str) -> None:
    for entry in client.containers(all=True, filters={"label": f"{ZYGOTE_LABEL}={gateway_id}"}):
        with suppress(docker.errors.APIError):
            client.remove_container(entry["Id"], force=True)
