"""What a stateless `print(1)` costs, side by side with a bare local ipykernel in the same minutes on the same machine.

    .venv/bin/python bench/hello.py --rounds 100

Each round takes one measurement of every kind in turn, each after waiting until all pools are warm again and the
machine is quiet, so that a machine that gets slower gets slower for all of them. Medians and their ratios are what to
quote. Needs Docker and the kernel image.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import docker
import psutil
from contestants import BareKernel, Channels, Gateway, end_on_sigterm

from gateway.config.loader import load
from gateway.host.clock import SystemClock
from gateway.store.embedded.postgres import EmbeddedPostgres
from gateway.store.migrate import migrate
from gateway.store.postgres import PostgresStore
from gateway.supervisors import SupervisorSwitchboard
from sessions.kernels.pool_policy import PoolSettings
from sessions.model import ANONYMOUS, GatewayId, RunRequest
from sessions.ports import Store
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.provisioners.image.build import ensure_kernel_image
from sessions.service import Service
from sessions.settings import EngineSettings, Limits, SessionLimits
from sessions.testing.memory_store import MemoryStore
from sessions.wiring import Wiring

CODE = "print(1)"
NEW_PROCESS = """
import time
from jupyter_client import KernelManager
manager = KernelManager(transport="ipc")
begin = time.perf_counter()
manager.start_kernel()
client = manager.blocking_client()
client.start_channels()
client.wait_for_ready(timeout=60)
print((time.perf_counter() - begin) * 1e3)
manager.shutdown_kernel(now=True)
"""
SETTLE_S = 0.4
POOL = 1
SESSION = "bench"
JUPYTER_SESSION = "bench-jupyter"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    end_on_sigterm()
    figures = asyncio.run(measure(arguments.rounds))
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)


async def measure(rounds: int) -> dict[str, Any]:
    """All figures: milliseconds by kind, and bytes."""
    config = load(None, {})
    image = await ensure_kernel_image(config.build, lambda line: print("  ", line, file=sys.stderr))
    preload = tuple(config.build.preload)
    times: dict[str, list[float]] = {}
    with ExitStack() as outer:
        root = Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="cbb")))
        bare = outer.enter_context(BareKernel())
        gateway = outer.enter_context(Gateway(root / "gateway", image, {"POOL_SIZE": str(POOL)}))
        async with AsyncExitStack() as stack:
            memory = await _service(stack, root / "m", image, preload, MemoryStore())
            database = EmbeddedPostgres(root / "d", exclusive=True)
            stack.push_async_callback(asyncio.to_thread, database.stop)
            url = await asyncio.to_thread(database.start)
            await asyncio.to_thread(migrate, url)
            store = PostgresStore(url)
            stack.push_async_callback(store.close)
            stored = await _service(stack, root / "s", image, preload, store)
            await _until_warm(gateway, memory, stored)
            gateway.ask("POST", "/sessions", {"session_id": JUPYTER_SESSION})
            channels = outer.enter_context(Channels(gateway, JUPYTER_SESSION))
            kinds: dict[str, Callable[[], Awaitable[None]]] = {
                "bare ipykernel": _blocking(_ask_bare, bare),
                "engine alone": lambda: _run(memory),
                "engine and Postgres": lambda: _run(stored),
                "gateway over HTTP": _blocking(_ask_gateway, gateway),
                "the same in a session": _blocking(_ask_gateway, gateway, SESSION),
                "a Jupyter client's cell": _blocking(_ask_bare, channels),
            }
            for number in range(rounds + 3):
                for kind, once in kinds.items():
                    await _until_warm(gateway, memory, stored)
                    took_ms = await _timed(once)
                    if number >= 3:
                        times.setdefault(kind, []).append(took_ms)
                if number % 10 == 0:
                    print(f"   round {number} of {rounds}", file=sys.stderr)
            await _until_warm(gateway, memory, stored)
            for session in (SESSION, JUPYTER_SESSION):
                gateway.ask("DELETE", f"/sessions/{session}")
            sizes = {
                "gateway": psutil.Process(gateway.pid).memory_info().rss,
                "idle warm container": _container_bytes(gateway.gateway_id),
            }
        starts = await _kernel_starts(root, image, preload)
    return {"times_ms": times, "starts_ms": starts, "memory_bytes": sizes}


def show(figures: dict[str, Any]) -> None:
    """Print medians, and the ratio of each to the bare kernel's."""
    bare = statistics.median(figures["times_ms"]["bare ipykernel"])
    print(f"{'`print(1)`':24}{'p50 ms':>9}{'p90 ms':>9}{'ratio':>8}")
    for kind, times in figures["times_ms"].items():
        p50 = statistics.median(times)
        print(f"{kind:24}{p50:9.2f}{statistics.quantiles(times, n=10)[8]:9.2f}{p50 / bare:8.2f}")
    print()
    for kind, times in figures["starts_ms"].items():
        print(f"{kind:52}{statistics.median(times):9.0f} ms (median of {len(times)})")
    for what, size in figures["memory_bytes"].items():
        print(f"memory of the {what:38}{size / 2**20:9.0f} MiB")


