"""The `docker` engine: one hardened container per kernel, which dials back into the gateway by itself.

container.py decides what a container looks like; this starts, lists and removes them. Never `exec` or `cp` into one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker.errors
from docker.api.client import APIClient

from kernel_image.kernel_process import FORKED_KERNELS
from sessions.errors import EngineUnavailable
from sessions.model import GatewayId, KernelId
from sessions.ports import Fate, ForkedKernel, LaunchSpec, ZygoteFigures
from sessions.provisioners.docker.container import GATEWAY_LABEL, KERNEL_LABEL, container_config, container_name
from sessions.provisioners.docker.engine import DockerEngine, EngineFacts, image_exists
from sessions.provisioners.docker.events import ContainerEvents
from sessions.provisioners.docker.host_paths import UNCHANGED, HostPaths
from sessions.provisioners.docker.readback import missing_limits
from sessions.provisioners.docker.zygote import DockerZygote
from sessions.settings import EngineSettings, Limits

_NOT_THERE = "The sandbox is gone."
_ERRORS = "The Docker engine answers with errors: run `cellblock doctor`."
_NAME_ATTEMPTS = 8
_EVENT_DELAY_S = 1.0
_REMOVAL_TIMEOUT_S = 20


@dataclass(slots=True)
class _Container:
    """What is known of a container: its first process, and the fork that was begun when that started."""

    id: str
    init: int | None = None
    first_fork: asyncio.Task[ForkedKernel] | None = None


class DockerProvisioner:
    """Launches, lists and kills this gateway's containers.

    `settings.kernel_image` must be a tag that the engine has. The mutable state is `_containers`, a shortcut from
    kernel to container that may be incomplete, and `_facts`, known once the engine has answered.
    """

    name = "docker"

    def __init__(
        self,
        gateway_id: GatewayId,
        settings: EngineSettings,
        engine: DockerEngine | None = None,
        *,
        randomness: random.Random | None = None,
        zygote_dir: Path | None = None,
        host_paths: HostPaths = UNCHANGED,
    ) -> None:
        """Without a `zygote_dir`, where its socket will be, kernels are forked where they run.

        `host_paths` say where the engine finds it, and the directories of sockets.
        """
        self._gateway_id = gateway_id
        self._settings = settings
        self._engine = engine or DockerEngine()
        self._events = ContainerEvents(self._engine.client, gateway_id)
        self._random = randomness or random.SystemRandom()
        self._containers: dict[KernelId, _Container] = {}
        self._facts: EngineFacts | None = None
        self._host_paths = host_paths
        self._zygote = (
            DockerZygote(self._engine, settings, zygote_dir, host_paths.of(zygote_dir))
            if zygote_dir is not None
            else None
        )

    async def launch(self, spec: LaunchSpec) -> None:
        """Create and start one container: two calls. Raises EngineUnavailable, and leaves nothing behind then.

        Its first kernel is forked while its supervisor starts.
        """
        if self._facts is None:
            self._facts = await self._engine.facts()
        uids = self._facts.uids
        self._events.start()
        is_forked = spec.kernel_name in FORKED_KERNELS
        zygote = is_forked and self._zygote is not None and await self._zygote.ready(spec, self._facts)
        launching = asyncio.ensure_future(self._engine.call(lambda client: self._launch(client, spec, uids, zygote)))
        try:
            container = self._containers[spec.kernel_id] = _Container(await asyncio.shield(launching))
        except asyncio.CancelledError:
            # The thread cannot be stopped half-way: let it end, then remove what it made.
            await asyncio.wait([launching])
            if launching.exception() is None:
                self._containers[spec.kernel_id] = _Container(launching.result())
                with suppress(EngineUnavailable):
                    await self.kill(spec.kernel_id)
            raise
        except docker.errors.ImageNotFound as error:
            raise EngineUnavailable(
                "The kernel image is not there: run `cellblock build`, then try again; nothing was run."
            ) from error
        except docker.errors.APIError as error:
            raise EngineUnavailable(
                "The Docker engine could not start a sandbox; nothing was run. The gateway's log has its words, "
                "and `cellblock doctor` looks for the cause."
            ) from error
        if zygote:
            container.first_fork = asyncio.ensure_future(self._fork_into(container, counts=False))
            container.first_fork.add_done_callback(lambda fork: fork.cancelled() or fork.exception())

    async def list(self) -> list[KernelId]:
        """This gateway's containers, by label: created, running and dead ones."""
        found = await self._containers_with()
        listed = {KernelId(entry["Labels"].get(KERNEL_LABEL, "")): str(entry["Id"]) for entry in found}
        for kernel_id, container_id in listed.items():
            self._containers.setdefault(kernel_id, _Container(container_id))
        return [*listed]

    async def kill(self, kernel_id: KernelId) -> None:
        """Remove the container by force and return when it is gone."""
        container = self._containers.pop(kernel_id, None)
        if container is not None:
            if container.first_fork is not None:
                container.first_fork.cancel()
            doomed = [container.id]
        else:
            doomed = [str(entry["Id"]) for entry in await self._containers_with(f"{KERNEL_LABEL}={kernel_id}")]
        for reference in doomed:
            await self._engine.call(
                lambda client, reference=reference: _remove(client, reference),  # type: ignore[misc]
                refused="The Docker engine could not remove a sandbox: see the gateway's log.",
            )

    async def fate(self, kernel_id: KernelId) -> Fate | None:
        """The exit code from Docker's `die` event; `oom` when Docker reported that memory ran out before it."""
        self._events.start()
        known = self._events.fate(kernel_id)
        if known is not None:
            return known
        found = await self._containers_with(f"{KERNEL_LABEL}={kernel_id}")
        if any(entry["State"] in ("created", "running", "paused") for entry in found):
            return None
        return await self._engine.call(lambda _client: self._events.fate(kernel_id, _EVENT_DELAY_S))

    async def fork(self, kernel_id: KernelId, number: int) -> ForkedKernel:
        """Have the zygote do it, unless it has done it already. Raises EngineUnavailable."""
        container = self._containers.get(kernel_id)
        if container is None:
            found = await self._containers_with(f"{KERNEL_LABEL}={kernel_id}")
            if not found:
                raise EngineUnavailable(_NOT_THERE)
            container = self._containers[kernel_id] = _Container(str(found[0]["Id"]))
        first, container.first_fork = container.first_fork, None
        if first is not None and number == 1:
            with suppress(EngineUnavailable):  # now that the supervisor is up, it may work
                return await first
        return await self._fork_into(container)

    async def _fork_into(self, container: _Container, *, counts: bool = True) -> ForkedKernel:
        if self._zygote is None:
            raise EngineUnavailable("There is no zygote.")
        if container.init is None:
            found = await self._engine.call(lambda client: client.inspect_container(container.id), refused=_NOT_THERE)
            container.init = int(found["State"]["Pid"]) or None
        if container.init is None:
            raise EngineUnavailable(_NOT_THERE)
        return await self._zygote.fork(container.id, container.init, counts=counts)

    def stop_forking(self, why: str) -> None:
        """Fork no more, for as long as this gateway runs."""
        if self._zygote is not None:
            self._zygote.give_up(why)

    def warnings(self) -> tuple[str, ...]:
        """Why there is no zygote, unless it is the operator's will or this engine's nature."""
        why = self._zygote.trouble() if self._zygote is not None else ""
        return (f"Sandboxes start more slowly than they could, since there is no zygote: {why}.",) if why else ()

    def zygote(self) -> ZygoteFigures | None:
        """None where the operator or the engine wants none."""
        return self._zygote.figures() if self._zygote is not None else None

    async def check(self) -> None:
        """One round trip: the engine answers and has the kernel image."""
        image = self._settings.kernel_image
        if not await self._engine.call(lambda client: image_exists(client, image), refused=_ERRORS):
            raise EngineUnavailable("The kernel image is not there: run `cellblock build`.")

    def missing_limits(self, seen: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
        """See readback.py."""
        return missing_limits(seen, limits)

    async def close(self) -> None:
        """End the zygote, the events thread and the engine's threads, in that order. Sandboxes are not touched."""
        forks = [one.first_fork for one in self._containers.values() if one.first_fork is not None]
        for fork in forks:
            fork.cancel()
        if forks:
            await asyncio.wait(forks)
        if self._zygote is not None:
            await self._zygote.close()
        await asyncio.to_thread(self._events.close)
        await self._engine.close()

    def _launch(self, client: APIClient, spec: LaunchSpec, uids: range, zygote: bool) -> str:  # noqa: FBT001
        """Create under a free name, start, and remove again if it does not start. Blocks. Raises APIError."""
        container_id = self._create(client, spec, uids, zygote=zygote)
        try:
            client.start(container_id)
        except BaseException:
            # Whatever went wrong is what the caller has to hear, not that the clean-up met it too.
            with suppress(docker.errors.DockerException, OSError):
                _remove(client, container_id)
            raise
        return container_id

    def _create(self, client: APIClient, spec: LaunchSpec, uids: range, *, zygote: bool) -> str:
        spec = replace(spec, socket_dir=self._host_paths.of(spec.socket_dir))
        for attempt in range(1, _NAME_ATTEMPTS + 1):
            uid = self._random.choice(uids)
            config = container_config(spec, self._settings, uid=uid, zygote=zygote)
            try:
                created = client.create_container_from_config(config, container_name(uid))  # type: ignore[no-untyped-call]
            except docker.errors.APIError as error:
                if error.status_code != 409 or attempt == _NAME_ATTEMPTS:  # noqa: PLR2004 - Conflict: the name is taken
                    raise
            else:
                return str(created["Id"])
        raise AssertionError("the last attempt returns or raises")

    async def _containers_with(self, *labels: str) -> Sequence[Mapping[str, Any]]:
        """This gateway's containers that have these labels too."""
        wanted = [f"{GATEWAY_LABEL}={self._gateway_id}", *labels]
        return await self._engine.call(
            lambda client: client.containers(all=True, filters={"label": wanted}), refused=_ERRORS
        )


def _remove(client: APIClient, container_id: str) -> None:
    """Kill and remove; a container that is gone, or that Docker is removing already, is as good. Blocks."""
    try:
        client.remove_container(container_id, force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        if error.status_code != 409:  # noqa: PLR2004 - Conflict: removal is in progress
            raise
        with suppress(docker.errors.NotFound):
            client.wait(container_id, timeout=_REMOVAL_TIMEOUT_S, condition="removed")
