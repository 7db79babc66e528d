"""What Jupyter clients see of a gateway: its REST side through plain httpx, and its WebSocket message by message.

For tests of what no client library lets one say or see. The fixture `jupyter` is Alice at the module's `gateway`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from client_rig import ALICE, Json
from held_ports import hold, port_of
from jupyter_kernel_client.utils import deserialize_msg_from_ws_v1
from jupyter_kernel_client.wsclient import JupyterSubprotocol, KernelWebSocketClient
from jupyter_messages import Message, from_legacy, from_v1, text_of, to_legacy, to_v1
from serve_rig import Gateway
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

V1 = Subprotocol("v1.kernel.websocket.jupyter.org")
PATIENCE_S = 50.0
NUMBERED = "import time\nfor n in range({count}):\n    print(n, flush=True)\n    time.sleep({pause_s})"


def numbers(count: int) -> str:
    """What NUMBERED prints."""
    return "".join(f"{n}\n" for n in range(count))


class Channels:
    """One WebSocket. Its state: `heard`, every message that has come, in order."""

    def __init__(self, ws: ClientConnection, session: str, heard: list[Message]) -> None:
        self.ws = ws
        self.session = session
        self.heard = heard

    def message(self, msg_type: str, content: Json, *, channel: str | None = "shell", **parts: Any) -> Message:
        """A message as a client would make it."""
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "username": "",
            "session": self.session,
            "date": "2026-01-02T03:04:05.678901Z",
            "version": "5.3",
        }
        return Message(channel, header, parts.pop("parent_header", {}), parts.pop("metadata", {}), content, **parts)

    async def send(self, message: Message) -> str:
        """Send it, and return its id."""
        await self.ws.send(to_v1(message) if self.ws.subprotocol == V1 else to_legacy(message))
        return str(message.header["msg_id"])

    async def execute(self, code: str, **options: Any) -> str:
        """Ask for a run, and return the request's id."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": True,
            **options,
        }
        return await self.send(self.message("execute_request", content))

    async def hear(self, patience_s: float = PATIENCE_S) -> Message:
        async with asyncio.timeout(patience_s):
            frame = await self.ws.recv()
        if self.ws.subprotocol == V1:
            assert isinstance(frame, bytes)
            message = from_v1(frame)
        else:
            message = from_legacy(frame)
        self.heard.append(message)
        return message

    async def until(self, wanted: Callable[[Message], bool], patience_s: float = PATIENCE_S) -> Message:
        """The first message from now on for which this holds."""
        async with asyncio.timeout(patience_s):
            while not wanted(message := await self.hear(patience_s)):
                pass
        return message

    async def reply(self, msg_id: str, patience_s: float = PATIENCE_S) -> Message:
        """The reply to a request, once the kernel is idle after it too; both may have been heard before."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    ours = [message for message in self.heard if message.parent_id == msg_id]
                    replies = [message for message in ours if message.type.endswith("_reply")]
                    if replies and any(message.is_state("idle") for message in ours):
                        assert len(replies) == 1, replies
                        return replies[0]
                    await self.hear(patience_s)
        except TimeoutError:
            pytest.fail(f"no reply, or no idle, after {[message.type for message in ours][-5:]}")

    async def run(self, code: str, **options: Any) -> tuple[Message, str]:
        """Execute; the reply and the text that a notebook shows."""
        msg_id = await self.execute(code, **options)
        return await self.reply(msg_id), text_of(self.heard, msg_id)

    async def quiet(self, seconds: float = 0.5) -> None:
        """Hear what comes until nothing has for a while."""
        while True:
            try:
                await self.hear(seconds)
            except TimeoutError:
                return


class BinaryClient(KernelWebSocketClient):  # type: ignore[misc]
    """jupyter-kernel-client's own, with one method mended.

    Of release 1.0.2 that method formats a log line with a field that v1 messages lack, and so drops every one of them.
    """

    def _on_message(self, _: object, frame: bytes) -> None:
        channel, parts = deserialize_msg_from_ws_v1(frame)
        getattr(self, f"_{channel}_msg_queue").put_nowait(self.session.deserialize(parts))
        self._message_received.set()


IN_BINARY: Json = {
    "client_class": f"{BinaryClient.__module__}.{BinaryClient.__qualname__}",
    "client_kwargs": {"subprotocol": JupyterSubprotocol.V1},
}
"""What to give jupyter-kernel-client so that it offers v1."""


@dataclass
class Jupyter:
    """One tenant at one server: what a Jupyter client is told by its user, `url` and `token`."""

    url: str
    token: str
    http: httpx.AsyncClient

    async def start(self, **body: Any) -> str:
        """Start a kernel, however long it takes until a sandbox is free, and return its id."""
        async with asyncio.timeout(150):
            while (answer := await self.http.post("/api/kernels", json=body or None)).status_code == 503:
                await asyncio.sleep(0.5)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def status(self, kernel_id: str) -> int:
        return (await self.http.get(f"/api/kernels/{kernel_id}")).status_code

    async def until_gone(self, kernel_id: str) -> None:
        async with asyncio.timeout(30):
            while (status := await self.status(kernel_id)) != 404:
                assert status == 200
                await asyncio.sleep(0.1)

    async def until_nobody_is_connected(self, kernel_id: str) -> None:
        """Wait until the server knows that the others have left."""
        async with asyncio.timeout(30):
            while (await self.http.get(f"/api/kernels/{kernel_id}")).json()["connections"]:
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def channels(
        self,
        kernel_id: str,
        *,
        v1: bool = True,
        session: str | None = None,
        heard: list[Message] | None = None,
        **options: Any,
    ) -> AsyncIterator[Channels]:
        """Connect. Who comes back gives the `session` and what was `heard` of the connection before."""
        session = session or uuid.uuid4().hex
        url = f"{self.url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels?session_id={session}"
        headers = {"Authorization": f"token {self.token}"}
        subprotocols = [V1] if v1 else None
        opened = connect(url, additional_headers=headers, subprotocols=subprotocols, max_size=None, **options)
        async with opened as ws:
            assert ws.subprotocol == (V1 if v1 else None)
            yield Channels(ws, session, [] if heard is None else heard)

    async def close(self) -> None:
        """Delete this tenant's kernels."""
        for kernel in (await self.http.get("/api/kernels")).json():
            await self.http.delete(f"/api/kernels/{kernel['id']}")
        await self.http.aclose()


