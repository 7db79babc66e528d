"""A gateway under pressure, and everybody else who wants an answer: a real process, the process engine, loopback."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import psutil
import pytest
from serve_rig import Gateway, start
from store_fixtures import copy_template_data_dir

FEW_FILES = 256
CONNECTIONS = 168
PATIENCE_S = 60

POST = b"POST /runcode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
UPGRADE = (
    b"GET /runcode/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OPENINGS = {
    "silent": b"",
    "slow header": POST[:40],
    "slow body": POST + b"{",
    "slow chunk": POST.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"100\r\n{",
    "kept alive": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "WebSocket": UPGRADE,
}

FLOOD = """
import base64, os
from IPython.display import publish_display_data
image = base64.b64encode(b"\\x89PNG\\r\\n\\x1a\\n" + os.urandom(9 << 20)).decode()
while True:
    publish_display_data({"image/png": image})
"""
FLOODS = 3
QUIET_RUNS = 3
FLOOD_LIMIT_S = 60


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    parent = Path(tempfile.mkdtemp(prefix="cb-"))  # not pytest's tmp_path: socket paths end at 107 bytes
    copy_template_data_dir(parent / "data")
    gateway = start(parent / "data", open_files=FEW_FILES, CELLBLOCK_POOL_MAX="8")
    yield gateway
    gateway.stop(signal.SIGTERM)
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def crowd(gateway: Gateway) -> Iterator[Callable[[bytes], None]]:
    """Open twice as many connections as the gateway may open files, and leave them alone after these bytes."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with ExitStack() as stack:

        def gather(opening: bytes) -> None:
            for _ in range(2 * FEW_FILES):
                connection = stack.enter_context(closing(socket.create_connection((host, int(port)), PATIENCE_S)))
                try:
                    connection.sendall(opening)
                except ConnectionError:
                    continue  # refused already

        yield gather


def until_answered(gateway: Gateway) -> None:
    """Run code as a client does that obeys `Retry-After`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        answer = httpx.post(f"{gateway.url}/runcode", json={"code": "print(1)"}, timeout=PATIENCE_S)
        if answer.status_code == 200:
            assert answer.json()["output"] == "1\n"
            return
        assert answer.status_code == 503
        assert answer.json()["code"] == "unavailable"
        assert time.monotonic() < deadline_s
        time.sleep(int(answer.headers["Retry-After"]))


@pytest.mark.parametrize("kind", OPENINGS)
def test_more_connections_than_descriptors_shut_nobody_out(
    gateway: Gateway, crowd: Callable[[bytes], None], kind: str
) -> None:
    crowd(OPENINGS[kind])
    for path in ("/healthz", "/readyz"):
        assert httpx.get(f"{gateway.url}{path}", timeout=PATIENCE_S).status_code == 200
    until_answered(gateway)
    assert psutil.Process(gateway.process.pid).num_fds() < FEW_FILES
    log = gateway.log.read_text()
    assert "Traceback" not in log
    assert "accepting_paused" not in log


def test_what_few_descriptors_do_for_is_in_the_log(gateway: Gateway) -> None:
    log = gateway.log.read_text()
    assert log.count('"few_descriptors"') == 1
    assert f'"connections": {CONNECTIONS}' in log


@pytest.mark.timeout(420)
def test_sessions_that_flood_hold_up_neither_health_nor_others() -> None:
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    copy_template_data_dir(parent / "data")
    gateway = start(parent / "data", CELLBLOCK_LIMITS_MAX_TIMEOUT=str(FLOOD_LIMIT_S))

    def run(session: str, code: str) -> int:
        body = {"code": code, "session_id": session, "timeout": FLOOD_LIMIT_S}
        return httpx.post(f"{gateway.url}/runcode", json=body, timeout=2 * FLOOD_LIMIT_S).status_code

    def delete(session: str) -> int:
        return httpx.delete(f"{gateway.url}/sessions/{session}", timeout=PATIENCE_S).status_code

    names = [f"flood-{number}" for number in range(FLOODS)]
    try:
        for name in [*names, "quiet"]:
            assert run(name, "1") == 200
        with ThreadPoolExecutor(FLOODS) as threads:
            floods = [threads.submit(run, name, FLOOD) for name in names]
            for _ in range(QUIET_RUNS):
                time.sleep(0.5)
                assert httpx.get(f"{gateway.url}/healthz", timeout=PATIENCE_S).status_code == 200
                assert run("quiet", "print(1)") == 200
            assert not any(flood.done() for flood in floods)
            with ThreadPoolExecutor(FLOODS) as more_threads:
                assert list(more_threads.map(delete, names)) == [204] * FLOODS
            for flood in floods:
                flood.result()
    finally:
        gateway.stop(signal.SIGTERM, signal.SIGTERM)
        shutil.rmtree(parent, ignore_errors=True)
