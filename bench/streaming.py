"""What it costs to follow a run's output as it comes, side by side with a bare local ipykernel in the same minutes.

    .venv/bin/python bench/streaming.py --rounds 20

Each round prints the same lines on the bare kernel (read by jupyter_client), and in sessions over server-sent events,
over a WebSocket and as a cell of a Jupyter client, with and without `flush=True`. Then come ten streams at once, ten
times as many lines, and single lines. Medians and their ratios are what to quote. Needs Docker and the kernel image.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from contestants import BareKernel, Channels, Gateway, end_on_sigterm
from websockets.sync.client import connect

from gateway.config.loader import load
from sessions.provisioners.image.build import ensure_kernel_image

LINES = 100_000
AT_ONCE = 10
SETTLE_S = 0.5
TIMEOUT_S = 600
WARM_UP_LINES = 1000
PROGRAM = "for line in range({lines}):\n    print(f'{{line:07}}'{flush})"
# All clocks of one machine agree on this one, inside of a container as outside.
SLOW_PROGRAM = "import time\nfor _ in range({lines}):\n    time.sleep(1)\n    print(time.monotonic_ns(), flush=True)"

Take = Callable[[str], None]


@dataclass(slots=True)
class Heard:
    """What came of one run, and when. Times in seconds from the moment of asking."""

    lines: int
    begin_s: float = field(default_factory=time.perf_counter)
    first_s: float = 0.0
    total_s: float = 0.0
    texts: list[str] = field(default_factory=list)

    def take(self, text: str) -> None:
        """Text has come."""
        if not self.texts:
            self.first_s = time.perf_counter() - self.begin_s
        self.texts.append(text)

    def end(self) -> Self:
        """All of it has."""
        self.total_s = time.perf_counter() - self.begin_s
        return self

    def missing(self) -> int:
        """How many lines did not come; those that came must be in order."""
        numbers = [int(line) for line in "".join(self.texts).split()]
        assert numbers == sorted(set(numbers)), "lines are repeated or out of order"
        return self.lines - len(numbers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--flushed-rounds", type=int, default=3, help="rounds with flush=True, which take minutes")
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--slow-lines", type=int, default=60, help="how many of the single lines")
    arguments = parser.parse_args()
    end_on_sigterm()
    config = load(None, {})
    image = asyncio.run(ensure_kernel_image(config.build, lambda line: print("  ", line, file=sys.stderr)))
    settings = {"POOL_SIZE": "1", "LIMITS_OUTPUT_BYTES": "8M", "LIMITS_TIMEOUT": str(TIMEOUT_S)}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbb")))
        bare = stack.enter_context(BareKernel())
        gateway = stack.enter_context(Gateway(root / "gateway", image, settings))
        while not gateway.warm():
            time.sleep(0.1)
        sessions = [f"bench-{number}" for number in range(AT_ONCE)]
        for session in sessions:
            stack.callback(gateway.ask, "DELETE", f"/sessions/{session}")
        compare(gateway, bare, sessions[0], arguments.rounds, arguments.lines, flush=False)
        compare(gateway, bare, sessions[0], arguments.flushed_rounds, arguments.lines, flush=True)
        at_once(gateway, sessions, arguments.lines)
        ten_times(gateway, sessions[0], arguments.lines)
        single_lines(gateway, bare, sessions[:2], arguments.slow_lines)


# --- what is measured -------------------------------------------------------------------------------------------------


def compare(gateway: Gateway, bare: BareKernel, session: str, rounds: int, lines: int, *, flush: bool) -> None:
    """One stream after the other, each kind once in each round."""
    asks: Mapping[str, Callable[[str, Take], None]] = {
        "bare ipykernel": bare.run,
        "server-sent events": lambda code, take: over_sse(gateway, session, code, take),
        "WebSocket": lambda code, take: over_websocket(gateway, session, code, take),
        "Jupyter client": lambda code, take: over_channels(gateway, session, code, take),
    }
    for ask in asks.values():
        ask(program(WARM_UP_LINES, flush=True), lambda _: None)
    all_heard: dict[str, list[Heard]] = {kind: [] for kind in asks}
    with Memory(gateway.pid) as memory:
        for number in range(rounds):
            for kind, ask in asks.items():
                time.sleep(SETTLE_S)
                heard = Heard(lines)
                ask(program(lines, flush=flush), heard.take)
                all_heard[kind].append(heard.end())
            print(f"   round {number + 1} of {rounds}", file=sys.stderr)
    print(f"{lines} lines, one stream after the other, {'with' if flush else 'without'} flush=True; {rounds} rounds")
    show(all_heard)
    print(f"memory of the gateway: {memory}\n", flush=True)


def at_once(gateway: Gateway, sessions: list[str], lines: int) -> None:
    """Streams beside one another, each in a session of its own, half of them over either transport."""
    for session in sessions:
        over_sse(gateway, session, program(WARM_UP_LINES, flush=True), lambda _: None)
    for flush, lines_now in ((False, lines), (True, lines // 10)):
        time.sleep(SETTLE_S)
        all_heard = [Heard(lines_now) for _ in sessions]
        with Memory(gateway.pid) as memory, ThreadPoolExecutor(len(sessions)) as threads:
            for number, (session, heard) in enumerate(zip(sessions, all_heard, strict=True)):
                over = over_websocket if number % 2 else over_sse
                work = threads.submit(over, gateway, session, program(lines_now, flush=flush), heard.take)
                work.add_done_callback(lambda ended, heard=heard: (ended.result(), heard.end()))  # type: ignore[misc]
        totals = [heard.total_s for heard in all_heard]
        print(f"{len(sessions)} streams of {lines_now} lines at once, {'with' if flush else 'without'} flush=True")
        print(f"first line p50 {statistics.median(heard.first_s for heard in all_heard) * 1e3:.0f} ms", end=", ")
        print(f"all p50 {statistics.median(totals):.2f} s, the last {max(totals):.2f} s", end=", ")
        print(f"missing {sum(heard.missing() for heard in all_heard)}")
        print(f"memory of the gateway: {memory}\n", flush=True)


def ten_times(gateway: Gateway, session: str, lines: int) -> None:
    """Whether the gateway's memory depends on how much there is to pass on."""
    for lines_now in (lines, 10 * lines):
        time.sleep(SETTLE_S)
        heard = Heard(lines_now)
        with Memory(gateway.pid) as memory:
            over_sse(gateway, session, program(lines_now, flush=False), heard.take)
        heard.end()
        print(f"{lines_now} lines over SSE: {heard.total_s:.2f} s, missing {heard.missing()}")
        print(f"memory of the gateway: {memory}\n", flush=True)


