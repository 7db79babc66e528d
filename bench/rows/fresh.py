"""Runs that each get an environment of their own: how many a second, what one costs, and a burst of ten."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench.accounting import Engine, cpu_s
from bench.contestants.bare import NewKernels
from bench.contestants.cellblock import Gateway
from bench.contestants.jupyter import jupyter_server, kernel_gateway
from bench.contestants.llm_sandbox import LlmSandbox
from bench.contestants.plain import PlainContainers
from bench.progress import say
from bench.stats import less, per
from bench.turns import CODE, Bench, enter, expect, reason

CLIENTS = 4
WARM = 4
BURST = 10
_SETTLE_S = 2.0


def measure(bench: Bench) -> dict[str, Any]:
    """Windows by contestant: clients, runs per second, milliseconds of each run, CPU seconds per run by part."""
    with ExitStack() as stack:
        makers: list[Callable[[], Any]] = [
            lambda: Gateway(bench.image, POOL_SIZE=str(WARM)),
            lambda: PlainContainers(bench.engine, bench.image),
            NewKernels,
            jupyter_server,
            kernel_gateway,
            lambda: LlmSandbox(bench.image),
        ]
        field = enter(stack, *makers)
        windows: dict[str, list[dict[str, Any]]] = {name: [] for name in field.there}
        for clients in _plan(bench):
            for name, contestant in field.there.items():
                if (name in field.failed and not windows[name]) or clients not in _clients_of(name):
                    continue
                say(f"{name}, {clients} at once")
                try:
                    windows[name].append(_window(bench.engine, contestant, clients, bench.pick(8, 4)))
                except Exception as error:  # noqa: BLE001 - a program of others may fail in any way
                    field.failed[name] = f"{clients} at once: {reason(error)}"
                    say(f"{name} failed: {field.failed[name]}")
        bursts = _bursts(field.there, bench.pick(6, 1))
        return {"windows": windows, "failed": field.failed, "bursts_s": bursts}


def _plan(bench: Bench) -> list[int]:
    """How many clients, one window after the other."""
    return [CLIENTS] if bench.quick else [1, CLIENTS, 2, 8, CLIENTS, 16]


def _clients_of(name: str) -> tuple[int, ...]:
    """The others draw a coarser curve, to be done in time."""
    return (1, 2, 4, 8, 16) if name in {"Cellblock", "plain container", "jupyter_server"} else (1, 4, 16)


def _window(engine: Engine, contestant: Any, clients: int, seconds: float) -> dict[str, Any]:
    """The middle of a longer time in which all clients ask again and again, so that nothing stored up counts."""
    ended: list[tuple[float, float]] = []
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            begin = time.perf_counter()
            expect(contestant.fresh(CODE)[0])
            ended.append((time.perf_counter(), time.perf_counter() - begin))

    def cpu() -> dict[str, float]:
        return engine.cpu({**contestant.cpu(), "client": cpu_s(os.getpid(), reaped=False)})

    least = clients
    if isinstance(contestant, Gateway):
        least += WARM
        contestant.until_warm()
    time.sleep(_SETTLE_S)
    with ThreadPoolExecutor(clients) as threads:
        asking = [threads.submit(repeat) for _ in range(clients)]
        try:
            while len(ended) < least and not any(ask.done() for ask in asking):
                time.sleep(0.01)
            begin, before = time.perf_counter(), cpu()
            time.sleep(seconds)
            end, after = time.perf_counter(), cpu()
        finally:
            stop.set()
    for ask in asking:
        ask.result()
    times_s = [took for at, took in ended if begin < at <= end]
    return {
        "clients": clients,
        "per_s": len(times_s) / (end - begin),
        "ms": [round(took * 1e3, 1) for took in times_s],
        "cpu_s": per(less(after, before), len(times_s)),
    }


def _bursts(there: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Ten at once: when the last is answered. In turn with the start of one plain container."""
    gateway, plain = there["Cellblock"], there["plain container"]
    seconds: dict[str, list[float]] = {"last answer": [], "one plain container's start": []}
    for _ in range(rounds):
        gateway.until_warm(settle_s=_SETTLE_S)
        begin = time.perf_counter()
        with ThreadPoolExecutor(BURST) as threads:
            for output, _start in threads.map(gateway.fresh, [CODE] * BURST):
                expect(output)
        seconds["last answer"].append(time.perf_counter() - begin)
        gateway.until_warm(settle_s=_SETTLE_S)
        seconds["one plain container's start"].append(plain.fresh(CODE)[1])
    return seconds
