"""How long it takes until a new kernel answers, what is imported then, and the first completion."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench.contestants.bare import NewKernels
from bench.contestants.cellblock import Gateway
from bench.contestants.jupyter import jupyter_server, kernel_gateway
from bench.contestants.llm_sandbox import LlmSandbox
from bench.contestants.plain import PlainContainers
from bench.progress import say
from bench.turns import CODE, Bench, enter, expect, reason, timed_s

IMPORTS = "import pandas, matplotlib.pyplot"
COMPLETED = "import os\nos.pa"
_SETTLE_S = 0.5


def measure(bench: Bench) -> dict[str, Any]:
    """Milliseconds by kind. The gateway keeps nothing warm, so that a new session waits for its container."""
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        others = enter(stack, jupyter_server, kernel_gateway, lambda: LlmSandbox(bench.image))
        plain = stack.enter_context(PlainContainers(bench.engine, bench.image))
        new = stack.enter_context(NewKernels())
        gateway = stack.enter_context(Gateway(bench.image, POOL_SIZE="0"))
        starts: dict[str, Callable[[], tuple[str, float]]] = {
            other.name: lambda other=other: other.fresh(CODE)  # type: ignore[misc]
            for other in (new, plain, *others.there.values())
        }
        rounds = bench.pick(10, 1)
        for number in range(rounds + 1):
            taken = _session(gateway)
            for name, start in starts.items():
                if name in others.failed:
                    continue
                time.sleep(_SETTLE_S)
                try:
                    output, ready_s = start()
                    expect(output)
                    taken[f"start: {name}"] = ready_s
                except Exception as error:  # noqa: BLE001 - a program of others may fail in any way
                    others.failed[name] = reason(error)
            if number:
                for kind, seconds in taken.items():
                    times.setdefault(kind, []).append(round(seconds * 1e3, 2))
                say(f"round {number} of {rounds}")
    return {"ms": times, "failed": others.failed}


def _session(gateway: Gateway) -> dict[str, float]:
    """Seconds of all that happens to one new session."""
    made: dict[str, Any] = {}
    time.sleep(_SETTLE_S)
    taken = {
        "start: Cellblock": timed_s(lambda: made.update(gateway.ask("POST", "/sessions", {"session_id": "bench"})))
    }
    with gateway.channels(made["kernel_id"]) as notebook:
        time.sleep(_SETTLE_S)
        taken["first completion"] = timed_s(lambda: notebook.complete(COMPLETED))
        taken["second completion"] = timed_s(lambda: notebook.complete(COMPLETED))
    time.sleep(_SETTLE_S)

    def restart() -> None:
        gateway.ask("POST", "/sessions/bench/restart")
        expect(gateway.run(CODE, "bench"))

    taken["restart to an answer"] = timed_s(restart)
    taken["import in it"] = timed_s(lambda: gateway.run(IMPORTS, "bench"))
    gateway.ask("DELETE", "/sessions/bench")
    return taken