def single_lines(gateway: Gateway, bare: BareKernel, sessions: list[str], lines: int) -> None:
    """One line a second from each: how long it takes from the `print` to the client."""
    code = SLOW_PROGRAM.format(lines=lines)
    asks: Mapping[str, Callable[[Take], None]] = {
        "bare ipykernel": lambda take: bare.run(code, take),
        "server-sent events": lambda take: over_sse(gateway, sessions[0], code, take),
        "WebSocket": lambda take: over_websocket(gateway, sessions[1], code, take),
    }
    late_ms: dict[str, list[float]] = {kind: [] for kind in asks}
    with ThreadPoolExecutor(len(asks)) as threads:
        for kind, ask in asks.items():
            late = late_ms[kind]

            def take(text: str, late: list[float] = late) -> None:
                late += [(time.monotonic_ns() - int(printed_ns)) / 1e6 for printed_ns in text.split()]

            threads.submit(ask, take)
            time.sleep(1 / len(asks))  # so that they do not meet
    print(f"one line a second, {lines} lines: from the print to the client")
    bare_p50 = statistics.median(late_ms["bare ipykernel"])
    for kind, late in late_ms.items():
        p50, p95 = statistics.median(late), statistics.quantiles(late, n=20)[18]
        print(f"{kind:20} p50 {p50:6.2f} ms, p95 {p95:6.2f} ms, ratio {p50 / bare_p50:5.2f}, {len(late)} lines")