@asynccontextmanager
async def visiting(gateway: Gateway, token: str = ALICE, *, deletes: bool = True) -> AsyncIterator[Jupyter]:
    """A tenant at a gateway, whose kernels are deleted in the end, unless they are somebody else's to delete."""
    headers = {"Authorization": f"token {token}"}
    jupyter = Jupyter(gateway.url, token, httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=120))
    try:
        yield jupyter
    finally:
        await (jupyter.close() if deletes else jupyter.http.aclose())


FORGETFUL = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""For tests of client libraries that leave sockets to the garbage collector."""


@contextmanager
def only_these_kernels(gateway: Gateway, token: str = ALICE) -> Iterator[None]:
    """The same for clients that wait where they stand.

    What they forget to close is collected, and not blamed on a later test; their own needs FORGETFUL.
    """
    yield
    gc.collect()
    with httpx.Client(base_url=gateway.url, headers={"Authorization": f"token {token}"}, timeout=60) as http:
        for kernel in http.get("/api/kernels").json():
            http.delete(f"/api/kernels/{kernel['id']}")


@contextmanager
def jupyter_server(gateway: Gateway, home: Path, app: str = "jupyter_server", *more: str) -> Iterator[Gateway]:
    """A server with `--gateway-url` and a home of its own, whose token is Alice's as well."""
    held, log = hold(), home / "server.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER_", "CELLBLOCK_"))}
    environment = {
        **inherited,
        **{f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        "HOME": str(home),
        "JUPYTER_GATEWAY_AUTH_TOKEN": ALICE,
        "JUPYTER_NO_CONFIG": "1",
    }
    options = {
        "--gateway-url": gateway.url,
        "--IdentityProvider.token": ALICE,
        "--ServerApp.ip": "127.0.0.1",
        "--ServerApp.port": str(port_of(held)),
        "--ServerApp.port_retries": "0",
        "--ServerApp.root_dir": str(home),
        "--ServerApp.disable_check_xsrf": "True",
    }
    command = [
        sys.executable,
        "-m",
        app,
        "--no-browser",
        "--allow-root",
        *(f"{k}={v}" for k, v in options.items()),
        *more,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=output, stderr=output, text=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        url = f"http://127.0.0.1:{port_of(held)}"
        while not _answers(f"{url}/api"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Gateway(process, url, home, log, log)
    finally:
        process.kill()  # told to stop, it would shut the gateway's kernels down, and ask first
        process.wait()
        held.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest_asyncio.fixture
async def jupyter(gateway: Gateway) -> AsyncIterator[Jupyter]:
    async with visiting(gateway) as jupyter:
        yield jupyter
