"""A gateway that can be killed at any moment and started again on the same data, and clients that do not give up.

Every client names its requests by an `Idempotency-Key`, and sends one again until it has the answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from engine_fixtures import ZYGOTE_VARIABLE
from forked_program import ForkedProgram
from held_ports import hold, port_of

REPOSITORY = Path(__file__).parents[2]
START_S = 60.0
ANSWER_S = 300.0


class CrashableGateway:
    """The state: the process of the moment, and how often it was started."""

    def __init__(self, directory: Path, engine: str, **settings: str) -> None:
        self.directory = directory
        self.data_dir = directory / "d"
        self.crash_file = directory / "crash"
        self.log = directory / "log"
        self.starts = 0
        self._held = hold()
        self.url = f"http://127.0.0.1:{port_of(self._held)}"
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CELLBLOCK_") or k == ZYGOTE_VARIABLE},
            "PYTHONPATH": str(REPOSITORY),
            "PORT": str(port_of(self._held)),
            "CELLBLOCK_SERVER_DATA_DIR": str(self.data_dir),
            "CELLBLOCK_ENGINE_NAME": engine,
            "CELLBLOCK_BUILD_PRELOAD": "[]",
            "CELLBLOCK_POOL_SIZE": "1",
            "CRASH_FILE": str(self.crash_file),
            **({"CELLBLOCK_BUILD_DEPENDENCIES": "[]"} if engine == "process" else {}),  # kernels of this environment
            **settings,
        }
        self.process: ForkedProgram | None = None

    def launch(self) -> None:
        """Start it."""
        self.starts += 1
        self.process = ForkedProgram(
            "failpoints", "serve", env=self._environment, cwd=self.directory, stdout=self.log, stderr=self.log
        )

    async def start(self) -> None:
        """Start it and return once it answers."""
        self.launch()
        assert self.process is not None
        deadline = time.monotonic() + START_S
        async with httpx.AsyncClient(base_url=self.url) as client:
            while time.monotonic() < deadline:
                assert self.process.poll() is None, self.tail()
                try:
                    if (await client.get("/healthz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)
        raise AssertionError(self.tail())

    async def wait_until_ready(self) -> None:
        """Return once it has a warm kernel."""
        async with asyncio.timeout(START_S), httpx.AsyncClient(base_url=self.url) as client:
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)

    def arm(self, failpoint: str, count: int = 1) -> None:
        """Have it die there."""
        scratch = self.crash_file.with_suffix(".new")
        scratch.write_text(f"{failpoint} {count}")
        scratch.replace(self.crash_file)

    def disarm(self) -> None:
        self.crash_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def has_died(self) -> bool:
        assert self.process is not None
        return self.process.poll() == -signal.SIGKILL

    def stop(self) -> None:
        """End it as an operator does, and its sessions, which would wait for the next gateway; free its port."""
        self._held.close()
        if self.process is not None and self.process.poll() is None:
            with httpx.Client(base_url=self.url, timeout=30.0) as client:
                for session in client.get("/sessions").json()["sessions"]:
                    client.delete(f"/sessions/{session['session_id']}")
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@dataclass
class Client:
    """Asks until it is answered. `transport_errors` counts how often a gateway went away under it."""

    url: str
    transport_errors: int = 0
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.AsyncClient(base_url=self.url, timeout=60.0)

    async def close(self) -> None:
        await self.http.aclose()

    async def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send until there is an answer that is not "try again"."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                response = await self.http.request(method, path, **arguments)
            except httpx.TransportError:
                self.transport_errors += 1
            else:
                if response.status_code not in (429, 500, 503):
                    return response
            assert time.monotonic() < deadline, f"no answer to {method} {path}"
            await asyncio.sleep(0.05)

    async def run(self, key: str, code: str, **fields: Any) -> dict[str, Any]:
        """Run code once, however often that has to be asked."""
        fields = {"code": code, "timeout": 60, **fields}
        response = await self.ask("POST", "/runcode", json=fields, headers={"Idempotency-Key": key})
        answer: dict[str, Any] = response.json()
        assert response.status_code == 200, answer
        return answer

    async def run_streaming(self, key: str, code: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The same over server-sent events, which go on after the last one seen; returns the answer and all events."""
        events: list[dict[str, Any]] = []
        run_id: str | None = None
        deadline = time.monotonic() + ANSWER_S
        body = {"code": code, "timeout": 60, "stream": True, **fields}
        while not events or events[-1]["type"] != "end":
            assert time.monotonic() < deadline, f"no end of {key}: {events[-3:]}"
            if run_id is None:
                request = self.http.build_request("POST", "/runcode", json=body, headers={"Idempotency-Key": key})
            else:
                request = self.http.build_request("GET", f"/runs/{run_id}/events?after={events[-1]['seq']}")
            try:
                response = await self.http.send(request, stream=True)
                if response.status_code == 200:
                    async for line in response.aiter_lines():
                        if line.startswith("data: "):
                            events.append(json.loads(line[6:]))
                            run_id = events[-1]["run_id"]
                await response.aclose()
            except httpx.TransportError:
                self.transport_errors += 1
            await asyncio.sleep(0.05)
        return events[-1], events

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """All events of a run that has ended."""
        response = await self.ask("GET", f"/runs/{run_id}/events", headers={"Accept": "application/x-ndjson"})
        return [json.loads(line) for line in response.text.splitlines()]


def check_events(events: list[dict[str, Any]], answer: dict[str, Any]) -> None:
    """No gap, no repeat, one end; and the output is what the answer says."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events].count("end") == 1
    assert events[-1]["type"] == "end"
    assert events[0]["type"] == "started"
    assert "".join(event["text"] for event in events if event["type"] == "stdout") == answer["output"]
