"""A gateway under pressure, and everybody else who wants an answer: a real process, the process engine, loopback."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from serve_rig import Gateway, start
from store_fixtures import copy_template_data_dir

FEW_FILES = 256


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    parent = Path(tempfile.mkdtemp(prefix="cb-"))  # not pytest's tmp_path: socket paths end at 107 bytes
    copy_template_data_dir(parent / "data")
    gateway = start(parent / "data", open_files=FEW_FILES, CELLBLOCK_POOL_MAX="8")
    yield gateway
    gateway.stop(signal.SIGTERM)
    shutil.rmtree(parent, ignore_errors=True)


def dial(gateway: Gateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_more_silent_connections_than_descriptors_leave_a_short_log(gateway: Gateway) -> None:
    with ExitStack() as stack:
        for _ in range(2 * FEW_FILES):
            stack.enter_context(closing(dial(gateway)))
    assert httpx.get(f"{gateway.url}/healthz", timeout=60).status_code == 200
    assert httpx.post(f"{gateway.url}/runcode", json={"code": "print(1)"}, timeout=60).json()["output"] == "1\n"
    log = gateway.log.read_text()
    assert "Traceback" not in log
    assert log.count('"few_descriptors"') == 1
    assert '"connections": 168' in log
    assert log.count("accepting_paused") <= 1
