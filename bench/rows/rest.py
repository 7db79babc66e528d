"""A call after a rest: each is the first in half a second, and finds all pools full and the machine quiet."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench.contestants.bare import BareKernel
from bench.contestants.cellblock import Gateway
from bench.contestants.jupyter import jupyter_server, kernel_gateway
from bench.contestants.llm_sandbox import LlmSandbox
from bench.contestants.plain import PlainContainers
from bench.turns import CODE, Bench, enter, expect, take_turns

SETTLE_S = 0.3


def measure(bench: Bench) -> dict[str, Any]:
    """Milliseconds by kind."""
    with ExitStack() as stack:
        bare = stack.enter_context(BareKernel())
        plain = stack.enter_context(PlainContainers(bench.engine, bench.image))
        others = enter(stack, jupyter_server, kernel_gateway, lambda: LlmSandbox(bench.image))
        gateway = stack.enter_context(Gateway(bench.image))
        kinds: dict[str, Callable[[], None]] = {
            "bare kernel": cell(bare),
            "stateless": lambda: expect(gateway.run(CODE)),
            "session": lambda: expect(gateway.run(CODE, "bench")),
            "Jupyter cell": cell(stack.enter_context(jupyter_client(gateway, "bench-jupyter"))),
            "plain container": lambda: expect(plain.fresh(CODE)[0]),
        }
        for name, other in others.there.items():
            if name == "llm-sandbox":
                kinds[name] = lambda other=other: expect(other.run(CODE))  # type: ignore[misc]
            else:
                kinds[name] = cell(stack.enter_context(other.channels(other.start())))
        rare = ("plain container", *others.there)

        def rest() -> None:
            gateway.until_warm()
            time.sleep(SETTLE_S)

        rounds = bench.pick(100, 6)
        series = take_turns(kinds, rounds, before=rest, every=dict.fromkeys(rare, bench.pick(5, 3)))
    return {"series": series | {name: {"ms": [], "failed": why} for name, why in others.failed.items()}}


def cell(kernel: Any) -> Callable[[], None]:
    """The same code as a cell of a Jupyter client."""

    def run() -> None:
        heard: list[str] = []
        kernel.run(CODE, heard.append)
        expect("".join(heard))

    return run


def jupyter_client(gateway: Gateway, session: str) -> Any:
    """A Jupyter client of a session that is made for it."""
    return gateway.channels(gateway.ask("POST", "/sessions", {"session_id": session})["kernel_id"])
