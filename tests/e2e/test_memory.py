"""The memory of a gateway process: how much answers take that nobody reads, and that it comes back."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Self
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from serve_rig import Gateway, start

AT_ONCE = 40
PATIENCE_S = 60
SIZE_BYTES = 9 << 20
LARGE_CODE = "1 #" + "x" * SIZE_BYTES
NO_JSON = b'{"code": "' + b"x" * SIZE_BYTES
MAKE_FILE = f"open('large.bin', 'wb').write(bytes({SIZE_BYTES}))"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = start(tmp_path_factory.mktemp("memory") / "data")
    try:
        yield gateway
    finally:
        gateway.stop(signal.SIGTERM)


def resident_mb(gateway: Gateway) -> float:
    return float(psutil.Process(gateway.process.pid).memory_info().rss / 1e6)


class Watch:
    """The most that the gateway had, in MB."""

    def __init__(self, gateway: Gateway) -> None:
        self.peak_mb = 0.0
        self._gateway = gateway
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.peak_mb = max(self.peak_mb, resident_mb(self._gateway))


@contextmanager
def asking(gateway: Gateway, path: str) -> Iterator[None]:
    """Many connections that have asked for this, and read nothing."""
    with ExitStack() as stack:
        for _ in range(AT_ONCE):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", urlsplit(gateway.url).port or 0)))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield


def refuse_bodies(gateway: Gateway) -> None:
    def post(_: int) -> int:
        headers = {"Content-Type": "application/json"}
        return httpx.post(f"{gateway.url}/runcode", content=NO_JSON, headers=headers, timeout=PATIENCE_S).status_code

    with ThreadPoolExecutor(AT_ONCE // 4) as threads:
        assert set(threads.map(post, range(AT_ONCE // 2))) <= {400, 503}


def test_memory_is_bounded_and_comes_back(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url, timeout=PATIENCE_S) as client:
        run = client.post("/runcode", json={"code": LARGE_CODE}).json()["run_id"]
        made = client.post("/runcode", json={"code": MAKE_FILE}).json()
        file = urlsplit(made["files"]["large.bin"]).path
        assert len(client.get(file).content) == SIZE_BYTES
        begun_mb = resident_mb(gateway)
        with Watch(gateway) as watch:
            refuse_bodies(gateway)
            for path in (f"/runs/{run}", file):
                with asking(gateway, path):
                    time.sleep(2)
                    assert client.get("/healthz").status_code == 200
        # 16 bodies of 10 MB, and 128 MiB of answers; 40 answers in several copies would be more than a gigabyte.
        assert watch.peak_mb < begun_mb + 400
        deadline = time.monotonic() + PATIENCE_S
        while resident_mb(gateway) > 1.25 * begun_mb + 10:
            assert time.monotonic() < deadline, (begun_mb, resident_mb(gateway))
            time.sleep(0.2)
        assert client.get(f"/runs/{run}").json()["code"] == LARGE_CODE
