"""A gateway without its HTTP face: a Service on real containers and a real PostgreSQL, shared by a module's tests.

Beside the tests there is a bystander: a session that has nothing to do with them. `settled` runs around every test:
afterwards the bystander is none the worse, the pool is full of fresh kernels that have answered, and nothing else is
there. The next test claims one of these kernels; after the last test the rig does.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from docker.api.client import APIClient
from engine_fixtures import docker_settings
from sqlalchemy import create_engine, text
from store_fixtures import execute, with_database

from gateway.host.clock import SystemClock
from gateway.store.postgres import PostgresStore
from gateway.supervisors import SupervisorSwitchboard
from sessions.environment import Environment
from sessions.kernels.pool_policy import PoolSettings
from sessions.model import ANONYMOUS, GatewayId, KernelId, Result, RunRequest, RunStatus, SessionId
from sessions.provisioners.docker.container import GATEWAY_LABEL
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.service import Service
from sessions.settings import Limits, SessionLimits
from sessions.wiring import Wiring

WARM = 2
MAX_CONTAINERS = 6
BYSTANDER = SessionId("bystander")
SETTLE_TIMEOUT_S = 90.0
READY_TIMEOUT_S = 180.0
"""Of a machine that may stand still for half a minute; a gateway's clients wait for /readyz in the same way."""

DESCRIPTOR_SLACK = 12
"""Docker's and PostgreSQL's client pools open connections when they need them; leaks add up beyond this."""

LIMITS = Limits(timeout_s=20.0, memory_bytes=512 << 20, disk_bytes=64 << 20)


@dataclass
class Rig:
    """The gateway of one module. `quiet_descriptors` is how many files are open when nothing runs; `bystander_runs` how
    often the bystander has been asked."""

    service: Service
    docker: APIClient
    database_url: str
    socket_root: Path
    gateway_id: GatewayId
    quiet_descriptors: int = 0
    quiet_tasks: int = 0
    bystander_runs: int = 0

    async def run(
        self,
        code: str,
        *,
        timeout_s: float = 20.0,
        variables: Mapping[str, Any] | None = None,
        session_id: SessionId | None = None,
    ) -> Result:
        """Run code as any caller would. What comes back is what was committed."""
        result = await self.service.run(RunRequest(ANONYMOUS, code, "python", variables or {}, timeout_s, session_id))
        assert await asyncio.to_thread(self.stored_status, result.run_id) == result.status
        return result

    async def ask_bystander(self) -> None:
        """The session that has nothing to do with the tests still works, and has its variables."""
        self.bystander_runs += 1
        code = "count = globals().get('count', 0) + 1\nprint(count)"
        result = await self.run(code, session_id=BYSTANDER)
        assert (result.status, result.output) == (RunStatus.OK, f"{self.bystander_runs}\n")

    def stored_status(self, run_id: str) -> str:
        """The run's status in the database; its events must be whole and end with it, once."""
        engine = create_engine(self.database_url)
        try:
            with engine.connect() as connection:
                status: str = connection.execute(
                    text("SELECT status FROM runs WHERE run_id = :id"), {"id": run_id}
                ).scalar_one()
                events = connection.execute(
                    text("SELECT seq, type FROM events WHERE run_id = :id ORDER BY seq"), {"id": run_id}
                ).all()
        finally:
            engine.dispose()
        assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
        assert [type_ for _, type_ in events].count("end") == 1
        assert events[-1][1] == "end"
        return status

    def containers(self) -> list[Mapping[str, Any]]:
        """This gateway's containers, dead ones included."""
        filters = {"label": f"{GATEWAY_LABEL}={self.gateway_id}"}
        found: list[Mapping[str, Any]] = self.docker.containers(all=True, filters=filters)
        return found

    def differences(self) -> list[str]:
        """What is not as it is when nothing runs."""
        kernel_pool = self.service._kernel_pool
        counts = {
            "warm kernels": (kernel_pool.warm(), WARM, WARM),
            "kernels": (len(kernel_pool._kernels), WARM + 1, WARM + 1),
            "containers": (len(self.containers()), WARM + 1, WARM + 1),
            "socket directories": (len(list(self.socket_root.iterdir())), WARM + 1, WARM + 1),
            "tasks": (len(asyncio.all_tasks()), 0, self.quiet_tasks or 1000),
            "descriptors": (open_descriptors(), 0, self.quiet_descriptors + DESCRIPTOR_SLACK),
        }
        return [f"{found} {name}" for name, (found, least, most) in counts.items() if not least <= found <= most]

    async def ready(self) -> None:
        """Wait until code can run."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while self.service._kernel_pool.warm() < WARM:
                await asyncio.sleep(0.05)

    async def settle(self) -> None:
        """Wait until nothing of earlier runs is left and the pool is full again."""
        differences = self.differences()
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while differences := self.differences():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"left behind: {', '.join(differences)}")


def credential_of(kernel_id: KernelId) -> str:
    """As unguessable as a kernel's id, which code in there does not learn either."""
    return hashlib.sha256(f"e2e {kernel_id}".encode()).hexdigest()


