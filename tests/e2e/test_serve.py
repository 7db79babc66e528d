"""`cellblock serve` as an operator meets it: a real process, embedded PostgreSQL, the process engine."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from held_ports import held_port
from serve_rig import PATIENCE_S, Gateway, environment, processes_of, run_command, start
from store_fixtures import copy_template_data_dir

TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not pytest's tmp_path: socket paths end at 107 bytes.
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def used_data_dir(data_dir: Path) -> Path:
    """One that has a database already; `initdb` and the migrations would take seconds."""
    copy_template_data_dir(data_dir)
    return data_dir


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    gateway = start(parent / "data")
    yield gateway
    gateway.stop(signal.SIGTERM)
    shutil.rmtree(parent, ignore_errors=True)


def until_it_runs(gateway: Gateway) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while [run["status"] for run in httpx.get(f"{gateway.url}/runs").json()["runs"]] != ["running"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_hello_world_by_post_and_get(gateway: Gateway) -> None:
    code = "print('Hello, World!')"
    posted = httpx.post(
        f"{gateway.url}/runcode", json={"languageType": "python", "variables": {}, "code": code}, timeout=30
    )
    got = httpx.get(
        f"{gateway.url}/runcode", params={"languageType": "python", "variables": "{}", "code": code}, timeout=30
    )
    for answer in (posted, got):
        assert answer.status_code == 200
        assert answer.json()["output"] == "Hello, World!\n"
        assert answer.json()["status"] == "ok"


def test_a_picture_comes_back_from_the_database(gateway: Gateway) -> None:
    code = f"import base64; open('triangle.png', 'wb').write(base64.b64decode('{TINY_PNG}'))"
    answer = httpx.post(f"{gateway.url}/runcode", json={"code": code}, timeout=30).json()
    picture = httpx.get(answer["images"]["triangle.png"])
    assert picture.headers["Content-Type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG\r\n\x1a\n")


def test_variables_errors_and_odd_characters(gateway: Gateway) -> None:
    fields = {"code": "print(x['a'], y)\n1/0", "variables": {"x": {"a": [1.5]}, "y": None}}
    answer = httpx.post(f"{gateway.url}/runcode", json=fields, timeout=30).json()
    assert answer["output"] == "[1.5] None\n"
    assert (answer["status"], answer["exception"]["name"]) == ("error", "ZeroDivisionError")
    assert answer["exception"]["line"] == 2
    body = rb'{"code": "print(repr(x))", "variables": {"x": "\u0000\ud800"}}'
    odd = httpx.post(f"{gateway.url}/runcode", content=body, timeout=30)
    assert odd.status_code == 200
    assert odd.json()["output"] == r"'\x00\ud800'" + "\n"


def test_a_run_past_its_time_is_504(gateway: Gateway) -> None:
    fields = {"code": "print('so far', flush=True)\nwhile True: pass", "timeout": 1}
    answer = httpx.post(f"{gateway.url}/runcode", json=fields, timeout=30)
    assert answer.status_code == 504
    assert (answer.json()["status"], answer.json()["code"]) == ("timeout", "timeout")
    assert answer.json()["output"] == "so far\n"


def test_what_was_chosen_is_printed_with_a_line_that_works(gateway: Gateway) -> None:
    printed = gateway.output.read_text()
    assert "process" in printed
    assert "isolates nothing" in printed
    assert "embedded PostgreSQL" in printed
    line = re.search(r"^ *(curl .*)$", printed, re.MULTILINE)
    assert line is not None
    answer = subprocess.run(["bash", "-c", line[1]], capture_output=True, text=True, timeout=30, check=True)
    assert '"output":"Hello, World!\\n"' in answer.stdout


def test_the_log_is_json_without_code(gateway: Gateway) -> None:
    httpx.get(f"{gateway.url}/runcode", params={"code": "very_secret = 1"}, timeout=30)
    deadline_s = time.monotonic() + 10
    while '"route": "/runcode"' not in (log := gateway.log.read_text()):  # it is written behind the answer's back
        assert time.monotonic() < deadline_s, log
        time.sleep(0.05)
    lines = log.splitlines()
    assert all(line.startswith("{") for line in lines)
    assert not any("very_secret" in line for line in lines)


def test_the_data_directory_is_private_and_held_by_one_gateway(gateway: Gateway) -> None:
    assert stat.S_IMODE(gateway.data_dir.stat().st_mode) & 0o007 == 0
    second = run_command(gateway.data_dir, "serve", PORT="0")
    assert second.returncode == 1
    assert f"process {gateway.process.pid}" in second.stderr
    assert "server.data_dir" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_port_in_use_is_said_plainly(gateway: Gateway, data_dir: Path) -> None:
    port = gateway.url.rpartition(":")[2]
    second = run_command(data_dir, "serve", PORT=port)
    assert second.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_dead_database_is_said_plainly(data_dir: Path) -> None:
    with held_port() as port:
        url = f"postgresql://user:hunter2@127.0.0.1:{port}/cellblock"
        ended = run_command(data_dir, "serve", PORT="0", CELLBLOCK_DATABASE_URL=url)
    assert ended.returncode == 1
    assert "database" in ended.stderr
    assert "hunter2" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_a_mistake_in_the_configuration_is_bad_usage(data_dir: Path) -> None:
    ended = run_command(data_dir, "serve", CELLBLOCK_SERVER_PROT="1")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "CELLBLOCK_SERVER_PORT" in ended.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["build", "--help"], ["migrate", "--help"], ["doctor", "--help"]]
)
def test_help(data_dir: Path, arguments: list[str]) -> None:
    helped = run_command(data_dir, *arguments)
    assert helped.returncode == 0
    assert "Usage" in helped.stdout


def test_the_doctor_looks_and_changes_nothing(gateway: Gateway, data_dir: Path) -> None:
    fresh = run_command(data_dir, "doctor", "--json", PORT="0")
    findings = {finding["name"]: finding for finding in json.loads(fresh.stdout)}
    assert fresh.returncode == 0, fresh.stdout
    assert findings["engine"]["level"] == "warn"
    assert findings["database"]["level"] == "ok"
    assert set(findings["database"]) == {"name", "level", "what", "what_to_do", "group"}
    assert not data_dir.exists()
    beside = run_command(gateway.data_dir, "doctor")
    assert beside.returncode == 0
    assert "it answers: PostgreSQL 18" in beside.stdout
    assert re.search(r"tables +of this version", beside.stdout)
    assert f"the gateway listens at {gateway.url}" in beside.stdout
    assert httpx.get(f"{gateway.url}/readyz").status_code == 200


def test_the_doctor_fails_where_the_database_does_not_answer(data_dir: Path) -> None:
    with held_port() as port:
        ended = run_command(data_dir, "doctor", CELLBLOCK_DATABASE_URL=f"postgresql://127.0.0.1:{port}/x")
    assert ended.returncode == 1
    assert "FAIL" in ended.stdout
    assert "database.url" in ended.stdout


def test_migrate_says_whether_there_was_something_to_do(data_dir: Path) -> None:
    assert "is up to date now" in run_command(data_dir, "migrate").stdout
    assert "was up to date already" in run_command(data_dir, "migrate").stdout
    assert processes_of(data_dir) == []


def test_sigterm_lets_runs_end_and_leaves_nothing_behind(used_data_dir: Path) -> None:
    gateway = start(used_data_dir)
    with ThreadPoolExecutor() as threads:
        fields = {"code": "import time\nprint(1, flush=True)\ntime.sleep(3)\nprint(2)"}
        running = threads.submit(httpx.post, f"{gateway.url}/runcode", json=fields, timeout=30)
        until_it_runs(gateway)
        gateway.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        ready = httpx.get(f"{gateway.url}/readyz")
        refused = httpx.post(f"{gateway.url}/runcode", json={"code": "1"})
        answer = running.result()
    assert (ready.status_code, refused.status_code, refused.json()["code"]) == (503, 503, "unavailable")
    assert "Retry-After" in refused.headers
    assert (answer.status_code, answer.json()["output"]) == (200, "1\n2\n")
    assert gateway.process.wait(PATIENCE_S) == 0
    assert processes_of(used_data_dir) == []
    assert list((used_data_dir / "s").iterdir()) == []


def test_a_second_signal_hurries(used_data_dir: Path) -> None:
    gateway = start(used_data_dir)
    with ThreadPoolExecutor() as threads:
        fields = {"code": "import time\ntime.sleep(60)", "timeout": 100}
        running = threads.submit(httpx.post, f"{gateway.url}/runcode", json=fields, timeout=60)
        until_it_runs(gateway)
        began = time.monotonic()
        assert gateway.stop(signal.SIGTERM, signal.SIGINT) == 0
        assert time.monotonic() - began < 15
        refused = running.result()
        assert (refused.status_code, refused.json()["code"]) == (500, "end_not_stored")
        assert "goes on in its sandbox" in refused.json()["error"]
    # Its kernel waits for the next gateway, which takes over what nobody has ended.
    assert processes_of(used_data_dir) != []
    second = start(used_data_dir)
    run_id = httpx.get(f"{second.url}/runs").json()["runs"][0]["run_id"]
    assert httpx.get(f"{second.url}/runs/{run_id}").json()["status"] == "running"
    assert httpx.post(f"{second.url}/runs/{run_id}/cancel").status_code == 202
    assert second.stop(signal.SIGTERM) == 0
    assert processes_of(used_data_dir) == []


def test_a_signal_during_start_up_stops_it_cleanly(data_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        env=environment(data_dir, PORT="0"),
        cwd=data_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (data_dir / "lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert processes_of(data_dir) == []


def test_after_kill_9_the_next_gateway_takes_over(used_data_dir: Path) -> None:
    first = start(used_data_dir)
    gateway_id = (used_data_dir / "gateway_id").read_text()
    code = f"import base64; open('a.png', 'wb').write(base64.b64decode('{TINY_PNG}'))"
    picture = httpx.post(f"{first.url}/runcode", json={"code": code}, timeout=30).json()["images"]["a.png"]
    first.process.kill()
    first.process.wait(PATIENCE_S)
    second = start(used_data_dir)
    try:
        assert (used_data_dir / "gateway_id").read_text() == gateway_id
        assert httpx.get(picture.replace(first.url, second.url)).status_code == 200
        answer = httpx.post(f"{second.url}/runcode", json={"code": "print(1)"}, timeout=30)
        assert answer.json()["output"] == "1\n"
    finally:
        assert second.stop(signal.SIGTERM) == 0
    assert processes_of(used_data_dir) == []


def test_with_tokens_nobody_comes_in_without(used_data_dir: Path) -> None:
    gateway = start(used_data_dir, CELLBLOCK_AUTH_TOKENS=hashlib.sha256(b"alpha").hexdigest())
    try:
        url = f"{gateway.url}/runcode"
        assert httpx.post(url, json={"code": "1"}).status_code == 401
        answer = httpx.post(url, json={"code": "print(1)"}, headers={"Authorization": "Bearer alpha"}, timeout=30)
        assert answer.json()["output"] == "1\n"
        assert "alpha" not in gateway.log.read_text() + gateway.output.read_text()
    finally:
        assert gateway.stop(signal.SIGTERM) == 0
