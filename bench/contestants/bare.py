"""An ipykernel on this machine, without container, server or database: what everything else is divided by."""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from jupyter_client import BlockingKernelClient, KernelManager

from bench.accounting import cpu_s, pss_bytes, tree

# Else a kernel that prints faster than its client reads drops lines, and even the `idle` that the client waits for.
WAIT_FOR_READERS = "import zmq; get_ipython().kernel.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)"

Take = Callable[[str], None]


def execute(client: BlockingKernelClient, code: str, take: Take, timeout_s: float = 600) -> None:
    """Return when the reply and all output are there; `take` gets the text as it comes."""

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            take(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=timeout_s)
    assert reply["content"]["status"] == "ok", reply


class BareKernel:
    """One that lives long, over TCP, asked with `jupyter_client` as any Jupyter application does."""

    name = "bare kernel"

    def __enter__(self) -> Self:
        self._manager = KernelManager()
        self._manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._client: BlockingKernelClient = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)
        self._client.execute_interactive(WAIT_FOR_READERS, timeout=60)
        self.pid = int(self._manager.provisioner.pid)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def cpu(self) -> dict[str, float]:
        """Of its process."""
        return {"kernel": cpu_s(self.pid)}

    def memory(self) -> dict[str, int]:
        """Of its processes."""
        return {"kernels": pss_bytes(tree(self.pid))}

    def run(self, code: str, take: Take) -> None:
        """As `execute`."""
        execute(self._client, code, take)


class NewKernels:
    """A new ipykernel process for each run, over ipc."""

    name = "new kernel process, no container"

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cbk")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cpu(self) -> dict[str, float]:
        """Of the kernels: children of this process, as they end."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"processes": ended.ru_utime + ended.ru_stime}

    def fresh(self, code: str) -> tuple[str, float]:
        """Run in a kernel that is started for it; returns the output, and the seconds until the kernel was ready."""
        begin = time.perf_counter()
        manager = KernelManager(transport="ipc", connection_file=tempfile.mktemp(dir=self._root))  # noqa: S306 - ours
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            ready_s = time.perf_counter() - begin
            heard: list[str] = []
            execute(client, code, heard.append)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.context.destroy(linger=0)
        return "".join(heard), ready_s
