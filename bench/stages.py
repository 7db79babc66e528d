"""Where the time of a run goes: the histograms that a gateway keeps of its stages, after calls to a session.

    .venv/bin/python bench/stages.py --calls 500

The gateway is a real one, with an embedded PostgreSQL and the process engine (`--engine docker` for containers). It
writes its histograms to its log when it stops, at a level that is switched on here.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from gateway import app
from gateway.config import loader
from gateway.host.logs import configure_logs

SESSION = "bench"


def main() -> None:
    """Measure and print; or be the gateway that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--engine", choices=["process", "docker"], default="process")
    parser.add_argument("--stateless", action="store_true", help="a kernel of its own for every call")
    parser.add_argument("--gateway", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gateway:
        serve()
    else:
        session = {} if arguments.stateless else {"session_id": SESSION}
        show(measure(arguments.engine, {"code": "print(1)", **session}, arguments.calls))


def serve() -> None:
    """The gateway, with the log's lowest level."""
    configure_logs()
    logging.getLogger("cellblock.app").setLevel(logging.DEBUG)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.serve(loader.load(None, os.environ), os.environ, Console(stderr=True)))


def measure(engine: str, body: dict[str, Any], calls: int) -> dict[str, Any]:
    """The stages of so many calls, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="cbb") as root:
        log = Path(root, "log")
        settings = {"SERVER_DATA_DIR": f"{root}/data", "SERVER_PORT": str(port), "ENGINE_NAME": engine}
        if engine == "process":
            settings |= {"BUILD_DEPENDENCIES": "[]", "BUILD_PRELOAD": "[]"}
        environment = os.environ | {f"CELLBLOCK_{name}": value for name, value in settings.items()}
        with log.open("wb") as output:
            gateway = subprocess.Popen([sys.executable, __file__, "--gateway"], env=environment, stderr=output)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            while not is_ready(connection):
                assert gateway.poll() is None, log.read_text()
                time.sleep(0.1)
            for _ in range(calls):
                connection.request("POST", "/runcode", json.dumps(body), {"Content-Type": "application/json"})
                answer = json.loads(connection.getresponse().read())
                assert answer["output"] == "1\n", answer
        finally:
            connection.close()
            gateway.send_signal(signal.SIGTERM)
            gateway.wait(60)
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next(line for line in lines if line.get("event") == "run_stages")


def is_ready(connection: http.client.HTTPConnection) -> bool:
    """Whether a kernel waits."""
    try:
        connection.request("GET", "/readyz")
        return bool(json.loads(connection.getresponse().read()).get("warm"))
    except OSError:
        connection.close()
        return False


def show(stages: dict[str, Any]) -> None:
    """A table: what a stage takes."""
    print(f"{'stage':14}{'runs':>7}{'mean ms':>10}{'p50 ms':>10}{'p95 ms':>10}")
    for name, stage in stages.items():
        if isinstance(stage, dict):
            mean_ms = stage["sum_s"] / stage["count"] * 1e3
            print(f"{name:14}{stage['count']:7}{mean_ms:10.2f}{stage['p50_ms']:10.2f}{stage['p95_ms']:10.2f}")


if __name__ == "__main__":
    main()