def remove_empty(*directories: Path) -> None:
    """Remove directories; one that is not empty is an OSError."""
    for directory in directories:
        directory.rmdir()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(scope="module")
def module_database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    yield from _database(postgres_server, migrated_template)


@pytest.fixture(scope="session")
def session_database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    yield from _database(postgres_server, migrated_template)


def _database(postgres_server: str, migrated_template: str) -> Iterator[str]:
    name = f"e2e_{uuid.uuid4().hex}"
    execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY file_copy")
    yield with_database(postgres_server, name)
    execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(
    request: pytest.FixtureRequest, docker_client: APIClient, kernel_image: str, module_database_url: str
) -> AsyncIterator[Rig]:
    """The gateway of a module. The module's `PRELOAD` names what its kernels have imported before they are asked."""
    top = Path(tempfile.mkdtemp(prefix="cb-"))  # short, since socket paths are
    root = top / "s"
    gateway_id = GatewayId(uuid.uuid4().hex)
    provisioner = DockerProvisioner(gateway_id, docker_settings(kernel_image), zygote_dir=top / "z")
    store = PostgresStore(module_database_url)
    service = Service(
        Wiring.build(
            Environment(
                store=store,
                provisioner=provisioner,
                switchboard=SupervisorSwitchboard(root),
                gateway_id=gateway_id,
                limits=LIMITS,
                preload=getattr(request.module, "PRELOAD", ()),
                credential_of=credential_of,
                clock=SystemClock(),
            ),
            PoolSettings(WARM, MAX_CONTAINERS),
            {"python": "python3"},
        ),
        SessionLimits(),
    )
    await service.start()
    rig = Rig(service, docker_client, module_database_url, root, gateway_id)
    try:
        rig.quiet_descriptors = 1 << 20
        await rig.ready()
        await asyncio.gather(rig.ask_bystander(), rig.run("print(1)"))
        await rig.settle()
        rig.quiet_descriptors, rig.quiet_tasks = open_descriptors(), len(asyncio.all_tasks())
        yield rig
        last = await rig.run("print('still here')")
        assert (last.status, last.output) == (RunStatus.OK, "still here\n")
        await service.delete_session(ANONYMOUS, BYSTANDER)
    finally:
        await service.drain(5)
        await service.close()
        await provisioner.close()
        await store.close()
    assert rig.containers() == []
    await asyncio.to_thread(shutil.rmtree, top / "z", ignore_errors=True)
    await asyncio.to_thread(remove_empty, root, top)


@pytest_asyncio.fixture(loop_scope="module")
async def settled(rig: Rig) -> AsyncIterator[None]:
    """Ask for this around a test that attacks: others must be none the worse afterwards, and nothing may be left."""
    yield
    await rig.ask_bystander()
    await rig.settle()


def text_of(pid: int, name: str) -> str:
    return Path("/proc", str(pid), name).read_text()


def children_of(init: int) -> list[int]:
    return [child.pid for child in psutil.Process(init).children()]


def is_from_zygote(init: int) -> bool:
    """Whether a container's first process has one child, the kernel, and no fork server."""
    children = children_of(init)
    return len(children) == 1 and "kernel_image.zygote" in text_of(children[0], "cmdline")
