"""What the benchmarks compare: a bare local ipykernel as any Jupyter application has it, and a real gateway process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from jupyter_client import BlockingKernelClient, KernelManager
from websockets.sync.client import connect

# Else a kernel that prints faster than its client reads drops lines, and even the `idle` that the client waits for.
WAIT_FOR_READERS = "import zmq; get_ipython().kernel.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)"


def end_on_sigterm() -> None:
    """End as by Ctrl-C, so that containers and processes are ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))


class BareKernel:
    """A long-lived local ipykernel over TCP, asked with `jupyter_client`."""

    def __enter__(self) -> Self:
        self._manager = KernelManager()
        self._manager.start_kernel()
        self._client: BlockingKernelClient = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)
        self._client.execute_interactive(WAIT_FOR_READERS, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def run(self, code: str, take: Callable[[str], None]) -> None:
        """Execute, and return when the reply and all output are there; `take` gets the text as it comes."""

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                take(message["content"]["text"])

        reply = self._client.execute_interactive(code, output_hook=hear, timeout=120)
        assert reply["content"]["status"] == "ok", reply


class Gateway:
    """`cellblock serve` in a process of its own."""

    def __init__(self, data_dir: Path, image: str, settings: Mapping[str, str], checkout: Path | None = None) -> None:
        """`settings` are further variables, without the prefix; `checkout` is where the code is, if not here."""
        self._data_dir = data_dir
        self._checkout = checkout
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._variables = {
            "SERVER_DATA_DIR": str(data_dir),
            "SERVER_PORT": str(self.port),
            "ENGINE_NAME": "docker",
            "ENGINE_KERNEL_IMAGE": image,
            **settings,
        }

    def __enter__(self) -> Self:
        variables = {f"CELLBLOCK_{name}": value for name, value in self._variables.items()}
        self._log = (self._data_dir.parent / "gateway.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"],
            cwd=self._checkout,
            env={**os.environ, **variables},
            stdout=self._log,
            stderr=self._log,
        )
        self.pid = self._process.pid
        # As light as the Jupyter client that the bare kernel is asked with: blocking, one connection.
        self._connection = self.connection()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._log.close()

    @property
    def gateway_id(self) -> str:
        """What its containers are labelled with."""
        return (self._data_dir / "gateway_id").read_text().strip()

    def connection(self) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request on the connection that is kept; returns the JSON of the answer."""
        try:
            return self._ask(method, path, body)
        except http.client.RemoteDisconnected:  # it was idle for so long that the gateway has closed it
            self._connection.close()
            return self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self._connection.getresponse().read()
        return json.loads(answer) if answer else None

    def warm(self) -> int:
        """How many kernels wait; 0 while the gateway is not there yet."""
        try:
            return int(self.ask("GET", "/readyz").get("warm", 0))
        except OSError:
            self._connection.close()
            return 0


class Channels:
    """A Jupyter client of one session's kernel, over the WebSocket that JupyterLab's server speaks."""

    def __init__(self, gateway: Gateway, session: str) -> None:
        """The session must be there."""
        self._url = f"ws://127.0.0.1:{gateway.port}/api/kernels/{session}/channels"

    def __enter__(self) -> Self:
        self._socket = connect(self._url, max_size=None, compression=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self, code: str, take: Callable[[str], None]) -> None:
        """Execute, and return when the reply and all output are there; `take` gets the text as it comes."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "bench", "username": ""}
        self._socket.send(json.dumps({"channel": "shell", "header": header, "content": {"code": code}}))
        left = {"execute_reply", "idle"}
        while left:
            message = json.loads(self._socket.recv())
            content = message["content"]
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if message["msg_type"] == "stream":
                take(content["text"])
            elif message["msg_type"] == "execute_reply":
                assert content["status"] == "ok", content
                left.discard("execute_reply")
            elif message["msg_type"] == "status":
                left.discard(content["execution_state"])
