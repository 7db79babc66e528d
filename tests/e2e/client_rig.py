"""Clients of a gateway that runs as a process of its own on real containers, and the fixtures that start and end it.

The `gateway` of a module is the one that all modules of a worker share, unless the module makes its own, with `launch`:
where it needs other settings, or ends it. `client` is a tenant of it, whose sessions are deleted after each test.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from docker.api.client import APIClient
from serve_rig import PATIENCE_S, Gateway, fork
from store_fixtures import copy_template_data_dir
from websockets.asyncio.client import ClientConnection, connect

from sessions.provisioners.docker.container import GATEWAY_LABEL

ALICE, BOB = "alice", "bob"
TOKENS = json.dumps([{"tenant": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in (ALICE, BOB)])
WARM = 1
TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

Json = dict[str, Any]
Launch = Callable[..., AbstractContextManager[Gateway]]


class Client:
    """One tenant's way in. Its token is its name."""

    def __init__(self, gateway: Gateway, tenant: str = ALICE) -> None:
        self.gateway = gateway
        self.headers = {"Authorization": f"Bearer {tenant}"}
        limits = httpx.Limits(max_connections=200)
        self.http = httpx.AsyncClient(base_url=gateway.url, headers=self.headers, timeout=120, limits=limits)

    async def run(self, code: str, session_id: str | None = None, *, key: str | None = None, **fields: Any) -> Json:
        """Run code; the answer, which is a 200 or that of a time-out."""
        answer = await self.post(code, session_id, key=key, **fields)
        assert answer.status_code in (200, 504), answer.text
        body: Json = answer.json()
        return body

    async def post(
        self, code: str, session_id: str | None = None, *, key: str | None = None, **fields: Any
    ) -> httpx.Response:
        """The same, whatever the answer is."""
        fields = {"code": code, **fields, **({"session_id": session_id} if session_id else {})}
        return await self.http.post("/runcode", json=fields, headers={"Idempotency-Key": key} if key else {})

    async def get(self, path: str, **query: Any) -> Any:
        """The body of a 200."""
        answer = await self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def session(self, **fields: Any) -> Json:
        """Make a session, however long it takes until a sandbox is free."""
        async with asyncio.timeout(150):
            while (answer := await self.http.post("/sessions", json=fields)).status_code == 503:
                await asyncio.sleep(0.5)
        assert answer.status_code == 201, answer.text
        body: Json = answer.json()
        return body

    async def runs_of(self, session_id: str, count: int) -> list[Json]:
        """Wait until so many runs of a session are recorded; they come newest first."""
        async with asyncio.timeout(30):
            while len(runs := (await self.get("/runs", session_id=session_id))["runs"]) < count:
                await asyncio.sleep(0.02)
        return list(runs)

    async def until(self, run_id: str, *statuses: str) -> Json:
        """Wait until a run has one of these statuses; for as long as the database is away, too."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.http.get(f"/runs/{run_id}")
                body: Json = answer.json()
                if answer.status_code == 200 and body["status"] in statuses:
                    return body
                assert answer.status_code in (200, 503), answer.text
                await asyncio.sleep(0.05)

    async def begin(self, code: str, session_id: str | None = None, **fields: Any) -> str:
        """Start a run, leave it alone once it has, and return its id."""
        async with self.streaming("POST", "/runcode", code=code, session_id=session_id, **fields) as events:
            return str((await anext(events))["run_id"])

    @asynccontextmanager
    async def streaming(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> AsyncIterator[AsyncIterator[Json]]:
        """The events of a run as they come, with `received_id` being what the stream itself calls them."""
        body = {"stream": True, **{name: value for name, value in fields.items() if value is not None}}
        arguments: Json = {"json": body} if method == "POST" else {}
        async with self.http.stream(method, path, headers=headers or {}, **arguments) as answer:
            if answer.status_code != 200:
                pytest.fail((await answer.aread()).decode())
            yield _events(answer)

    async def events(self, run_id: str, after: int = 0) -> list[Json]:
        """All events of a run, to its end."""
        path = f"/runs/{run_id}/events?after={after}"
        async with self.streaming("GET", path, headers={"Accept": "application/x-ndjson"}) as events:
            return [event async for event in events]

    def socket(self, **options: Any) -> connect:
        """A WebSocket for runs."""
        url = self.gateway.url.replace("http", "ws", 1) + "/runcode/ws"
        return connect(url, additional_headers=self.headers, **options)

    async def end_sessions(self) -> None:
        """Delete this tenant's sessions."""
        for session in (await self.get("/sessions"))["sessions"]:
            await self.http.delete(f"/sessions/{session['session_id']}")


async def _events(answer: httpx.Response) -> AsyncIterator[Json]:
    if answer.headers["Content-Type"].startswith("application/x-ndjson"):
        async for line in answer.aiter_lines():
            yield json.loads(line)
        return
    received_id = 0
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            received_id = int(line[4:])
        elif line.startswith("data: "):
            yield {**json.loads(line[6:]), "received_id": received_id}


async def tell(ws: ClientConnection, **message: Any) -> None:
    await ws.send(json.dumps(message))


async def hear(ws: ClientConnection, patience_s: float = 60.0) -> Json:
    async with asyncio.timeout(patience_s):
        event: Json = json.loads(await ws.recv())
    return event


