"""What code in one sandbox does with the zygote's kernels, which must not be the loss of other sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from docker.api.client import APIClient
from e2e_rig import LIMITS, credential_of, is_from_zygote

from gateway.host.clock import SystemClock
from gateway.supervisors import SupervisorSwitchboard
from sessions.environment import Environment
from sessions.kernels.kernel import Kernel
from sessions.kernels.outcomes import Died, Done
from sessions.kernels.sandboxes import Sandboxes
from sessions.model import GatewayId
from sessions.provisioners.docker.container import KERNEL_LABEL
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.settings import EngineSettings

pytestmark = pytest.mark.docker

PATIENCE_S = 30.0


class Ended(asyncio.Event):
    """A listener that waits for a request's end."""

    def uncommitted(self) -> None:
        """Nothing is kept."""

    uncommitted_seq = None
    end: Done | Died | None = None

    def on_message(self, seq: int, message: object) -> None:
        del seq, message

    def on_gap(self, seq: int, dropped_bytes: int) -> None:
        del seq, dropped_bytes

    def on_end(self, end: Done | Died) -> None:
        self.end = end
        self.set()


async def run(kernel: Kernel, code: str) -> Done | Died | None:
    listener = Ended()
    kernel.execute(uuid4().hex, code, listener)
    async with asyncio.timeout(PATIENCE_S):
        await listener.wait()
    return listener.end


@pytest.fixture
async def provisioner(kernel_image: str, gateway_id: GatewayId, short_dir: Path) -> AsyncIterator[DockerProvisioner]:
    settings = EngineSettings(name="docker", kernel_image=kernel_image)
    provisioner = DockerProvisioner(gateway_id, settings, zygote_dir=short_dir / "z")
    yield provisioner
    for kernel_id in await provisioner.list():
        await provisioner.kill(kernel_id)
    await provisioner.close()


@pytest.fixture
async def kernel(
    provisioner: DockerProvisioner, switchboard: SupervisorSwitchboard, gateway_id: GatewayId
) -> AsyncIterator[Kernel]:
    environment = Environment(
        store=cast("Any", None),
        provisioner=provisioner,
        switchboard=switchboard,
        gateway_id=gateway_id,
        limits=LIMITS,
        preload=(),
        credential_of=credential_of,
        clock=SystemClock(),
    )
    sandboxes = Sandboxes(environment)
    kernel = sandboxes.make_kernel("python3")
    await sandboxes.bring_up(kernel)
    yield kernel
    sandboxes.discard(kernel)
    await sandboxes.remove(kernel)


USER_PACKAGE = """
import os, site
os.makedirs(site.getusersitepackages(), exist_ok=True)
with open(os.path.join(site.getusersitepackages(), "mine.pth"), "w") as file:
    file.write("import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()")
"""


CONNECTION_FILES = """
import os
last = max(map(int, os.listdir("/proc/self/task")))
for pid in range(last + 1, last + 50):
    open(f"/run/ipc/z{pid}.json", "w").write("{}")
"""
UNLESS_FROM_ZYGOTE_END = """
import os
if b"kernel_image.zygote" not in open("/proc/self/cmdline", "rb").read():
    os._exit(3)
"""


HIDDEN = """
import ctypes, os, threading, time
def lay():
    while True:
        time.sleep(0.001)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            open(f"/run/ipc/z{pid}.json", "w").write("{}")
if os.fork() == 0:
    os.setsid()
    threading.Thread(target=lay).start()
    libc = ctypes.CDLL(None)
    libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long)
    libc.syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit(2): this thread's end, not the others'
time.sleep(0.2)
"""
UNLESS_ALONE_END = """
if [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, os.getpid())]:
    os._exit(4)
"""


async def test_a_process_without_a_main_thread_does_not_outlive_its_kernel(kernel: Kernel) -> None:
    """It would let the next kernel begin before the supervisor has looked at it."""
    generation = kernel.generation
    assert isinstance(await run(kernel, HIDDEN), Done)
    kernel.restart()
    await kernel.wait_restarted(generation, PATIENCE_S)
    assert isinstance(await run(kernel, UNLESS_FROM_ZYGOTE_END + UNLESS_ALONE_END), Done)


async def test_a_connection_file_that_code_has_laid_there_lets_no_kernel_begin(kernel: Kernel) -> None:
    """It would begin before the supervisor has looked at it, and end."""
    for _ in range(3):
        generation = kernel.generation
        assert isinstance(await run(kernel, CONNECTION_FILES), Done)
        kernel.restart()
        await kernel.wait_restarted(generation, PATIENCE_S)
        assert isinstance(await run(kernel, UNLESS_FROM_ZYGOTE_END), Done)


@pytest.mark.parametrize(
    "code", [USER_PACKAGE, "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (500, 500))"]
)
async def test_what_one_sandbox_does_to_its_next_kernel_stops_no_other(
    kernel: Kernel, provisioner: DockerProvisioner, docker_client: APIClient, code: str
) -> None:
    (sandbox,) = docker_client.containers(filters={"label": f"{KERNEL_LABEL}={kernel.kernel_id}"})
    assert is_from_zygote(docker_client.inspect_container(sandbox["Id"])["State"]["Pid"])
    generation = kernel.generation
    assert isinstance(await run(kernel, code), Done)
    kernel.restart()
    await kernel.wait_restarted(generation, PATIENCE_S)
    assert isinstance(await run(kernel, "1"), Done)
    assert provisioner.warnings() == ()
