"""100,000 lines as they come: over server-sent events, a WebSocket, and as a Jupyter cell. Every line is looked at."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from websockets.sync.client import connect

from bench.contestants.bare import BareKernel, Take
from bench.contestants.cellblock import Gateway
from bench.progress import say
from bench.rows.rest import jupyter_client
from bench.turns import Bench

TIMEOUT_S = 600
WARM_UP_LINES = 1000
PROGRAM = "for line in range({lines}):\n    print(f'{{line:07}}'{flush})"
# All clocks of one machine agree on this one, inside of a container as outside.
SLOW_PROGRAM = "import time\nfor _ in range({lines}):\n    time.sleep(0.5)\n    print(time.monotonic_ns(), flush=True)"
_SETTLE_S = 0.5

Ask = Callable[[str, Take], None]


@dataclass(slots=True)
class Heard:
    """What came of one run, and when. Times in seconds from the moment of asking."""

    begin_s: float = field(default_factory=time.perf_counter)
    first_s: float = 0.0
    texts: list[str] = field(default_factory=list)

    def take(self, text: str) -> None:
        """Text has come."""
        if not self.texts:
            self.first_s = time.perf_counter() - self.begin_s
        self.texts.append(text)

    def missing(self, lines: int) -> int:
        """How many lines did not come; those that came must be in order."""
        numbers = [int(line) for line in "".join(self.texts).split()]
        assert numbers == sorted(set(numbers)), "lines are repeated or out of order"
        return lines - len(numbers)


def measure(bench: Bench) -> dict[str, Any]:
    """Seconds by kind, for all lines and for the first, buffered and flushed; milliseconds of single lines."""
    settings = {"POOL_SIZE": "1", "LIMITS_OUTPUT_BYTES": "8M", "LIMITS_TIMEOUT": str(TIMEOUT_S)}
    with ExitStack() as stack:
        bare = stack.enter_context(BareKernel())
        gateway = stack.enter_context(Gateway(bench.image, **settings))
        notebook = stack.enter_context(jupyter_client(gateway, "bench-jupyter"))
        asks: dict[str, Ask] = {
            "bare kernel": bare.run,
            "server-sent events": lambda code, take: over_sse(gateway, code, take),
            "WebSocket": lambda code, take: over_websocket(gateway, code, take),
            "Jupyter cell": notebook.run,
        }
        for ask in asks.values():
            ask(PROGRAM.format(lines=WARM_UP_LINES, flush=", flush=True"), lambda _: None)
        return {
            "buffered": _compare(asks, bench.pick(100_000, 20_000), bench.pick(6, 1), flush=False),
            "flushed": _compare(asks, bench.pick(20_000, 2_000), bench.pick(3, 1), flush=True),
            "single_ms": _single_lines(asks, bench.pick(20, 4)),
        }


def _compare(asks: dict[str, Ask], lines: int, rounds: int, *, flush: bool) -> dict[str, Any]:
    """One stream after the other."""
    found: dict[str, Any] = {"lines": lines, "all_s": {}, "first_s": {}, "missing": {}}
    for number in range(rounds):
        for kind, ask in asks.items():
            time.sleep(_SETTLE_S)
            heard = Heard()
            ask(PROGRAM.format(lines=lines, flush=", flush=True" if flush else ""), heard.take)
            found["all_s"].setdefault(kind, []).append(round(time.perf_counter() - heard.begin_s, 4))
            found["first_s"].setdefault(kind, []).append(round(heard.first_s, 4))
            found["missing"][kind] = found["missing"].get(kind, 0) + heard.missing(lines)
        say(f"{lines} lines, {'flushed' if flush else 'buffered'}: round {number + 1} of {rounds}")
    return found


def _single_lines(asks: dict[str, Ask], lines: int) -> dict[str, list[float]]:
    """Two lines a second: how long each takes from the `print` to the client."""
    late_ms: dict[str, list[float]] = {}
    for kind, ask in asks.items():
        late = late_ms.setdefault(kind, [])

        def take(text: str, late: list[float] = late) -> None:
            late.extend((time.monotonic_ns() - int(printed_ns)) / 1e6 for printed_ns in text.split())

        ask(SLOW_PROGRAM.format(lines=lines), take)
    say("single lines")
    return late_ms


def over_sse(gateway: Gateway, code: str, take: Take) -> None:
    """Run it by `POST /runcode`, answered with events."""
    connection = gateway.connection()
    body = json.dumps({"code": code, "session_id": "bench-sse", "stream": True, "timeout": TIMEOUT_S})
    connection.request("POST", "/runcode", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == http.client.OK, response.read()
    end: dict[str, Any] = {}
    for event in _events(response):
        if event["type"] == "stdout":
            take(event["text"])
        end = event
    connection.close()
    assert end.get("type") == "end", end
    assert end["status"] == "ok", end


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    rest = b""
    while piece := response.read1(1 << 16):
        *frames, rest = (rest + piece).split(b"\n\n")
        for frame in frames:
            data = frame.partition(b"data: ")[2]
            if data:
                yield json.loads(data)


def over_websocket(gateway: Gateway, code: str, take: Take) -> None:
    """Run it over `/runcode/ws`."""
    with connect(f"ws://127.0.0.1:{gateway.port}/runcode/ws", max_size=None, compression=None) as socket:
        socket.send(json.dumps({"op": "run", "code": code, "session_id": "bench-ws", "timeout": TIMEOUT_S}))
        for message in socket:
            event = json.loads(message)
            if event["type"] == "stdout":
                take(event["text"])
            elif event["type"] in ("end", "error"):
                assert event.get("status") == "ok", event
                return