def _blocking(ask: Callable[..., None], *args: Any) -> Callable[[], Awaitable[None]]:
    """As a kind. A thread would only add its own start to the time: nothing else runs here meanwhile."""

    async def once() -> None:
        ask(*args)

    return once


async def _timed(once: Callable[[], Awaitable[None]]) -> float:
    start = time.perf_counter()
    await once()
    return (time.perf_counter() - start) * 1e3


# --- the kinds --------------------------------------------------------------------------------------------------------


def _ask_bare(kernel: BareKernel | Channels) -> None:
    heard: list[str] = []
    kernel.run(CODE, heard.append)
    assert "".join(heard) == "1\n"


def _ask_gateway(gateway: Gateway, session_id: str | None = None) -> None:
    session = {} if session_id is None else {"session_id": session_id}
    assert gateway.ask("POST", "/runcode", {"code": CODE, **session})["output"] == "1\n"


async def _service(stack: AsyncExitStack, root: Path, image: str, preload: tuple[str, ...], store: Store) -> Service:
    gateway_id = GatewayId(f"bench-{root.name}-{os.getpid()}")
    provisioner = DockerProvisioner(gateway_id, EngineSettings(name="docker", kernel_image=image))
    stack.push_async_callback(provisioner.close)
    service = Service(
        Wiring.build(
            store=store,
            provisioner=provisioner,
            switchboard=SupervisorSwitchboard(root),
            gateway_id=gateway_id,
            limits=Limits(),
            pool=PoolSettings(size=POOL, max=4),
            languages={"python": "python3"},
            preload=preload,
            credential_of=lambda kernel_id: f"{gateway_id}-{kernel_id}",
            clock=SystemClock(),
        ),
        SessionLimits(),
    )
    stack.push_async_callback(service.close)
    await service.start()
    return service


async def _run(service: Service) -> None:
    result = await service.run(RunRequest(ANONYMOUS, CODE, "python", {}, 30.0))
    assert result.output == "1\n"


async def _until_warm(gateway: Gateway, *services: Service) -> None:
    """Wait until every pool is full again, and the machine has settled."""
    while True:
        warm = [service.readiness().warm for service in services]
        if min(warm) >= POOL and gateway.warm() >= POOL:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_S)


# --- starts and sizes -------------------------------------------------------------------------------------------------


async def _kernel_starts(root: Path, image: str, preload: tuple[str, ...], repeats: int = 7) -> dict[str, list[float]]:
    """How long kernels take to come up, in several ways, one after the other in each round."""
    starts: dict[str, list[float]] = {}
    for number in range(repeats):
        async with AsyncExitStack() as stack:
            begin = time.perf_counter()
            service = await _service(stack, root / f"k{number}", image, preload, MemoryStore())
            while not service.readiness().ready:
                await asyncio.sleep(0.005)
            starts.setdefault("container start to warm kernel", []).append((time.perf_counter() - begin) * 1e3)
            starts.setdefault("in it, a killed kernel's end to the next, forked", []).append(await _fork(service))
            starts.setdefault("in it, a new ipykernel process, start to ready", []).append(await _new_process(service))
    return starts


async def _fork(service: Service) -> float:
    """Kill the kernel of a warm container, as a crash would, and time the supervisor's fork of the next one."""
    kernel = await service._kernel_pool.claim("python3", 30.0)  # noqa: SLF001 - outside of a session nobody can restart one
    deaths = kernel.deaths
    begin = time.perf_counter()
    kernel.restart()
    while kernel.deaths == deaths or not kernel.is_ready():
        await asyncio.sleep(0.002)
    return (time.perf_counter() - begin) * 1e3


async def _new_process(service: Service) -> float:
    """Start an ipykernel the ordinary way, in a container with the same limits."""
    result = await service.run(RunRequest(ANONYMOUS, NEW_PROCESS, "python", {}, 60.0))
    return float(result.output.split()[-1])


def _container_bytes(gateway_id: str) -> int:
    client = docker.APIClient()
    containers = client.containers(filters={"label": f"cellblock.gateway={gateway_id}", "status": "running"})
    newest = max(containers, key=lambda container: container["Created"])
    return int(client.stats(newest["Id"], stream=False)["memory_stats"]["usage"])


if __name__ == "__main__":
    main()
