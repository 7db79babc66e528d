"""A Jupyter server before the gateway that joins kernels which others have started: `gateway.lab`."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
from client_rig import ALICE, delete_all
from jupyter_client_rig import jupyter_server
from serve_rig import REPOSITORY, Gateway

from gateway.client import Client

OPTION = "--ServerApp.kernel_manager_class=gateway.lab.SharedKernels"


def kernels_at(http: httpx.Client) -> set[str]:
    return {kernel["id"] for kernel in http.get("/api/kernels").raise_for_status().json()}


def test_a_person_joins_the_kernel_of_an_agent_and_does_not_end_it(
    plain_gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_all(plain_gateway)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    with (
        Client(plain_gateway.url) as client,
        client.session() as agent,
        jupyter_server(plain_gateway, tmp_path, "jupyter_server", OPTION) as server,
        httpx.Client(base_url=server.url, params={"token": ALICE}, timeout=60) as http,
    ):
        agent.run("x = 41")
        joined = agent.info.kernel_id
        own = http.post("/api/kernels").raise_for_status().json()["id"]
        assert kernels_at(http) == {joined, own}

        opened = {"path": "a.ipynb", "name": "", "type": "notebook", "kernel": {"id": joined}}
        notebook = http.post("/api/sessions", json=opened).raise_for_status().json()
        assert notebook["kernel"]["id"] == joined
        moved = http.patch(f"/api/sessions/{notebook['id']}", json={"kernel": {"id": own}}).raise_for_status().json()
        assert moved["kernel"]["id"] == own
        assert agent.run("x + 1").text == "42"

        http.delete(f"/api/kernels/{joined}").raise_for_status()
        http.delete(f"/api/kernels/{own}").raise_for_status()
        assert kernels_at(http) == {joined}
        own = http.post("/api/kernels").raise_for_status().json()["id"]
        assert kernels_at(http) == {joined, own}
        server.stop(signal.SIGTERM)
        assert agent.run("x + 2").text == "43"
        assert [session.kernel_id for session in client.sessions()] == [joined]
