"""A gateway that a command starts for itself. The engine is `process`, as in test_serve."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serve_rig import PATIENCE_S, environment, processes_of
from store_fixtures import copy_template_data_dir

PROGRAM = """
import asyncio
import sys
from gateway.cli.one_off import one_off
from gateway.client import AsyncClient

async def main():
    async with one_off() as url, AsyncClient(url, "") as client:
        for session_id in sys.argv[1:]:
            await client.session(session_id)
        print((await client.run("6 * 7")).text, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def data_dir(short_dir: Path) -> Path:
    """The one-off gateway's database is there already: it takes seconds to make."""
    copy_template_data_dir(short_dir / "d" / "one-off")
    return short_dir / "d"


def start(data_dir: Path, *sessions: str, **variables: str) -> subprocess.Popen[str]:
    env = environment(data_dir, **{"CELLBLOCK_URL": "http://nowhere", **variables})
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *sessions], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until_nothing_is_left(data_dir: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := processes_of(data_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "status", "sessions"),
    [
        (signal.SIGTERM, 143, ["left"]),
        (signal.SIGKILL, -9, []),  # a session would wait five minutes for the next gateway
    ],
)
def test_it_ends_with_the_command(data_dir: Path, number: signal.Signals, status: int, sessions: list[str]) -> None:
    with start(data_dir, *sessions) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "42\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == status
    wait_until_nothing_is_left(data_dir)


def test_why_it_does_not_start_is_one_sentence(data_dir: Path) -> None:
    with start(data_dir, CELLBLOCK_ENGINE_NAME="docker", DOCKER_HOST="unix:///nowhere") as process:
        _, complaint = process.communicate(timeout=PATIENCE_S)
    assert "SetUpFailed: No gateway could be started: " in complaint
    assert "The Docker engine does not answer" in complaint
