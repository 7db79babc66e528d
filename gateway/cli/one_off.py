"""A gateway of a command's own, where none is running: a child process on a free port of loopback.

It lives as long as the block that asked for it, and not longer than this process, however that ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx

from gateway.addresses import TOKEN_VARIABLE, URL_VARIABLE
from gateway.cli.waiting import Say, probing, reasons_not_ready, saying
from gateway.client import AsyncClient, ClientError
from gateway.config import loader as configuration
from gateway.config.loader import IN_FILE
from gateway.host.data_dir import DataDir, holder_of
from gateway.host.stop_signals import ending_on_sigterm
from sessions.errors import NO_SANDBOX, SetUpFailed

_POLL_S = 0.05
_READY_S = 90.0
_END_S = 40.0
_PATIENCE_AT_END_S = 5.0
_DIRECTORY_NAME = "one-off"
_PR_SET_PDEATHSIG = 1
_SENTENCE_PREFIX = "cellblock: "
_STARTING = "Starting a gateway."
_PROGRESS = {
    "Kernel image": "Building the kernel image, which takes minutes the first time.",
    "Python packages": "Installing the Python packages that code finds, which takes minutes the first time.",
}
"""What the lines of a gateway's progress begin with, and what is said of it."""

_TAIL_BYTES = 4096


@asynccontextmanager
async def one_off(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> AsyncIterator[str]:
    """Start a gateway, wait until it can run code, and yield its address; it takes requests without a token.

    It has the engine, packages and limits of the configuration, but neither its address nor its database. Its data is
    in the directory `one-off` of the configured data directory, or where another one-off gateway uses that, in a
    temporary one. SIGTERM ends the block first, and then the program, as Ctrl-C does.

    Raises SetUpFailed and Misconfigured with the gateway's own sentence.
    """
    environ = {name: value for name, value in environ.items() if name not in (URL_VARIABLE, TOKEN_VARIABLE, "PORT")}
    async with AsyncExitStack() as stack:
        stack.enter_context(ending_on_sigterm())
        data_dir = _free_directory(configuration.load(config, environ).data_dir(environ) / _DIRECTORY_NAME)
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cb-"))) / "d"
            data_dir.mkdir(mode=0o700)
        process = await _start(config, data_dir, own_environment(environ, data_dir))
        stack.push_async_callback(_end, process)
        with saying() as say:
            url = await _address(process, data_dir, say)
            stack.push_async_callback(_end_sessions, url)
            await _end_sessions(url)  # of a predecessor that was killed
            await _until_ready(process, url, data_dir, say)
        yield url


def own_environment(environ: Mapping[str, str], data_dir: Path) -> dict[str, str]:
    """The environment of such a gateway: `environ`, but for what it has of its own. Pure."""
    own = {
        "CELLBLOCK_SERVER_HOST": "127.0.0.1",
        "CELLBLOCK_SERVER_PORT": "0",
        "CELLBLOCK_SERVER_PUBLIC_URL": "",
        "CELLBLOCK_SERVER_DATA_DIR": str(data_dir),
        "CELLBLOCK_DATABASE_URL": "",
        "CELLBLOCK_AUTH_REQUIRED": "false",
        "CELLBLOCK_AUTH_TOKENS": "[]",
        "CELLBLOCK_POOL_SIZE": "1",
    }
    in_files = {f"{name}{IN_FILE}" for name in own}
    return {**{name: value for name, value in environ.items() if name not in in_files}, **own}


def _free_directory(path: Path) -> Path | None:
    """The directory, unless another gateway has it or it cannot be written."""
    try:
        DataDir.open(path).release()
    except SetUpFailed:
        return None
    return path


async def _start(config: Path | None, data_dir: Path, environ: Mapping[str, str]) -> Process:
    arguments = ["--config", str(config)] if config else []
    with _log(data_dir).open("wb") as stderr, _output(data_dir).open("wb") as stdout:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway",
            "serve",
            *arguments,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C in the terminal is for us: we end it once its sessions are
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent is gone, even if it was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _address(process: Process, data_dir: Path, say: Say) -> str:
    """Where it listens, once it does. Raises SetUpFailed when it ends instead."""
    while process.returncode is None:
        holder = holder_of(data_dir)
        if holder is not None and holder.pid == process.pid and holder.url:
            return holder.url
        say(*_progress(_output(data_dir)))
        await asyncio.sleep(_POLL_S)
    raise _not_started(process, data_dir)


async def _until_ready(process: Process, url: str, data_dir: Path, say: Say) -> None:
    """Return when it has a sandbox. Raises SetUpFailed when it ends, or says that it will have none."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _READY_S
    async with probing(url) as http:
        while process.returncode is None:
            with suppress(httpx.TransportError):
                reasons = await reasons_not_ready(http, url)
                if not reasons:
                    return
                say(" ".join(reasons), "")
                if loop.time() > deadline_s or any(reason.startswith(NO_SANDBOX) for reason in reasons):
                    raise SetUpFailed(" ".join(reasons))
            await asyncio.sleep(_POLL_S)
    raise _not_started(process, data_dir)


def _not_started(process: Process, data_dir: Path) -> SetUpFailed:
    log = _log(data_dir)
    why = _last_sentence(log) or f"it ended with status {process.returncode}, and {log} has its last words."
    return SetUpFailed(f"No gateway could be started: {why}")


def _log(data_dir: Path) -> Path:
    return data_dir / "log"


def _output(data_dir: Path) -> Path:
    return data_dir / "output"


def _progress(output: Path) -> tuple[str, str]:
    """What a gateway that starts is at, and how far that is, by what it has printed."""
    with output.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    title, _, detail = (lines[-1] if lines else "").partition(": ")
    return (_PROGRESS[title], detail) if title in _PROGRESS else (_STARTING, "")


def _last_sentence(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith(_SENTENCE_PREFIX)), "").removeprefix(
        _SENTENCE_PREFIX
    )


async def _end_sessions(url: str) -> None:
    """End what would otherwise wait for the next gateway."""
    async with AsyncClient(url, "", patience_s=_PATIENCE_AT_END_S) as client:
        with suppress(ClientError):
            for info in await client.sessions():
                with suppress(ClientError):
                    await (await client.session(info.session_id)).end()


async def _end(process: Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _END_S)
            return
