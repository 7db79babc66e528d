"""`cellblock token` beside a running gateway."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from serve_rig import fork, run_command
from store_fixtures import copy_template_data_dir


def eventually(status: Callable[[], int], wanted: int) -> None:
    deadline = time.monotonic() + 30
    while status() != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_tokens_are_made_and_revoked_while_the_gateway_runs() -> None:
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    copy_template_data_dir(directory / "d")
    gateway = fork(directory / "d", CELLBLOCK_POOL_SIZE="0")
    try:
        with httpx.Client(base_url=gateway.url) as http:

            def listed(token: str = "") -> int:
                return http.get("/runs", headers={"Authorization": f"Bearer {token}"} if token else {}).status_code

            assert listed() == 200
            made = run_command(gateway.data_dir, "token", "create", "--tenant", "alice", "--name", "laptop", "--json")
            assert made.returncode == 0, made.stderr
            fields = json.loads(made.stdout)
            eventually(lambda: listed(fields["token"]), 200)
            eventually(listed, 401)
            assert listed("cb_wrong") == 401
            table = run_command(gateway.data_dir, "token", "list").stdout
            assert fields["id"] in table
            assert "laptop" in table
            assert fields["token"] not in table
            assert run_command(gateway.data_dir, "token", "revoke", fields["id"]).returncode == 0
            eventually(lambda: listed(fields["token"]), 401)
            assert listed() == 401, "no token left is no open door"
            unknown = run_command(gateway.data_dir, "token", "revoke", "nonsense")
            assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    finally:
        gateway.process.terminate()
        gateway.process.wait(60)
        shutil.rmtree(directory)
