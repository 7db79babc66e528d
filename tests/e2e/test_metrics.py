"""`/metrics` and `/status.json` of a real gateway with PostgreSQL and the process engine: what happens is counted."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_rig import PATIENCE_S, Gateway, fork
from store_fixtures import copy_template_data_dir

RUNS = "cellblock_runs_total"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
WAITING = """
import os, time
while not os.path.exists({!r}):
    time.sleep(0.01)
"""
STAGES = "cellblock_run_stage_duration_seconds_count"

Samples = dict[str, dict[tuple[str, ...], float]]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    copy_template_data_dir(parent / "data")
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


def scrape(gateway: Gateway) -> Samples:
    """The values of each metric, by the values of its labels in the order of their names."""
    samples: Samples = {}
    for family in text_string_to_metric_families(httpx.get(f"{gateway.url}/metrics", timeout=30).text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return samples


def until(gateway: Gateway, condition: Callable[[Samples], bool]) -> Samples:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition(samples := scrape(gateway)):
        assert time.monotonic() < deadline_s, samples
        time.sleep(0.05)
    return samples


def run(gateway: Gateway, code: str, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{gateway.url}/runcode", json={"code": code, **fields}, headers={"traceparent": TRACEPARENT}, timeout=60
    )
    shape: dict[str, Any] = answer.json()
    return shape


def counted(samples: Samples) -> dict[str, float]:
    """How many runs of each status there were, of those that there were."""
    return {status: count for (language, status), count in samples[RUNS].items() if count and language == "python"}


def run_some_of_each_kind(gateway: Gateway) -> None:
    assert run(gateway, "print('a' * 1000); open('a.bin', 'wb').write(bytes(5000))")["status"] == "ok"
    assert run(gateway, "1", session_id="s")["status"] == "ok"
    assert run(gateway, "1/0")["status"] == "error"
    assert run(gateway, "while True: pass", timeout=0.5)["status"] == "timeout"
    assert run(gateway, "import os; os._exit(3)")["status"] == "kernel_died"
    with ThreadPoolExecutor() as threads:
        sleeping = threads.submit(run, gateway, "import time; time.sleep(60)", session_id="t")
        until(gateway, lambda samples: samples["cellblock_sessions"]["busy",] == 1)
        waiting = threads.submit(run, gateway, "1", session_id="t")
        until(gateway, lambda samples: samples["cellblock_runs_in_progress"]["queued",] == 1)
        now = status(gateway)["now"]
        assert (now["runs"], now["sessions"]["busy"]) == ({"running": 1, "queued": 1}, 1)
        for one in httpx.get(f"{gateway.url}/runs?session_id=t").json()["runs"]:
            run_id = one["run_id"]
            assert httpx.post(f"{gateway.url}/runs/{run_id}/cancel").status_code == 202
        assert sleeping.result()["status"] == waiting.result()["status"] == "cancelled"
    assert httpx.get(f"{gateway.url}/runs/{run_id}").status_code == 200


def assert_all_counted(samples: Samples) -> None:
    expected = {"ok": 2, "error": 1, "timeout": 1, "kernel_died": 1, "cancelled": 2}
    assert counted(samples) == expected
    languages = ("python", "bash", "javascript", "typescript")
    assert set(samples[RUNS]) == {(name, status) for name in languages for status in (*expected, "oom", "lost")}
    assert samples[STAGES]["commit",] == samples[STAGES]["claim",] == samples[STAGES]["handler",] == 7
    assert samples["cellblock_kernel_deaths_total"]["exited",] == 1
    assert samples["cellblock_kernels"]["python3", "working"] >= 2
    assert samples["cellblock_sandbox_launches_total"]["python3", "ok"] >= 6
    assert samples["cellblock_database_up"] == {(): 1}
    assert samples["cellblock_database_size_bytes"][()] > 1_000_000
    assert samples["cellblock_written_bytes_total"]["artifacts",] >= 5000
    assert samples["cellblock_written_bytes_total"]["answers",] >= 1000
    assert sum(samples["cellblock_database_connections_max"].values()) == 9
    assert samples["cellblock_http_requests_total"]["POST", "/runcode", "200"] == 6
    assert samples["cellblock_http_requests_total"]["POST", "/runcode", "504"] == 1
    assert samples["cellblock_http_requests_total"]["GET", "/runs/{id}", "200"] == 1
    assert "cellblock_zygote_up" not in samples


def status(gateway: Gateway) -> Any:
    return httpx.get(f"{gateway.url}/status.json", timeout=30).json()


def assert_all_shown(gateway: Gateway, samples: Samples) -> None:
    """The status page counts as `/metrics` does."""
    shown = status(gateway)
    since = shown["since_start"]
    assert since["ended"] == {name: counted(samples).get(name, 0) for name in since["ended"]}
    assert since["deaths"]["exited"] == 1
    assert {stage["stage"]: stage["count"] for stage in since["stages"]}["commit"] == 7
    assert samples["cellblock_run_duration_seconds_count"]["whole",] == 7
    own_s, whole_s = (samples["cellblock_run_duration_seconds_sum"][part,] for part in ("own", "whole"))
    assert 0 < own_s < whole_s
    assert whole_s > 0.5
    assert shown["now"]["database"]["reachable"]
    assert (shown["gateway"]["engine"], shown["gateway"]["isolation"]) == ("process", "none")


def test_runs_are_counted_by_status_and_anew_after_a_crash(data_dir: Path) -> None:
    gate = data_dir.parent / "gate"
    first = fork(data_dir)
    try:
        run_some_of_each_kind(first)
        counted_once = until(first, lambda samples: samples["cellblock_sessions"]["idle",] == 2)
        assert_all_counted(counted_once)
        assert_all_shown(first, counted_once)
        with ThreadPoolExecutor() as threads:
            cut = threads.submit(run, first, WAITING.format(str(gate)), session_id="s")
            until(first, lambda samples: samples["cellblock_runs_in_progress"]["running",] == 1)
            first.process.kill()
            first.process.wait(PATIENCE_S)
            with pytest.raises(httpx.TransportError):
                cut.result()
        lines = [json.loads(line) for line in first.log.read_text().splitlines()]
        assert {line.get("trace_id") for line in lines if line.get("route") == "/runcode"} == {TRACE}
    finally:
        first.process.kill()
        first.process.wait(PATIENCE_S)

    second = fork(data_dir)
    try:
        assert counted(scrape(second)) == {}
        assert not any(status(second)["since_start"]["ended"].values())
        gate.touch()
        # What it has taken over it counts when that ends; of what was before it knows nothing.
        samples = until(second, lambda samples: bool(counted(samples)))
        assert counted(samples) == {"ok": 1}
        assert samples[STAGES]["handler",] == 0
        newest = httpx.get(f"{second.url}/runs").json()["runs"][0]["run_id"]
        assert httpx.get(f"{second.url}/runs/{newest}").json()["traceparent"] == TRACEPARENT
        assert set(samples["cellblock_kernel_deaths_total"].values()) == {0}
        assert ("POST", "/runcode", "200") not in samples["cellblock_http_requests_total"]
        for session_id in ("s", "t"):
            assert httpx.delete(f"{second.url}/sessions/{session_id}", timeout=30).status_code == 204
        assert scrape(second)["cellblock_sessions"]["idle",] == 0
    finally:
        second.stop(signal.SIGTERM)
