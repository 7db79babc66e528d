"""What one cell of a Jupyter client costs, side by side with a bare local ipykernel.

    .venv/bin/python bench/jupyter.py --rounds 20

Each round asks every kind in turn for some cells, one after the other, as a program does that runs a notebook. The
clients differ in what their sockets do: tornado's, with which a Jupyter server speaks to a gateway, leaves Nagle's
algorithm on, so that it waits with a request for the acknowledgement of what it has sent before. With `--beside`, the
gateway of another checkout takes part, for a comparison of before and after. Needs Docker and the kernel image.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil
from contestants import BareKernel, Channels, Gateway, end_on_sigterm
from tornado.websocket import websocket_connect

from gateway.config.loader import load
from sessions.provisioners.image.build import ensure_kernel_image

CODE = "print(1)"
SESSION = "bench"
SETTLE_S = 0.4
WARM_UP_CELLS = 20
BARE = "bare ipykernel"

Take = Callable[[str], None]


class ServersChannels:
    """The client that a Jupyter server is to its gateway: tornado's, with the options that it has by itself."""

    def __init__(self, gateway: Gateway, session: str) -> None:
        self._url = f"ws://127.0.0.1:{gateway.port}/api/kernels/{session}/channels"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._socket = self._loop.run_until_complete(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _connect(self) -> Any:
        return await websocket_connect(self._url)

    async def _close(self) -> None:
        self._socket.close()
        while await self._socket.read_message() is not None:
            pass

    def run(self, code: str, take: Take) -> None:
        """As `Channels.run`."""
        self._loop.run_until_complete(self._run(code, take))

    async def _run(self, code: str, take: Take) -> None:
        msg_id = uuid.uuid4().hex
        header = {"msg_id": msg_id, "msg_type": "execute_request", "session": "bench", "username": ""}
        await self._socket.write_message(json.dumps({"channel": "shell", "header": header, "content": {"code": code}}))
        left = {"execute_reply", "idle"}
        while left:
            message = json.loads(await self._socket.read_message())
            content = message["content"]
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            if message["msg_type"] == "stream":
                take(content["text"])
            elif message["msg_type"] == "execute_reply":
                assert content["status"] == "ok", content
                left.discard("execute_reply")
            elif message["msg_type"] == "status":
                left.discard(content["execution_state"])


CLIENTS: Mapping[str, type[Channels | ServersChannels]] = {"websockets": Channels, "tornado": ServersChannels}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cells", type=int, default=25, help="how many cells each kind runs in a round")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="the time between two cells")
    parser.add_argument("--beside", type=Path, help="another checkout, whose gateway takes part")
    arguments = parser.parse_args()
    end_on_sigterm()
    image = asyncio.run(ensure_kernel_image(load(None, {}).build, lambda line: print("  ", line, file=sys.stderr)))
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbb")))
        kernels: dict[str, BareKernel | Channels | ServersChannels] = {BARE: stack.enter_context(BareKernel())}
        gateways: dict[str, Gateway] = {}
        for place, checkout in {"": None, "beside, ": arguments.beside}.items():
            if place and checkout is None:
                continue
            data_dir = root / (place[:1] or "g") / "d"
            data_dir.parent.mkdir()
            gateway = stack.enter_context(Gateway(data_dir, image, {"POOL_SIZE": "1"}, checkout))
            while not gateway.warm():
                time.sleep(0.1)
            for client, kind in CLIENTS.items():
                session = f"{SESSION}-{client}"
                gateway.ask("POST", "/sessions", {"session_id": session})
                stack.callback(gateway.ask, "DELETE", f"/sessions/{session}")
                kernels[place + client] = stack.enter_context(kind(gateway, session))
                gateways[place + client] = gateway
        times_ms: dict[str, list[float]] = {kind: [] for kind in kernels}
        cpu_ms: dict[str, list[float]] = {kind: [] for kind in gateways}
        for kernel in kernels.values():
            run(kernel, WARM_UP_CELLS, arguments.pause_ms)
        for number in range(arguments.rounds):
            for kind, kernel in kernels.items():
                time.sleep(SETTLE_S)
                before_ms = _cpu_ms(gateways.get(kind))
                times_ms[kind] += run(kernel, arguments.cells, arguments.pause_ms)
                if kind in gateways:
                    cpu_ms[kind].append((_cpu_ms(gateways[kind]) - before_ms) / arguments.cells)
            print(f"   round {number + 1} of {arguments.rounds}", file=sys.stderr)
    show(times_ms, cpu_ms)


def run(kernel: BareKernel | Channels | ServersChannels, cells: int, pause_ms: float) -> list[float]:
    """Milliseconds of each cell, from the request until its reply, its output and `idle` are there."""
    times_ms = []
    for _ in range(cells):
        heard: list[str] = []
        begin = time.perf_counter()
        kernel.run(CODE, heard.append)
        times_ms.append((time.perf_counter() - begin) * 1e3)
        assert "".join(heard) == "1\n"
        if pause_ms:
            time.sleep(pause_ms / 1e3)
    return times_ms


def _cpu_ms(gateway: Gateway | None) -> float:
    if gateway is None:
        return 0.0
    times = psutil.Process(gateway.pid).cpu_times()
    return float(times.user + times.system) * 1e3


def show(times_ms: Mapping[str, list[float]], cpu_ms: Mapping[str, list[float]]) -> None:
    """A table of medians, their ratios to the bare kernel's, and how far the slowest cells are from the median."""
    bare = statistics.median(times_ms[BARE])
    heads = ("p50 ms", "p95 ms", "p99 ms", "ratio", "p95/p50", "gateway ms")
    print(f"{'a cell with `print(1)`':24}" + "".join(f"{head:>11}" for head in heads))
    for kind, times in times_ms.items():
        cuts = statistics.quantiles(times, n=100)
        p50, p95, p99 = statistics.median(times), cuts[94], cuts[98]
        cpu = f"{statistics.fmean(cpu_ms[kind]):11.2f}" if kind in cpu_ms else ""
        print(f"{kind:24}{p50:11.2f}{p95:11.2f}{p99:11.2f}{p50 / bare:11.2f}{p95 / p50:11.2f}{cpu}")


if __name__ == "__main__":
    main()
