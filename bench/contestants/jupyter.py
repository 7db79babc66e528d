"""Jupyter servers over their REST routes and WebSocket: jupyter_server and jupyter-kernel-gateway."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import connect

from bench.accounting import cpu_s, pss_bytes, tree
from bench.contestants.bare import Take
from bench.contestants.installed import Unavailable, note_version, python_with

_PATIENCE_S = 60


class HttpServer:
    """Requests to a server on this machine, over one kept connection for each thread."""

    def __init__(self) -> None:
        self._held = socket.socket()
        # Nobody else is given the port; a server may bind it all the same, for all of them set this option.
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = int(self._held.getsockname()[1])
        self._local = threading.local()

    def connection(self) -> http.client.HTTPConnection:
        """A new one."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request; returns the JSON of the answer."""
        if not hasattr(self._local, "connection"):
            self._local.connection = self.connection()
        try:
            return self._ask(method, path, body)
        except ConnectionError:  # it was idle for too long
            return self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            self._local.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = self._local.connection.getresponse()
            answer = response.read()
        except OSError:
            self._local.connection.close()
            raise
        assert response.status < 400, (method, path, response.status, answer[:500])
        return json.loads(answer) if answer else None

    def channels(self, kernel: str) -> Channels:
        """A Jupyter client of one kernel."""
        return Channels(f"ws://127.0.0.1:{self.port}/api/kernels/{kernel}/channels")


class Channels:
    """A client of one kernel, over the WebSocket that JupyterLab's server speaks."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> Self:
        self._socket = connect(self._url, max_size=None, compression=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self, code: str, take: Take) -> None:
        """Execute, and return when the reply and all output are there; `take` gets the text as it comes."""
        reply = self.ask("execute", {"code": code}, take)
        assert reply["status"] == "ok", reply

    def complete(self, code: str) -> list[str]:
        """What Tab at the end of the code offers."""
        content = self.ask("complete", {"code": code, "cursor_pos": len(code)}, lambda _: None)
        return list(content["matches"])

    def ask(self, what: str, content: dict[str, Any], take: Take) -> dict[str, Any]:
        """One request; returns the reply's content, once the kernel is idle too."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": f"{what}_request", "session": "bench", "username": ""}
        request = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
        self._socket.send(json.dumps({"channel": "shell", **request}))
        reply: dict[str, Any] = {}
        idle = False
        while not (reply and idle):
            message = json.loads(self._socket.recv())
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if message["msg_type"] == "stream":
                take(message["content"]["text"])
            elif message["msg_type"] == f"{what}_reply":
                reply = message["content"]
            elif message["msg_type"] == "status":
                idle = message["content"]["execution_state"] == "idle"
        return reply


class JupyterServer(HttpServer):
    """A server of others, whose kernels are processes without a container."""

    def __init__(self, name: str, module: str, section: str) -> None:
        """`section` is what its port is set in."""
        super().__init__()
        self.name = name
        self._module = module
        self._section = section
        self._kernels: set[str] = set()

    def __enter__(self) -> Self:
        python = python_with(self.name, self.name, "ipykernel", "pandas")
        note_version(python, self.name)
        with ExitStack() as stack:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbj")))
            log = stack.enter_context((home / "log").open("wb"))
            command = [str(python), "-m", self._module, f"--{self._section}.port={self.port}"]
            command += ["--IdentityProvider.token=", "--ServerApp.allow_root=True", "--ServerApp.open_browser=False"]
            command += ["--ServerApp.disable_check_xsrf=True"]
            environment = {**os.environ, "HOME": str(home), "JUPYTER_RUNTIME_DIR": str(home), "IPYTHONDIR": str(home)}
            self._process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
            stack.callback(self._process.wait, _PATIENCE_S)
            stack.callback(self._process.terminate)
            self._wait(home / "log")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for kernel in sorted(self._kernels):
            self._end(kernel)
        self._stack.close()

    def cpu(self) -> dict[str, float]:
        """Of the server, with those of its kernels that have ended."""
        return {"processes": cpu_s(self._process.pid)}

    def memory(self) -> dict[str, int]:
        """Of the server and all its kernels."""
        return {"server": pss_bytes([self._process.pid]), "kernels": pss_bytes(tree(self._process.pid)[1:])}

    def start(self) -> str:
        """Start a kernel; returns its id."""
        kernel = str(self.ask("POST", "/api/kernels", {"name": "python3"})["id"])
        self._kernels.add(kernel)
        return kernel

    def fresh(self, code: str) -> tuple[str, float]:
        """Run in a kernel that is started for it; the time until it was ready is not told from the run."""
        begin = time.perf_counter()
        kernel = self.start()
        heard: list[str] = []
        with self.channels(kernel) as channels:
            channels.run(code, heard.append)
        ready_s = time.perf_counter() - begin
        self._end(kernel)
        return "".join(heard), ready_s

    def _end(self, kernel: str) -> None:
        self._kernels.discard(kernel)
        self.ask("DELETE", f"/api/kernels/{kernel}")

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.ask("GET", "/api")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise Unavailable(f"it does not answer: {log.read_text()[-200:].strip()}")


def jupyter_server() -> JupyterServer:
    """Jupyter's own server, which JupyterLab has."""
    return JupyterServer("jupyter_server", "jupyter_server", "ServerApp")


def kernel_gateway() -> JupyterServer:
    """The same without notebooks."""
    return JupyterServer("jupyter-kernel-gateway", "kernel_gateway", "KernelGatewayApp")
