"""A gateway under systemd, or what looks like it: told when it can run code, and that it ends."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_rig import PATIENCE_S, fork
from store_fixtures import copy_template_data_dir


@pytest.fixture
def data_dir() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    copy_template_data_dir(parent / "data")
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


def test_a_gateway_says_that_it_is_ready_and_that_it_stops(data_dir: Path) -> None:
    address = str(data_dir.parent / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(PATIENCE_S)
        gateway = fork(data_dir, NOTIFY_SOCKET=address)
        try:
            while "READY=1" not in systemd.recv(4096).decode().split("\n"):
                pass
        finally:
            assert gateway.stop(signal.SIGTERM) == 0
        while "STOPPING=1" not in systemd.recv(4096).decode().split("\n"):
            pass