def check_events(events: list[Json], after: int = 0) -> None:
    """No gap, no repeat, and one end, which is last and has the output that came."""
    assert [event["seq"] for event in events] == list(range(after + 1, after + len(events) + 1))
    assert [event["type"] for event in events].count("end") == 1
    assert events[-1]["type"] == "end"
    if not after and not events[-1].get("truncated"):
        assert text_of(events) == events[-1]["output"]


def text_of(events: list[Json]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "stdout")


def containers_of(docker_client: APIClient, gateway: Gateway) -> list[Json]:
    """This gateway's containers, dead ones included."""
    gateway_id = (gateway.data_dir / "gateway_id").read_text().strip()
    found: list[Json] = docker_client.containers(all=True, filters={"label": f"{GATEWAY_LABEL}={gateway_id}"})
    return found


def kernels_of(docker_client: APIClient, gateway: Gateway) -> set[str]:
    """The ids of the kernels that have a container."""
    return {container["Labels"]["cellblock.kernel"] for container in containers_of(docker_client, gateway)}


def delete_all(gateway: Gateway) -> None:
    """Cancel all runs and delete all sessions."""
    for tenant in (ALICE, BOB):
        headers = {"Authorization": f"Bearer {tenant}"}
        with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
            for run in client.get("/runs", params={"limit": 500}).json()["runs"]:
                if run["finished_at"] is None:
                    client.post(f"/runs/{run['run_id']}/cancel")
            for session in client.get("/sessions").json()["sessions"]:
                client.delete(f"/sessions/{session['session_id']}")


def end(gateway: Gateway, docker_client: APIClient) -> None:
    """Delete all sessions and end the gateway as an operator does; nothing may be left."""
    delete_all(gateway)
    assert gateway.stop(signal.SIGTERM) == 0, gateway.log.read_text()[-4000:]
    assert containers_of(docker_client, gateway) == []
    assert list((gateway.data_dir / "s").iterdir()) == []


@contextmanager
def short_directory() -> Iterator[Path]:
    """Not pytest's tmp_path: socket paths end at 107 bytes."""
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    try:
        yield parent
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def settings(kernel_image: str, database_url: str, **more: str) -> dict[str, str]:
    """Environment variables of a gateway with two tenants; without a database URL it has its own."""
    return {
        "CELLBLOCK_ENGINE_NAME": "docker",
        "CELLBLOCK_ENGINE_KERNEL_IMAGE": kernel_image,
        "CELLBLOCK_DATABASE_URL": database_url,
        "CELLBLOCK_AUTH_TOKENS": TOKENS,
        "CELLBLOCK_BUILD_PRELOAD": "[]",
        "CELLBLOCK_POOL_SIZE": str(WARM),
        **more,
    }


@contextmanager
def launching(docker_client: APIClient, kernel_image: str, database_url: str, **more: str) -> Iterator[Gateway]:
    """A gateway that is ended as an operator does; nothing may be left."""
    with short_directory() as parent:
        gateway = fork(parent / "data", **settings(kernel_image, database_url, **more))
        try:
            yield gateway
        finally:
            try:
                end(gateway, docker_client)
            finally:
                clear_away(gateway, docker_client)


@pytest.fixture(scope="module")
def launch(docker_client: APIClient, kernel_image: str, module_database_url: str) -> Launch:
    """Starts a gateway on this module's database, and ends it."""
    return partial(launching, docker_client, kernel_image, module_database_url)


@pytest.fixture(scope="session")
def shared_gateway(docker_client: APIClient, kernel_image: str, session_database_url: str) -> Iterator[Gateway]:
    with launching(docker_client, kernel_image, session_database_url, CELLBLOCK_POOL_MAX="12") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def gateway(shared_gateway: Gateway, docker_client: APIClient) -> Iterator[Gateway]:
    """Nothing of the module is left for the next one: no session, no run at work, no container but the warm ones."""
    yield shared_gateway
    delete_all(shared_gateway)
    deadline_s = time.monotonic() + PATIENCE_S
    while len(left := containers_of(docker_client, shared_gateway)) != WARM:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.1)
    assert len(list((shared_gateway.data_dir / "s").iterdir())) == WARM


@pytest.fixture(scope="session")
def plain_gateway() -> Iterator[Gateway]:
    """One without containers, whose start takes longer, and without tokens."""
    with short_directory() as directory:
        copy_template_data_dir(directory / "d")
        gateway = fork(directory / "d", CELLBLOCK_AUTH_TOKENS="[]", CELLBLOCK_POOL_SIZE="2")
        try:
            yield gateway
        finally:
            gateway.stop(signal.SIGTERM)


def clear_away(gateway: Gateway, docker_client: APIClient) -> None:
    """What a test that has failed may have left."""
    if gateway.process.poll() is None:
        gateway.process.kill()
        gateway.process.wait()
    if (gateway.data_dir / "gateway_id").exists():
        for container in containers_of(docker_client, gateway):
            docker_client.remove_container(container["Id"], force=True)


@pytest_asyncio.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    client = Client(gateway)
    yield client
    await client.end_sessions()
    await client.http.aclose()


@pytest_asyncio.fixture
async def bob(gateway: Gateway) -> AsyncIterator[Client]:
    bob = Client(gateway, BOB)
    yield bob
    await bob.end_sessions()
    await bob.http.aclose()


@pytest.fixture
def s() -> str:
    """The name of a session that no other test has: runs are listed by it after its end."""
    return f"s-{uuid.uuid4().hex}"
