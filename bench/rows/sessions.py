"""Many idle sessions: what a call in one of them takes, and how much memory all of them need."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil

from bench.accounting import Cgroup
from bench.contestants.bare import BareKernel
from bench.contestants.cellblock import Gateway
from bench.contestants.jupyter import JupyterServer, jupyter_server
from bench.contestants.plain import PlainContainers
from bench.progress import say
from bench.rows.rest import cell
from bench.stats import summary
from bench.turns import CODE, Bench, enter, expect, take_turns

WORK = "import pandas\nprint(1)"
LEAST_FREE_BYTES = 3 << 30
_SETTLE_S = 2.0


def measure(bench: Bench) -> dict[str, Any]:
    """A point for each number of sessions: p50 of a call and of the bare kernel beside it, and bytes by part."""
    counts = [1, 4] if bench.quick else [1, 10, 25, 50, 100]
    with ExitStack() as stack:
        bare = stack.enter_context(BareKernel())
        gateway = stack.enter_context(Gateway(bench.image, POOL_SIZE="1"))
        gateway.until_warm(settle_s=_SETTLE_S)
        idle = [sandbox.memory_bytes() for sandbox in bench.engine.sandboxes(gateway.gateway_id)]
        points = [_point(bench, gateway, bare, 0, 0)]
        for before, count in zip([0, *counts], counts, strict=False):
            if psutil.virtual_memory().available < _needed_bytes(points[-1], count):
                say(f"no memory for {count} sessions")
                break
            points.append(_point(bench, gateway, bare, before, count))
            say(f"{count} sessions")
        each = [sandbox.memory_bytes() for sandbox in bench.engine.sandboxes(gateway.gateway_id)]
    others, failed = _others(bench, [count for count in counts if count <= 25])
    return {
        "points": points,
        "warm_container_bytes": max(idle),
        "session_bytes": sorted(each)[len(each) // 2],
        "others": others,
        "failed": failed,
    }


def _needed_bytes(last: dict[str, Any], count: int) -> float:
    """What so many sessions need beyond those that there are, and what is left to everything else."""
    each = last["bytes"]["sandboxes"] / (last["sessions"] + 1)  # one more is warm
    return float(LEAST_FREE_BYTES + each * (count - last["sessions"]))


def _point(bench: Bench, gateway: Gateway, bare: BareKernel, before: int, count: int) -> dict[str, Any]:
    with ThreadPoolExecutor(2) as threads:
        for output in threads.map(lambda number: gateway.run(WORK, f"bench-{number}"), range(before, count)):
            expect(output)
    gateway.until_warm(settle_s=_SETTLE_S)
    point: dict[str, Any] = {"sessions": count, "bytes": gateway.memory(bench.engine)}
    if count:
        kinds = {"bare kernel": cell(bare), "session": lambda: expect(gateway.run(CODE, "bench-0"))}
        series = take_turns(kinds, bench.pick(8, 3), block=20)
        point["ms"] = {kind: summary(figures["ms"]) for kind, figures in series.items()}
    return point


def _others(bench: Bench, counts: list[int]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The same memory where each session is a plain container, and a kernel of jupyter_server."""
    found: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        plain = stack.enter_context(PlainContainers(bench.engine, bench.image))
        cgroups: list[Cgroup] = []
        field = enter(stack, jupyter_server)
        server: JupyterServer | None = field.there.get("jupyter_server")

        def add_container() -> None:
            client, cgroup = stack.enter_context(plain.kernel())
            cgroups.append(cgroup)
            assert client.execute_interactive(WORK, output_hook=lambda _: None, timeout=60)

        adds: dict[str, tuple[Callable[[], None], Callable[[], dict[str, int]]]] = {
            plain.name: (add_container, lambda: plain.memory(cgroups))
        }
        if server is not None:
            adds[server.name] = (lambda: _add_kernel(server), server.memory)
        for name, (add, memory) in adds.items():
            for before, count in zip([0, *counts], counts, strict=False):
                for _ in range(before, count):
                    add()
                time.sleep(_SETTLE_S)
                found.setdefault(name, []).append({"sessions": count, "bytes": memory()})
                say(f"{name}: {count}")
    return found, field.failed


def _add_kernel(server: JupyterServer) -> None:
    with server.channels(server.start()) as channels:
        channels.run(WORK, lambda _: None)
