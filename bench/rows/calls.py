"""Calls back to back: their times, who spends how much processor time on them, and eight sessions at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench.accounting import Cgroup, cpu_s
from bench.contestants.bare import BareKernel
from bench.contestants.cellblock import Gateway
from bench.contestants.jupyter import jupyter_server, kernel_gateway
from bench.progress import say
from bench.rows.rest import cell, jupyter_client
from bench.stats import less, per
from bench.turns import CODE, Bench, enter, expect, take_turns

SESSIONS = 8


def measure(bench: Bench) -> dict[str, Any]:
    """Milliseconds by kind; CPU milliseconds per call by part; calls per second."""
    with ExitStack() as stack:
        bare = stack.enter_context(BareKernel())
        others = enter(stack, jupyter_server, kernel_gateway)
        gateway = stack.enter_context(Gateway(bench.image, POOL_SIZE="1"))
        sandbox = _sandbox(bench, gateway, "bench-0")
        notebook = stack.enter_context(jupyter_client(gateway, "bench-jupyter"))
        gateway.until_warm(settle_s=2)
        kinds: dict[str, Callable[[], None]] = {
            "bare kernel": cell(bare),
            "session": lambda: expect(gateway.run(CODE, "bench-0")),
            "Jupyter cell": cell(notebook),
        }
        for name, other in others.there.items():
            kinds[name] = cell(stack.enter_context(other.channels(other.start())))
        series = take_turns(kinds, bench.pick(20, 3), block=bench.pick(50, 20))
        say("processor time of a session call")
        cpu = _cpu(gateway, sandbox, kinds["session"], bench.pick(1000, 150))
        say(f"{SESSIONS} sessions at once")
        rates = _at_once(gateway, bench)
    return {
        "series": series | {name: {"ms": [], "failed": why} for name, why in others.failed.items()},
        "cpu_ms": cpu,
        "at_once_per_s": rates,
    }


def _sandbox(bench: Bench, gateway: Gateway, session: str) -> Cgroup:
    """The container that a new session gets is told from the warm one by what it does."""
    for _ in range(20):
        expect(gateway.run(CODE, session))
    gateway.until_warm(settle_s=2)
    before = [(sandbox, sandbox.cpu_s()) for sandbox in bench.engine.sandboxes(gateway.gateway_id)]
    for _ in range(20):
        expect(gateway.run(CODE, session))
    return max(before, key=lambda entry: entry[0].cpu_s() - entry[1])[0]


def _cpu(gateway: Gateway, sandbox: Cgroup, call: Callable[[], None], calls: int) -> dict[str, float]:
    def read() -> dict[str, float]:
        supervisor = cpu_s(sandbox.first_pid, reaped=False)
        return {**gateway.cpu(), "supervisor": supervisor, "kernel": sandbox.cpu_s() - supervisor}

    before = read()
    for _ in range(calls):
        call()
    return {part: value * 1e3 for part, value in per(less(read(), before), calls).items()}


def _at_once(gateway: Gateway, bench: Bench) -> dict[str, list[float]]:
    sessions = [f"bench-{number}" for number in range(SESSIONS)]
    for session in sessions:
        expect(gateway.run(CODE, session))
    with ExitStack() as stack:
        kernels = [stack.enter_context(BareKernel()) for _ in sessions if not bench.quick]
        asks: dict[str, list[Callable[[], None]]] = {
            "bare kernel": [cell(kernel) for kernel in kernels],
            "session": [lambda session=session: expect(gateway.run(CODE, session)) for session in sessions],  # type: ignore[misc]
        }
        rates: dict[str, list[float]] = {kind: [] for kind in asks}
        for _ in range(bench.pick(4, 1)):
            for kind, calls in asks.items():
                if calls:
                    time.sleep(1)
                    rates[kind].append(_rate(calls, bench.pick(5, 3)))
    return rates


def _rate(calls: list[Callable[[], None]], seconds: float) -> float:
    """All of them again and again, each in a thread of its own; how many a second."""
    stop = threading.Event()

    def repeat(call: Callable[[], None]) -> int:
        count = 0
        while not stop.is_set():
            call()
            count += 1
        return count

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(calls)) as threads:
        counts = [threads.submit(repeat, call) for call in calls]
        time.sleep(seconds)
        stop.set()
    return sum(count.result() for count in counts) / (time.perf_counter() - begin)
