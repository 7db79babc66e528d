"""`cellblock serve` as a process of its own, for tests that meet it as clients and operators do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from engine_fixtures import ZYGOTE_VARIABLE
from forked_program import ForkedProgram

from gateway.host.data_dir import holder_of

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 60.0


@dataclass
class Gateway:
    process: subprocess.Popen[str] | ForkedProgram
    url: str
    data_dir: Path
    output: Path
    log: Path

    def stop(self, *signals: signal.Signals) -> int:
        """Send the signals, a little apart, and wait for the end."""
        first, *others = signals
        self.process.send_signal(first)
        for number in others:
            time.sleep(0.3)
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def environment(data_dir: Path, **variables: str) -> dict[str, str]:
    ours = {k for k in os.environ if k.startswith("CELLBLOCK_") and k != ZYGOTE_VARIABLE}
    inherited = {k: v for k, v in os.environ.items() if k not in {*ours, "PORT"}}
    return {
        **inherited,
        "PYTHONPATH": str(REPOSITORY),
        "CELLBLOCK_SERVER_DATA_DIR": str(data_dir),
        "CELLBLOCK_ENGINE_NAME": "process",
        "CELLBLOCK_BUILD_DEPENDENCIES": "[]",  # kernels run in the tests' own environment
        "CELLBLOCK_BUILD_PRELOAD": "[]",
        "CELLBLOCK_POOL_SIZE": "1",
        **variables,
    }


def start(data_dir: Path, *, open_files: int | None = None, **variables: str) -> Gateway:
    """Start a gateway, as after `ulimit -n` where `open_files` is given, and wait until it can run code."""
    limited = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh"] if open_files else []
    output, log = data_dir.parent / "output", data_dir.parent / "log"
    with output.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            [*limited, sys.executable, "-m", "gateway", "serve"],
            env=environment(data_dir, PORT="0", **variables),
            cwd=data_dir.parent,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    return _serving(Gateway(process, "", data_dir, output, log))


def fork(data_dir: Path, **variables: str) -> Gateway:
    """The same without the imports, for tests that start gateways again and again."""
    output, log = data_dir.parent / "output", data_dir.parent / "log"
    for file in (output, log):
        file.write_text("")
    env = environment(data_dir, PORT="0", **variables)
    process = ForkedProgram("gateway", "serve", env=env, cwd=data_dir.parent, stdout=output, stderr=log)
    return _serving(Gateway(process, "", data_dir, output, log))


def _serving(gateway: Gateway) -> Gateway:
    try:
        wait_until_ready(gateway)
    except BaseException:
        gateway.process.kill()
        gateway.process.wait()
        raise
    return gateway


def wait_until_ready(gateway: Gateway) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert gateway.process.poll() is None, gateway.log.read_text()
        holder = holder_of(gateway.data_dir)
        if holder is not None and holder.pid == gateway.process.pid and holder.url:
            gateway.url = holder.url
            with suppress(httpx.TransportError):
                if httpx.get(f"{gateway.url}/readyz").status_code == 200:
                    return
        time.sleep(0.05)
    raise AssertionError(gateway.log.read_text())


def run_command(data_dir: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env=environment(data_dir, **variables),
        cwd=data_dir.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def processes_of(data_dir: Path) -> list[str]:
    """Command lines of everything that still works in or for this data directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(data_dir) in word for word in words):
            found.append(" ".join(words))
    return found
