"""A dump of a database in use, restored on another machine: docs/operating.md says which files go with it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serve_rig import PATIENCE_S, Gateway, fork
from store_fixtures import copy_template_data_dir, running_postgres

from gateway.store.embedded import postgres as embedded_postgres

TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SAVE_A_PICTURE = f"import base64\nopen('p.png', 'wb').write(base64.b64decode('{TINY_PNG}'))\nx = 6\nprint('drawn')"
FOREVER = "import time\nprint('begun', flush=True)\ntime.sleep(600)"


@pytest.fixture
def parent() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    yield parent
    shutil.rmtree(parent, ignore_errors=True)


def pg(program: str, pg_dir: Path, *arguments: str | Path) -> None:
    """One of the programs that come with the embedded PostgreSQL, over its socket."""
    programs = embedded_postgres._programs(pg_dir)
    subprocess.run(
        [programs / program, "-h", pg_dir, "-U", "postgres", "-d", "postgres", *arguments],
        check=True,
        timeout=PATIENCE_S,
    )


def data_dir(machine: Path) -> Path:
    """A machine's own, with a database that has nothing in it."""
    machine.mkdir()
    copy_template_data_dir(machine / "data")
    return machine / "data"


def call(gateway: Gateway, **fields: object) -> dict[str, object]:
    answer: dict[str, object] = httpx.post(f"{gateway.url}/runcode", json=fields, timeout=60).json()
    return answer


def begin(gateway: Gateway, code: str) -> str:
    """Start a run that goes on; returns its id."""
    with httpx.stream("POST", f"{gateway.url}/runcode", json={"code": code, "stream": True, "timeout": 600}) as events:
        for line in events.iter_lines():
            if "begun" in line:
                break
    (run,) = httpx.get(f"{gateway.url}/runs?status=running").json()["runs"]
    return str(run["run_id"])


def ended(gateway: Gateway, run_id: str) -> dict[str, object]:
    deadline_s = time.monotonic() + PATIENCE_S
    while (answer := httpx.get(f"{gateway.url}/runs/{run_id}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return dict(answer)


def test_what_was_dumped_while_serving_is_there_after_it_is_restored_elsewhere(parent: Path) -> None:
    old_dir, new_dir, dump = data_dir(parent / "old"), data_dir(parent / "new"), parent / "cellblock.dump"
    old = fork(old_dir)
    try:
        made = call(old, code=SAVE_A_PICTURE, session_id="chat")
        (address,) = made["images"].values()  # type: ignore[attr-defined]
        picture = httpx.get(address).content
        unfinished = begin(old, FOREVER)
        pg("pg_dump", old_dir / "pg", "--format=custom", f"--file={dump}")
        assert call(old, code="print(1)")["output"] == "1\n"
    finally:
        old.stop(signal.SIGTERM, signal.SIGTERM)

    with running_postgres(new_dir):
        pg("pg_restore", new_dir / "pg", "--clean", "--if-exists", "--single-transaction", dump)
    for name in ("gateway_id", "secret"):
        shutil.copy2(old_dir / name, new_dir / name)
    new = fork(new_dir)
    try:
        kept = httpx.get(f"{new.url}/runs/{made['run_id']}").json()
        assert (kept["status"], kept["output"]) == ("ok", "drawn\n")
        assert httpx.get(f"{new.url}{httpx.URL(address).path}").content == picture
        lost = ended(new, unfinished)
        assert (lost["status"], lost["output"]) == ("lost", "begun\n")
        again = call(new, code="x", session_id="chat")
        assert (again["status"], again.get("session_lost")) == ("error", True)
        assert len(httpx.get(f"{new.url}/runs?session_id=chat").json()["runs"]) == 2
    finally:
        new.stop(signal.SIGTERM)
