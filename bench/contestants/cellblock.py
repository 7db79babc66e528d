"""A real gateway process, asked over HTTP and WebSocket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from bench.accounting import Engine, cpu_s, pss_bytes, tree
from bench.contestants.installed import Unavailable
from bench.contestants.jupyter import HttpServer

_PATIENCE_S = 180


class Gateway(HttpServer):
    """`cellblock serve` with an embedded PostgreSQL, in a data directory of its own."""

    name = "Cellblock"

    def __init__(self, image: str, **settings: str) -> None:
        """`settings` are further variables, without the prefix."""
        super().__init__()
        self._variables = {
            "SERVER_PORT": str(self.port),
            "ENGINE_NAME": "docker",
            "ENGINE_KERNEL_IMAGE": image,
            "POOL_MAX": "140",
            "SESSIONS_MAX_PER_TENANT": "120",
            "SESSIONS_IDLE_TIMEOUT": "7200",
            **settings,
        }
        self._pool = int(settings.get("POOL_SIZE", "2"))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbb")))
            self._data_dir = root / "gateway"
            variables = {f"CELLBLOCK_{name}": value for name, value in self._variables.items()}
            variables["CELLBLOCK_SERVER_DATA_DIR"] = str(self._data_dir)
            log = stack.enter_context((root / "log").open("wb"))
            command = [sys.executable, "-m", "gateway", "serve"]
            self._process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
            self.pid = self._process.pid
            stack.callback(self._process.wait, _PATIENCE_S)
            stack.callback(self._process.send_signal, signal.SIGTERM)
            self._begin(root / "log")
            stack.callback(self.end_sessions)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def gateway_id(self) -> str:
        """What its containers are labelled with."""
        return (self._data_dir / "gateway_id").read_text().strip()

    def warm(self) -> int:
        """How many kernels wait; -1 while the gateway is not ready."""
        try:
            return int(self.ask("GET", "/readyz")["warm"])
        except (OSError, AssertionError):
            return -1

    def until_warm(self, least: int | None = None, settle_s: float = 0.0, poll_s: float = 0.05) -> None:
        """Wait until the pool is full, then for so long."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.warm() < (self._pool if least is None else least):
            assert time.monotonic() < deadline, "the pool is not refilled"
            time.sleep(poll_s)
        time.sleep(settle_s)

    def run(self, code: str, session: str | None = None) -> str:
        """`POST /runcode`, in a session or in a kernel of its own; returns the output."""
        place = {} if session is None else {"session_id": session}
        answer = self.ask("POST", "/runcode", {"code": code, "timeout": 120, **place})
        assert answer["status"] == "ok", answer
        return str(answer["output"])

    def fresh(self, code: str) -> tuple[str, float]:
        """Run in a container of its own. Kernels are started ahead, so nothing is known of their start."""
        return self.run(code), 0.0

    def end_sessions(self) -> None:
        """All of them."""
        for session in self.ask("GET", "/sessions")["sessions"]:
            self.ask("DELETE", f"/sessions/{session['session_id']}")

    def cpu(self) -> dict[str, float]:
        """Of the gateway and its database."""
        return {"gateway": cpu_s(self.pid), "database": sum(map(cpu_s, self._database()))}

    def memory(self, engine: Engine) -> dict[str, int]:
        """Of its processes and containers; `shared` is what its sandboxes have in common."""
        sandboxes = engine.sandboxes(self.gateway_id)
        return {
            "gateway": pss_bytes([self.pid]),
            "database": pss_bytes(self._database()),
            "sandboxes": sum(pss_bytes(sandbox.pids()) for sandbox in sandboxes),
            "shared": engine.shared_bytes(),
        }

    def _database(self) -> list[int]:
        return tree(int((self._data_dir / "pg/postmaster.pid").read_text().split()[0]))

    def _begin(self, log: Path) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self.warm() < self._pool:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"the gateway does not answer: {log.read_text()[-300:].strip()}")
            time.sleep(0.05)