def program(lines: int, *, flush: bool) -> str:
    """Eight bytes a line."""
    return PROGRAM.format(lines=lines, flush=", flush=True" if flush else "")


def show(all_heard: Mapping[str, list[Heard]]) -> None:
    """A table of medians, and their ratios to the bare kernel's."""
    head = ("first ms", "ratio", "all s", "p90 s", "ratio", "pieces", "missing")
    print(" " * 20 + "".join(f"{name:>10}" for name in head))
    reference = all_heard["bare ipykernel"]
    for kind, runs in all_heard.items():
        first_ms, total_s = _p50(runs, "first_s") * 1e3, _p50(runs, "total_s")
        p90_s = statistics.quantiles([run.total_s for run in runs], n=10)[8] if len(runs) > 1 else total_s
        pieces = statistics.median(len(run.texts) for run in runs)
        print(
            f"{kind:20}{first_ms:10.1f}{first_ms / _p50(reference, 'first_s') / 1e3:10.2f}{total_s:10.2f}{p90_s:10.2f}"
            f"{total_s / _p50(reference, 'total_s'):10.2f}{pieces:10.0f}{max(run.missing() for run in runs):10}"
        )


def _p50(runs: list[Heard], name: str) -> float:
    return statistics.median(getattr(run, name) for run in runs)


# --- clients ----------------------------------------------------------------------------------------------------------


def over_sse(gateway: Gateway, session: str, code: str, take: Take) -> None:
    """Run it by `POST /runcode`, answered with events."""
    connection = gateway.connection()
    body = json.dumps({"code": code, "session_id": session, "stream": True, "timeout": TIMEOUT_S})
    connection.request("POST", "/runcode", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == http.client.OK, response.read()
    end = None
    for event in _events(response):
        if event["type"] == "stdout":
            take(event["text"])
        end = event
    connection.close()
    assert end is not None
    assert end["type"] == "end", end
    assert end["status"] == "ok", end


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    rest = b""
    while piece := response.read1(1 << 16):
        *frames, rest = (rest + piece).split(b"\n\n")
        for frame in frames:
            data = frame.partition(b"data: ")[2]
            if data:
                yield json.loads(data)


def over_websocket(gateway: Gateway, session: str, code: str, take: Take) -> None:
    """Run it over `/runcode/ws`."""
    with connect(f"ws://127.0.0.1:{gateway.port}/runcode/ws", max_size=None, compression=None) as socket:
        socket.send(json.dumps({"op": "run", "code": code, "session_id": session, "timeout": TIMEOUT_S}))
        for message in socket:
            event = json.loads(message)
            if event["type"] == "stdout":
                take(event["text"])
            elif event["type"] in ("end", "error"):
                assert event.get("status") == "ok", event
                return


def over_channels(gateway: Gateway, session: str, code: str, take: Take) -> None:
    """Run it as a cell of a Jupyter client."""
    with Channels(gateway, session) as channels:
        channels.run(code, take)


class Memory:
    """What one process holds in memory before, at most while, and after something is done. Looks every 20 ms."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._looking = threading.Thread(target=self._look)

    def __str__(self) -> str:
        before, peak, after = (size / 2**20 for size in (self.before, self.peak, self.after))
        return f"{before:.0f} MiB before, {peak:.0f} MiB at most, {after:.0f} MiB after"

    def __enter__(self) -> Self:
        self.before = self.peak = self.after = self._process.memory_info().rss
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._looking.join()
        self.after = self._process.memory_info().rss

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)


if __name__ == "__main__":
    main()
