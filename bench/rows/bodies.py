"""What a gateway keeps of memory after refused bodies, answers that nobody reads, and large files.

Each round sends bodies that are refused, asks for a run of 10 MB on connections that read nothing, and takes a file of
10 MB on connections that read nothing, and on some that do. The resident memory of the gateway's process is measured at
the worst moment of each part and after it. The process engine is used: sandboxes are not measured.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil

from bench.contestants.cellblock import Gateway
from bench.progress import say
from bench.turns import Bench

AT_ONCE = 40
READERS = 4
SIZE_BYTES = 10 << 20
UNREAD_S = 3.0
SETTINGS = {"ENGINE_NAME": "process", "BUILD_DEPENDENCIES": "[]", "BUILD_PRELOAD": "[]", "POOL_SIZE": "1"}
MAKE_FILE = "open('large.bin', 'wb').write(bytes(range(256)) * {})"


class Meter:
    """The resident memory of one process, in MB: now, and the most since it was last asked."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> float:
        """What it has."""
        return float(self._process.memory_info().rss / 1e6)

    def peak(self) -> float:
        """The most."""
        peak, self._peak = max(self._peak, self.now()), 0.0
        return peak

    def _watch(self) -> None:
        with suppress(psutil.NoSuchProcess):
            while self._process.is_running():
                self._peak = max(self._peak, self.now())
                time.sleep(0.02)


def measure(bench: Bench) -> dict[str, Any]:
    """MB: before the first round, at most in each part of each round, and a while after each round."""
    settings = {**SETTINGS, "LIMITS_FILE_BYTES": str(SIZE_BYTES), "LIMITS_REQUEST_BYTES": str(SIZE_BYTES)}
    settle_s = bench.pick(12, 2)
    with Gateway("", **settings) as gateway:
        run = gateway.ask("POST", "/runcode", {"code": "1 #" + "x" * (SIZE_BYTES - 1000)})["run_id"]
        made = gateway.ask("POST", "/runcode", {"code": MAKE_FILE.format(SIZE_BYTES // 256)})
        file = "/" + made["files"]["large.bin"].split("/", 3)[3]
        parts: dict[str, Callable[[], None]] = {
            "refused bodies": lambda: send_refused_bodies(gateway),
            "unread answers": lambda: leave_unread(gateway, f"/runs/{run}"),
            "large files": lambda: take_files(gateway, file),
        }
        time.sleep(settle_s)
        meter = Meter(gateway.pid)
        begun = meter.now()
        peaks: dict[str, list[float]] = {name: [] for name in parts}
        after: list[float] = []
        for number in range(bench.pick(3, 1)):
            for name, do in parts.items():
                meter.peak()
                do()
                peaks[name].append(meter.peak())
            time.sleep(settle_s)
            after.append(meter.now())
            say(f"round {number + 1}: {after[-1]:.0f} MB after it")
    return {"before_mb": begun, "peak_mb": peaks, "after_mb": after}


def send_refused_bodies(gateway: Gateway) -> None:
    """Bodies that are too large, and some that are no JSON."""
    bodies = [b'{"code": "' + b"x" * size for size in (SIZE_BYTES + 1000, SIZE_BYTES - 1000)]

    def post(number: int) -> int:
        connection = gateway.connection()
        try:
            connection.request("POST", "/runcode", bodies[number % 2], {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return 503
        finally:
            connection.close()
        return answer.status

    with ThreadPoolExecutor(AT_ONCE) as threads:
        statuses = set(threads.map(post, range(AT_ONCE)))
    assert statuses <= {400, 413, 503}, statuses


def leave_unread(gateway: Gateway, path: str) -> None:
    """Ask on many connections, and hang up after a while without having read anything."""
    with asking(gateway, path):
        time.sleep(UNREAD_S)


def take_files(gateway: Gateway, path: str) -> None:
    """The same; others read theirs meanwhile."""

    def read(_: int) -> int:
        connection = gateway.connection()
        connection.request("GET", path)
        size_bytes = len(connection.getresponse().read())
        connection.close()
        return size_bytes

    with asking(gateway, path), ThreadPoolExecutor(READERS) as threads:
        assert set(threads.map(read, range(3 * READERS))) == {SIZE_BYTES}


@contextmanager
def asking(gateway: Gateway, path: str) -> Iterator[None]:
    """Many connections that have asked for this."""
    with ExitStack() as stack:
        for _ in range(AT_ONCE):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield
