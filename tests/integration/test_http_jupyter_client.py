"""A real client of Jupyter's REST API: jupyter_server, which has its kernels at a gateway, as Cellblock is one to it.

It is asked through its own HTTP face. What it says to kernels goes over WebSockets, and is not tested here.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from http_face import Face, serving
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.gateway.managers import GatewayKernelSpecManager, GatewayMappingKernelManager
from tornado.web import HTTPError

from gateway.auth import Token
from sessions.model import TenantId

ALICE = TenantId("alice")
TOKENS = (Token(sha256=hashlib.sha256(b"secret").hexdigest(), tenant=ALICE),)


@pytest_asyncio.fixture
async def face() -> AsyncIterator[Face]:
    async with serving(tokens=TOKENS) as face:
        yield face


@pytest.fixture
def kernels(face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayMappingKernelManager]:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("KERNEL_USERNAME", raising=False)
    monkeypatch.setattr(GatewayMappingKernelManager, "_kernels", {})  # all instances would have it
    GatewayClient.clear_instance()
    client = GatewayClient.instance()
    client.url, client.auth_token = face.url, "secret"
    client.init_connection_args()
    yield GatewayMappingKernelManager(root_dir=str(tmp_path))
    GatewayClient.clear_instance()


async def test_jupyter_server_lives_with_our_kernels(face: Face, kernels: GatewayMappingKernelManager) -> None:
    kernel_id = await kernels.start_kernel(kernel_name="python3", path="")
    (view,) = face.service.list_sessions(ALICE)
    assert view.session.public_kernel_id == kernel_id
    (model,) = await kernels.list_kernels()
    assert (model["id"], model["execution_state"]) == (kernel_id, "idle")
    manager = kernels.get_kernel(kernel_id)
    assert await manager.is_alive()
    assert manager.last_activity == view.last_activity
    await kernels.interrupt_kernel(kernel_id)
    assert face.service.interrupted == [view.session.session_id]
    await kernels.restart_kernel(kernel_id)
    assert face.service.list_sessions(ALICE)[0].state == "starting"
    await kernels.shutdown_kernel(kernel_id)
    assert face.service.list_sessions(ALICE) == []
    assert await kernels.list_kernels() == []


async def test_jupyter_server_takes_a_session_of_runcode_for_its_kernel(
    face: Face, kernels: GatewayMappingKernelManager
) -> None:
    async with httpx.AsyncClient(base_url=face.url, headers={"Authorization": "Bearer secret"}) as client:
        made = (await client.post("/sessions", json={"session_id": "chat-42"})).json()
    assert await kernels.start_kernel(kernel_id=made["kernel_id"]) == made["kernel_id"]
    assert (await kernels.kernel_model(made["kernel_id"]))["name"] == "python3"
    await kernels.shutdown_all()
    assert face.service.list_sessions(ALICE) == []


@pytest.mark.usefixtures("kernels")
async def test_jupyter_server_shows_our_kernelspecs() -> None:
    specs = GatewayKernelSpecManager()
    assert (await specs.get_kernel_spec("python3"))["spec"]["language"] == "python"
    assert (await specs.get_kernel_spec_resource("python3", "logo-64x64.png"))[:4] == b"\x89PNG"
    assert await specs.get_kernel_spec_resource("python3", "kernel.js") is None
    with pytest.raises(KeyError):
        await specs.get_kernel_spec("nope")


async def test_jupyter_server_hears_why_there_is_no_kernel(kernels: GatewayMappingKernelManager) -> None:
    for _ in range(16):
        await kernels.start_kernel(kernel_name="python3")
    with pytest.raises(HTTPError) as refused:
        await kernels.start_kernel(kernel_name="python3")
    assert refused.value.status_code == 429
    assert "too_many_requests" in str(refused.value)
    assert "end one" in str(refused.value)
